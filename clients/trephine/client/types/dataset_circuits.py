from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue
from trephine.client.types.common import FeatureRef, Figure, Version


class EffectEstimator(StrEnum):
    """How the effect of patching one node is estimated."""

    UNSPECIFIED = "unspecified"
    ATTRIBUTION_PATCHING = "attribution_patching"
    INTEGRATED_GRADIENTS = "integrated_gradients"
    RELP = "relp"
    EXACT = "exact"


class NodeAblation(StrEnum):
    """What a node's activation is replaced with."""

    UNSPECIFIED = "unspecified"
    MEAN = "mean"
    ZERO = "zero"
    RESAMPLE = "resample"


class PositionRule(StrEnum):
    """What is one node: a feature at a position, or at all positions together."""

    UNSPECIFIED = "unspecified"
    KEPT = "kept"
    SUMMED = "summed"


class ErrorTerm(StrEnum):
    """What becomes of true output minus reconstruction under ablation."""

    UNSPECIFIED = "unspecified"
    LIVE = "live"
    FROZEN = "frozen"
    DROP = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetExample:
    """A context and the choice of its next token."""

    clean: str
    answers: tuple[str, ...]
    """Right next tokens, one token each (mind the leading space), or `#id`."""
    wrong: tuple[str, ...] = ()
    corrupted: str | None = None
    """The twin in which the answer would be the wrong one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetNode(WireValue):
    """A node with its mean effect over the training contexts."""

    feature: FeatureRef
    """Its set may be `neurons`, `heads` (the index is the head), or `SET:errors`."""
    position: int
    """-1 where positions are summed."""
    effect: float
    """Mean change of the metric if it were patched, logits; negative: it speaks for the answer."""
    frequency: float | None
    """Share of random parts of the data that select it; None if none were drawn, or if they say nothing,
    since all of them select all nodes that have an effect."""
    stable: bool
    certified_edits: int | None
    """Training contexts that may be exchanged before a majority of parts could drop it; 0 where an exchange
    changes the effects of other contexts, and where no node with an effect was left out; None if it is not
    stable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEdge(WireValue):
    """What a source's patch does through one target."""

    source: int
    target: int
    """-1 for the metric."""
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FaithfulnessPoint(WireValue):
    """A circuit of so many nodes on held-out contexts."""

    nodes: int
    faithfulness: Figure
    completeness: Figure
    metric: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutFaithfulness(WireValue):
    """One circuit under one ablation, random circuits beside it."""

    ablation: NodeAblation
    examples: int
    whole: Figure
    empty: Figure
    circuit: FaithfulnessPoint
    core: FaithfulnessPoint | None
    """Its stable nodes only."""
    curve: tuple[FaithfulnessPoint, ...]
    random: tuple[float, ...]
    p_value: float | None
    """None without random circuits, where each of them is the circuit itself, there being no other nodes to
    draw, and where shares are NaN, since ablating everything hardly moves the metric: inconclusive."""
    nodes_for_80: int | None
    """Smallest budget of the curve with a faithfulness of at least 0.8; curves are not monotone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextCircuit(WireValue):
    """The circuit of all contexts, or of one cluster."""

    label: str
    training: int
    held_out: int
    contexts: tuple[str, ...]
    nodes: tuple[DatasetNode, ...]
    abstained: tuple[DatasetNode, ...]
    """The likeliest of those that too few parts of the data select, or parts but not all of it; `n_abstained`
    counts all."""
    edges: tuple[DatasetEdge, ...]
    faithfulness: tuple[HeldOutFaithfulness, ...]
    effect_share: float
    """Of the summed absolute effects of all nodes, what the selected ones have."""
    n_abstained: int | None
    """None in circuits that were found before this was counted."""
    choices: tuple[str, ...]
    """What is right in every one of `contexts`, and what it is held against; empty in circuits that were
    found before this was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextClustering(WireValue):
    """How contexts were grouped by their effects."""

    clusters: int
    silhouette: float
    null_silhouette: float
    sizes: tuple[int, ...]
    assignment: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCircuitSet(WireValue):
    """A set that features and error terms were of."""

    name: str
    content_hash: str
    """Of its weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCircuit(WireValue):
    """What was found over a dataset, stored on the server."""

    name: str
    replacement: str
    beside: tuple[str, ...]
    """What were nodes too: `heads`, further sets, `errors`."""
    estimator: EffectEstimator
    positions: PositionRule
    patch: NodeAblation
    error_term: ErrorTerm
    training: int
    held_out: int
    candidates: int
    circuits: tuple[ContextCircuit, ...]
    """All contexts first, then clusters."""
    clustering: ContextClustering | None
    certificate: str
    caveats: tuple[str, ...]
    seconds: float
    peak_extra_bytes: int
    """Only of a prediction."""
    version: Version
    seed: int
    create_time: str
    sets: tuple[DatasetCircuitSet, ...]
    """Sets that features and error terms were of; empty in those that were found before this was told."""
    layers: tuple[int, ...]
    """Layers that had nodes, ascending; empty likewise."""
