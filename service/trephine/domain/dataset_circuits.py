"""Circuits of a behaviour: found over a dataset of contexts instead of one prompt (Marks et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from trephine.domain.circuits import GraphSet
from trephine.domain.commands import Command, Progress
from trephine.domain.errors import InvalidRequestError
from trephine.domain.findings import Figure
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import NEURONS

MAX_EXAMPLES = 4096
"""Of one request, both splits together."""
MAX_NODES = 4096
"""Of one circuit."""
AUTO_CLUSTERS = 0
HEADS = "heads"
"""The name of the model's attention heads where they are nodes: a head's mixed values are one node."""
ERRORS = "errors"
"""The name under which error terms of the sets are nodes: one per layer of a set (and position)."""


class Estimator(StrEnum):
    """How the effect of patching one node is estimated."""

    ATTRIBUTION_PATCHING = "attribution_patching"
    """Gradient at the clean run times the difference (Nanda 2023)."""
    INTEGRATED_GRADIENTS = "integrated_gradients"
    """Mean gradient over a layer's way from clean to patch, times the difference (Marks et al. 2025)."""
    RELP = "relp"
    """Attribution patching with patterns and norm scales frozen and MLPs by the half rule (Jafari 2025)."""
    EXACT = "exact"
    """The patch itself, one node at a time, on the nodes that attribution patching ranks highest."""


class NodeAblation(StrEnum):
    """What a node's activation is replaced with."""

    MEAN = "mean"
    """Its mean over the training contexts, clean and corrupted; per position if positions are kept."""
    ZERO = "zero"
    RESAMPLE = "resample"
    """Its value in the corrupted twin, or in another context where there is no twin."""


