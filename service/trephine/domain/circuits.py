"""Attribution graphs as values: nodes, edges (rows are targets), per-row bias and remainder."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import inf, nan
from typing import ClassVar, Literal

from trephine.domain.ablation import LogitTarget
from trephine.domain.arrays import Array
from trephine.domain.commands import Command, Progress
from trephine.domain.errors import InvalidRequestError, UnsupportedOptionError
from trephine.domain.global_figures import GlobalFigures
from trephine.domain.sites import NEURONS
from trephine.domain.spanned_sets import check_spanned_sets
from trephine.domain.targets import ExplainedTarget, GraphTarget, TargetKind
from trephine.domain.tokens import Token, Tokens


class NodeKind(StrEnum):
    """What a node of an attribution graph stands for."""

    FEATURE = "feature"
    ERROR = "error"
    TOKEN = "token"  # noqa: S105  a node kind, not a secret
    LOGIT = "logit"


EdgeRule = Literal["exact", "relp_half", "unknown", "twera", "era"]
"""`exact`: obeys law 4. `relp_half`: sums to the activation but is an estimate (DESIGN 5.5).
`unknown`: of an imported graph that does not say. `twera`, `era`: of global circuits, means over texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of an attribution graph. The unused address fields are -1."""

    kind: NodeKind
    layer: int
    position: int
    """-1 in graphs over many contexts, of which it is none: of a node every position, of a target the end."""
    feature: int
    """Feature index, or the vocabulary id of a token or logit; of errors -1 or below, by `error_sites`."""
    replacement: str
    """The replacement set of a feature; empty otherwise."""
    activation: float
    """A feature's activation; a logit's (difference of) probability; 0 otherwise."""
    influence: float
    """Share of the normalised path mass that ends in the target (Ameisen et al. 2025)."""
    effect: float
    """A signed estimate of what the target loses without it, in logits: what it writes (a feature's
    activation, an error term) times the exact gradient; of a token its share along all paths, by the half
    rule."""
    label: str
    promotes: tuple[str, ...]
    """Displays of the tokens that the decoder promotes most by logit lens."""
    suppresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """Sparse edges: `weight[k]` goes from node `source[k]` to node `target[k]`."""

    source: Array
    """int32 `(n_edges,)`, node indices."""
    target: Array
    """int32 `(n_edges,)`, node indices; sorted."""
    weight: Array
    """float32 `(n_edges,)`, units of the target's activation, or logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What enters each target beside the kept edges, one entry per target node."""

    target: Array
    """int32 `(n_rows,)`, node indices."""
    total: Array
    """float32: the sum of all that enters: of features of sets the pre-activation without the encoder's
    constants, of neurons the activation, of targets what is explained."""
    bias: Array
    """float32: from constants."""
    remainder: Array
    """float32: from active but unselected sources, and edges below the kept mass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateQuality:
    """How well the estimated effects agree with real ablations (one node at a time)."""

    nodes: int
    slope: float
    """Least-squares slope through 0 of measured on the shown effects."""
    slope_low: float
    slope_high: float
    spearman: float
    spearman_low: float
    spearman_high: float
    how: str
    """Which ablation, positions and freezes, in words."""
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    edge_slope: float = nan
    """As `slope`, of measured on what the rule of the edges predicts, summed over all paths.

    NaN, as the five below, in circuits that were stored before this was measured.
    """
    edge_slope_low: float = nan
    edge_slope_high: float = nan
    edge_spearman: float = nan
    edge_spearman_low: float = nan
    edge_spearman_high: float = nan


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphScores:
    """How much of a graph over a replacement set is explained, each 0 to 1."""

    replacement: float
    """Share of the paths that end in tokens, by circuit-tracer's definition (0.5.0)."""
    completeness: float
    """Influence-weighted share of inputs that are no errors, by circuit-tracer's definition."""
    charged_replacement: float
    """The same with unselected features and position 0 counted as unexplained."""
    charged_completeness: float
    """The same with unselected features and position 0 counted as unexplained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HierarchicalFigures:
    """What one backward pass kept that stops at features of small attribution (Ge et al. 2024).

    In units of what is explained: tokens, errors, constants and what was stopped sum to `root`.
    """

    asked_threshold: float
    threshold: float
    """Raised where more features survived than there was room for."""
    root: float
    tokens: float
    errors: float
    constants: float
    stopped: float
    """Signed sum of the attributions of stopped features."""
    stopped_mass: float
    """Absolute sum of the same."""
    survivors: int
    stopped_features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitFigures:
    """Figures of the whole graph."""

    baseline: float
    """The measured quantity on the prompt, in logits."""
    selected_share: float
    """Of the influence of all active features (neurons), the share of the selected ones, 0 to 1. What enters
    through errors and tokens is no part of either."""
    error_share: float
    """Share of all influence that enters through error nodes; NaN of imported graphs that do not say it."""
    active_features: int
    selected_features: int
    seconds: float
    peak_extra_bytes: int
    scores: GraphScores | None = None
    """None for neurons, whose reconstruction has no error, and in circuits stored before this was scored."""
    hierarchy: HierarchicalFigures | None = None
    """Of circuits whose features were chosen by hierarchical attribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSet:
    """A replacement set that a circuit spans."""

    name: str
    content_hash: str = ""
    """Of its weights; empty for neurons, and in circuits that do not say: imported ones, and those stored
    before this was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """A discovered circuit. Node order: features (layer, position, index), errors, tokens, logits."""

    prompt: str
    tokens: tuple[Token, ...]
    targets: tuple[ExplainedTarget, ...]
    """In the order of the target nodes. Of another tool's file those that are known by their labels."""
    replacement: str
    edge_rule: EdgeRule
    nodes: tuple[Node, ...]
    edges: Edges
    rows: Rows
    quality: EstimateQuality | None
    figures: CircuitFigures
    model: str
    weight_hash: str
    caveats: tuple[str, ...] = ()
    """What a reader must know: position 0 is a sink, edges are estimates, ..."""
    asked: GraphTarget | None = None
    """What was to be explained; None in circuits that do not say: of other tools, or stored earlier."""
    set_hash: str = ""
    """Content hash of the replacement set; empty for neurons, and in circuits that do not say: imported ones,
    and those stored before this was."""
    layers: tuple[int, ...] | None = None
    """Layers whose features it could choose from, ascending; None in circuits that do not say."""
    beside: tuple[GraphSet, ...] = ()
    """Further sets whose features it could choose from, in the same layers."""
    across: GlobalFigures | None = None
    """Of global circuits, which have no prompt: their one token stands for all positions."""

    @property
    def sets(self) -> tuple[GraphSet, ...]:
        """Every set that it spans."""
        return (GraphSet(name=self.replacement, content_hash=self.set_hash), *self.beside)

    @property
    def set_names(self) -> tuple[str, ...]:
        """Names of the sets that it spans."""
        return tuple(each.name for each in self.sets)

    @property
    def target_label(self) -> str:
        """What is explained, for people."""
        return " + ".join(target.label for target in self.targets)

    @property
    def set_is_unknown(self) -> bool:
        """True if only the name of a set is known: another set of that name cannot be told apart."""
        return any(each.name != NEURONS and not each.content_hash for each in self.sets)

    @property
    def positions(self) -> tuple[int, ...]:
        """Where targets are read, ascending."""
        return tuple(sorted({target.position for target in self.targets}))

    @property
    def units(self) -> str:
        """Units of what is explained: logits; empty for values of features, directions and scores."""
        return "logits" if all(target.kind is TargetKind.LOGIT for target in self.targets) else ""

    def require_prompt(self, what: str) -> None:
        """Refuse what needs a prompt.

        Args:
            what: That cannot be done, `verification`.

        Raises:
            UnsupportedOptionError: If it is a global circuit or the graph of a behaviour, which have none.
        """
        if self.across is not None:
            raise UnsupportedOptionError(
                f"the circuit is global: its edges are means over {self.across.training} texts, and {what} "
                "is about one prompt. Discover a circuit of a prompt for that",
                field="circuit",
            )
        if any(target.position < 0 for target in self.targets):
            raise UnsupportedOptionError(
                f"the circuit is of a behaviour: its edges are means over contexts, and {what} is about one "
                "prompt. What was measured on held-out contexts stands with the behaviour; for more discover "
                "a circuit of one of its contexts",
                field="circuit",
            )

    def question(self) -> GraphTarget:
        """Return what was asked to be explained.

        Raises:
            UnsupportedOptionError: If that is not known.
        """
        if self.asked is not None:
            return self.asked
        token, against = self.choice()
        return LogitTarget(token=f"#{token.id}", against=None if against is None else f"#{against.id}")

    def choice(self) -> tuple[Token, Token | None]:
        """Return the token, and what it is held against, of a circuit behind one next-token choice.

        Raises:
            UnsupportedOptionError: If it explains anything else.
        """
        one = self.targets[0]
        last = len(self.tokens) - 1
        if len(self.targets) != 1 or one.token is None or one.position != last:
            raise UnsupportedOptionError(
                f"the circuit explains {self.target_label}, and this works for one logit, or the difference "
                "of two, at the last position: discover it with a token as the target",
                field="circuit",
            )
        return one.token, one.against


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoverCircuit(Command[Circuit, Progress]):
    """Find the circuit behind a next-token choice, a feature, a direction or an attention score."""

    interactive: ClassVar[bool] = False

    prompt: str
    target: GraphTarget
    positions: tuple[int, ...] = ()
    """Where the target is read, each with equal weight; -1 is the last. None: the last."""
    replacement: str = NEURONS
    layers: tuple[int, ...] | None = None
    """Layers that are opened; the other MLPs become error nodes. None means all that a set covers."""
    beside: tuple[str, ...] = ()
    """Further sets whose features are nodes too, in the same layers; no two may reconstruct the same site.
    `neurons`: those of the MLPs that no set reconstructs."""
    max_feature_nodes: int = 512
    min_attribution: float | None = None
    """Choose features by hierarchical attribution: those whose absolute attribution, in units of what is
    explained, is at least this, along paths through such features alone. None: by influence."""
    edge_mass: float = 0.99
    """Per row the largest edges up to this share of the absolute mass are kept."""
    max_edges_per_row: int = 512
    verify_nodes: int = 128
    """Nodes ablated one at a time to measure the estimates; 0 skips it."""
    seed: int = 0

    @property
    def sets(self) -> tuple[str, ...]:
        """Every set that is asked for."""
        return (self.replacement, *self.beside)

    def __post_init__(self) -> None:
        check_spanned_sets(self.replacement, self.beside)
        if self.max_feature_nodes < 1:
            raise InvalidRequestError("max_feature_nodes must be at least 1", field="max_feature_nodes")
        if not 0 < self.edge_mass <= 1:
            raise InvalidRequestError("edge_mass must be in (0, 1]", field="edge_mass")
        if self.min_attribution is not None and not 0 <= self.min_attribution < inf:
            raise InvalidRequestError(
                "min_attribution must be a number that is not negative", field="min_attribution"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckDiscovery(Command[Tokens, Progress]):
    """Refuse whatever a discovery would be refused for once it runs, and return the prompt's tokens.

    Nothing is run: no forward pass.
    """

    command: DiscoverCircuit


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedNodes:
    """Which nodes and edges survive pruning."""

    nodes: tuple[int, ...]
    """Indices into the circuit's nodes, ascending."""
    edges: tuple[int, ...]
    """Indices into the circuit's edges, ascending."""
    node_threshold: float
    edge_threshold: float
    cumulative: tuple[float, ...]
    """Of every node of the circuit, kept or not: the share of the influence that it has with all that have
    more, which a node threshold is held against. Of targets 1: influence begins there."""