class PositionRule(StrEnum):
    """What is one node."""

    KEPT = "kept"
    """A feature at a position; every context must have the same number of tokens."""
    SUMMED = "summed"
    """A feature at all positions together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A context and the choice of its next token."""

    clean: str
    answers: tuple[str, ...]
    """Right next tokens, one token each, or `#id`; their mean logit counts."""
    wrong: tuple[str, ...] = ()
    """Wrong next tokens; without any the mean logit of the vocabulary stands in."""
    corrupted: str | None = None
    """The twin in which the answer would be the wrong one."""

    @property
    def choice(self) -> str:
        """What is right and what it is held against, for people: `' has' / ' have'`."""
        wrong = ", ".join(map(repr, self.wrong))
        return f"{', '.join(map(repr, self.answers))} / {wrong or 'the mean logit'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subsampling:
    """How stable membership is measured: selection over random parts of the data."""

    draws: int = 20
    """0 measures no stability."""
    share: float = 0.5
    """Of the training contexts in every draw, without replacement."""
    keep: float = 0.9
    """A node is stable if all data and this share of the draws, or more, select it; else we abstain."""

    def __post_init__(self) -> None:
        _check(0 <= self.draws <= 1000, "stability_draws", "must be 0 to 1000")
        _check(0 < self.share < 1, "stability_share", "must be above 0 and below 1")
        _check(0 < self.keep <= 1, "stability_keep", "must be above 0 and at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Discretion:
    """How large a circuit is and what is measured beside it."""

    nodes: int = 100
    """Budget of nodes."""
    threshold: float | None = None
    """Keep nodes of at least this mean absolute effect, in logits, up to the budget."""
    edge_nodes: int = 64
    """Edges are found between so many of the strongest nodes; 0 finds none."""
    edge_examples: int = 32
    """Training contexts that edges are averaged over."""
    random_circuits: int = 20
    """Size-matched random circuits beside the circuit; 0 draws none."""
    curve: bool = True
    """Measure 1, 2, 4, ... nodes up to all of them."""
    bootstrap: int = 1000
    """Resamples of the held-out contexts behind every interval."""

    def __post_init__(self) -> None:
        _check(1 <= self.nodes <= MAX_NODES, "nodes", f"must be 1 to {MAX_NODES}")
        _check(self.threshold is None or self.threshold > 0, "threshold", "must be above 0")
        _check(0 <= self.edge_nodes <= 512, "edge_nodes", "must be 0 to 512")
        _check(self.edge_examples >= 1, "edge_examples", "must be at least 1")
        _check(0 <= self.random_circuits <= 1000, "random_circuits", "must be 0 to 1000")
        _check(10 <= self.bootstrap <= 100_000, "bootstrap", "must be 10 to 100000")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetNode:
    """A node with its mean effect over the training contexts."""

    replacement: str
    """Its set, `neurons`, `heads`, or `SET:errors`."""
    layer: int
    position: int
    """-1 where positions are summed."""
    index: int
    effect: float
    """Mean change of the metric if the node were patched, logits (negative: it speaks for the answer)."""
    frequency: float | None
    """Share of the subsamples that select it; None if stability was not measured, or says nothing, since all
    of them select all nodes that have an effect."""
    stable: bool
    certified_edits: int | None
    """Training contexts that may be exchanged before a majority of subsamples could drop it, at 95 %
    confidence for this node alone; 0 where an exchange changes the effects of other contexts, and where no
    node with an effect was left out. None: unstable or not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEdge:
    """Marks et al.'s edge effect, mean over contexts: what the source's patch does through the target."""

    source: int
    """Index of a node of the circuit."""
    target: int
    """Index of a node; -1 for the metric itself."""
    weight: float
    """Logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A circuit of the strongest `nodes` nodes, measured on the held-out contexts."""

    nodes: int
    faithfulness: Figure
    """(m(C) - m(0)) / (m(M) - m(0)); 1 is the whole model, and values above 1 occur. NaN where m(0) is within
    a hundredth of the metric's mean size of m(M): there is nothing to share out."""
    completeness: Figure
    """The same of the complement; 0 is ideal."""
    metric: float
    """m(C), logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faithfulness:
    """One circuit under one ablation, on contexts that it was not found on."""

    ablation: NodeAblation
    examples: int
    whole: Figure
    """m(M): the untouched model, logits."""
    empty: Figure
    """m(0): every node ablated, logits."""
    circuit: CurvePoint
    core: CurvePoint | None
    """The stable nodes only; None if stability was not measured, or says nothing."""
    curve: tuple[CurvePoint, ...]
    random: tuple[float, ...]
    """Faithfulness of the random circuits: as many nodes at every layer (and position)."""
    p_value: float | None
    """(1 + #{random >= circuit}) / (random circuits + 1); None without random circuits, where each of them is
    the circuit itself, and where shares are NaN: inconclusive."""
    nodes_for_80: int | None
    """Smallest budget on the curve with a faithfulness of at least 0.8; None if none has. Not monotone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextCircuit:
    """The circuit of all contexts, or of one cluster of them."""

    label: str
    """`all`, or `cluster 1`."""
    training: int
    held_out: int
    contexts: tuple[str, ...]
    """Of a cluster: contexts nearest to its centre."""
    effect_share: float
    """Of the summed absolute effects of all nodes, what the selected ones have."""
    nodes: tuple[DatasetNode, ...]
    """Strongest first."""
    abstained: tuple[DatasetNode, ...]
    """Selected by some subsample or by all data, and not stable; the likeliest, if there are many."""
    edges: tuple[DatasetEdge, ...]
    """Heaviest first."""
    faithfulness: tuple[Faithfulness, ...]
    n_abstained: int | None = None
    """How many there are, listed or not; None in those that were stored before this was counted."""
    choices: tuple[str, ...] = ()
    """What is predicted in every one of `contexts`; empty in those that were stored before this was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustering:
    """How contexts were grouped by their effects."""

    clusters: int
    silhouette: float
    """Mean over contexts, by cosine distance; NaN for one cluster."""
    null_silhouette: float
    """The largest of 38 clouds without groups: Gaussian with the mean and covariance of the directions, or
    uniform along their principal axes; each at its own best number of clusters."""
    sizes: tuple[int, ...]
    assignment: tuple[int, ...]
    """Cluster of every training context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCircuit:
    """What was found over a dataset."""

    replacement: str
    beside: tuple[str, ...]
    estimator: Estimator
    positions: PositionRule
    patch: NodeAblation
    error_term: ErrorTerm
    training: int
    held_out: int
    candidates: int
    """Nodes that could have been selected."""
    circuits: tuple[ContextCircuit, ...]
    """The first is that of all contexts; clusters follow."""
    clustering: Clustering | None
    certificate: str
    """What stability means here, in words."""
    caveats: tuple[str, ...]
    seconds: float
    model: str
    weight_hash: str
    seed: int
    sets: tuple[GraphSet, ...] = ()
    """Sets that features and error terms were of; empty in those stored before this was."""
    layers: tuple[int, ...] = ()
    """Layers that had nodes, ascending; empty in those stored before this was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoverDatasetCircuit(Command[DatasetCircuit, Progress]):
    """Find the circuit of a behaviour over a dataset, and measure it on contexts that it has not seen."""

    interactive: ClassVar[bool] = False

    training: tuple[Example, ...]
    held_out: tuple[Example, ...]
    replacement: str = NEURONS
    """A set, `neurons`, or `heads`."""
    beside: tuple[str, ...] = ()
    """What are nodes too: `heads`, further sets (of attention outputs, say), `errors` of the sets before."""
    layers: tuple[int, ...] | None = None
    """Layers whose nodes can be selected and are ablated; None means all that the set covers."""
    estimator: Estimator = Estimator.ATTRIBUTION_PATCHING
    steps: int = 5
    """Of integrated gradients."""
    exact_nodes: int = 256
    """Candidates of exact patching."""
    positions: PositionRule = PositionRule.SUMMED
    patch: NodeAblation | None = None
    """What effects are estimated with. None: the twins if every context has one, else zero."""
    error_term: ErrorTerm = ErrorTerm.LIVE
    """Under ablation. `drop` puts the ablation's own baseline in the place of the error."""
    ablations: tuple[NodeAblation, ...] = (NodeAblation.MEAN, NodeAblation.ZERO)
    size: Discretion = field(default_factory=Discretion)
    stability: Subsampling = field(default_factory=Subsampling)
    clusters: int = 1
    """1: all contexts together; 0: as many clusters as the silhouette says; above: that many."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check_split(self.training, self.held_out)
        names = (self.replacement, *self.beside)
        twice = {name for name in names if names.count(name) > 1}
        _check(not twice, "beside", f"names {', '.join(sorted(twice))} twice")
        before = names[: names.index(ERRORS)] if ERRORS in names else ("a set",)
        known = {name for name in before if name not in (NEURONS, HEADS)}
        _check(bool(known), "beside", "names errors before any set; neurons and heads reconstruct exactly")
        _check(1 <= self.steps <= 100, "steps", "must be 1 to 100")
        _check(1 <= self.exact_nodes <= MAX_NODES, "exact_nodes", f"must be 1 to {MAX_NODES}")
        _check(bool(self.ablations), "ablations", "must name at least one of mean, zero and resample")
        _check(0 <= self.clusters <= 32, "clusters", "must be 0 (automatic) to 32")
        few = self.clusters > len(self.training)
        _check(
            not few, "clusters", f"is {self.clusters}, but there are {len(self.training)} training contexts"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextTokens:
    """How long contexts are, in tokens."""

    longest: int
    """Of any context or twin of either split: it is a pass of its own, whichever side it is on."""
    longest_training: int
    """Of any training context or twin: edges and positions that are kept are of these."""
    training: int
    """Of all training contexts."""
    twins: int
    """Of their twins."""
    held_out: int
    """Of all held-out contexts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedDatasetCircuit:
    """What is known of a dataset circuit before any work."""

    candidates: int
    """Nodes that can be selected."""
    patch: NodeAblation
    """What effects would be estimated with."""
    tokens: ContextTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckDatasetCircuit(Command[CheckedDatasetCircuit, Progress]):
    """Refuse whatever finding a dataset circuit would be refused for once it runs; no forward pass is run."""

    command: DiscoverDatasetCircuit


def _check_split(training: tuple[Example, ...], held_out: tuple[Example, ...]) -> None:
    for name, split in (("training", training), ("held_out", held_out)):
        _check(len(split) >= 2, name, "needs at least two contexts: one is no dataset, and no interval")
        known: dict[Example, int] = {}
        for number, example in enumerate(split):
            first = known.setdefault(example, number)
            if first != number:
                raise InvalidRequestError(
                    f"{name} context {number} is context {first} again: {example.clean[:60]!r}. What is "
                    "repeated narrows intervals and makes nodes look stable, and is no further evidence: "
                    "leave it out, as the client's split_examples does",
                    field=f"{name}[{number}]",
                )
            if example.corrupted == example.clean:
                raise InvalidRequestError(
                    f"{name} context {number} is its own twin: {example.clean[:60]!r}. A twin is a text in "
                    "which the answer would be the wrong one; give another, or none",
                    field=f"{name}[{number}].corrupted",
                )
    total = len(training) + len(held_out)
    _check(total <= MAX_EXAMPLES, "training", f"and held_out hold {total} contexts; at most {MAX_EXAMPLES}")
    seen: dict[str, int] = {}
    for number, example in enumerate(training):
        for text in _texts(example):
            seen.setdefault(text, number)
    for number, example in enumerate(held_out):
        for text in _texts(example):
            if text in seen:
                raise InvalidRequestError(
                    f"held-out context {number} has a text of training context {seen[text]} again: "
                    f"{text[:60]!r}. Figures on contexts that it was found on say nothing: put contexts with "
                    "a text in common, their own or their twin's, on one side, as the client's "
                    "split_examples does",
                    field=f"held_out[{number}]",
                )


def _texts(example: Example) -> tuple[str, ...]:
    """Return what the model reads of an example: its text, and its twin's."""
    return (example.clean,) if example.corrupted is None else (example.clean, example.corrupted)


def _check(holds: bool, name: str, what: str) -> None:
    if not holds:
        raise InvalidRequestError(f"{name} {what}", field=name)
