from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue
from trephine.client.types.circuit_annotations import NodeLabel, Provenance
from trephine.client.types.common import FeatureRef, Figure, Token, Version
from trephine.client.types.global_circuits import GlobalFigures
from trephine.client.types.targets import ExplainedTarget


class NodeKind(StrEnum):
    """What a node of an attribution graph stands for."""

    UNSPECIFIED = "unspecified"
    FEATURE = "feature"
    ERROR = "error"
    TOKEN = "token"  # noqa: S105  a node kind, not a secret
    LOGIT = "logit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node(WireValue):
    """A node of a circuit."""

    index: int
    kind: NodeKind
    layer: int
    """-1 for tokens."""
    position: int
    """-1 in graphs over many contexts, of which it is none: of a node every position, of a target the end."""
    feature: FeatureRef | None
    activation: float
    influence: float
    """Share of the normalised path mass that ends in the target."""
    effect: float
    """Estimated effect on the target, logits, signed: what it writes times the exact gradient, of a token its
    share by the half rule."""
    label: str
    promotes: tuple[str, ...]
    suppresses: tuple[str, ...]
    bias: float | None
    remainder: float | None
    total: float | None
    given_label: NodeLabel | None
    """What somebody called it."""
    pinned: bool
    group: str
    """Name of the group that it is in; empty: none."""
    error_site: str
    """Of an error: where it is, e.g. `mlp_out` or `attn_out`; empty otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge(WireValue):
    """An edge, in units of the target's activation, or logits."""

    source: int
    target: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateQuality(WireValue):
    """How well estimated effects agree with real ablations, one node at a time."""

    nodes: int
    slope: Figure
    spearman: Figure
    edge_slope: Figure
    """Of what the rule of the edges predicts, summed over all paths."""
    edge_spearman: Figure
    how: str
    predicted: tuple[float, ...]
    measured: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphScores(WireValue):
    """How much of a graph over a replacement set is explained, each 0 to 1."""

    replacement: float
    """Share of the paths that end in tokens, by circuit-tracer's definition."""
    completeness: float
    """Influence-weighted share of inputs that are no errors, by circuit-tracer's definition."""
    charged_replacement: float
    """The same with unselected features and position 0 counted as unexplained."""
    charged_completeness: float
    """The same with unselected features and position 0 counted as unexplained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HierarchicalAttribution(WireValue):
    """How hierarchical attribution chose features, in units of what is explained.

    Tokens, errors, constants and what was stopped sum to `root`.
    """

    threshold: float
    """Smallest absolute attribution of a survivor."""
    asked_threshold: float
    """The threshold that was asked for, which may have been raised."""
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
class Pruning:
    """What is stored of a circuit that is found; the rules are those of `Circuit.prune`."""

    node_threshold: float | None = None
    """Share of the influence that the kept nodes reach; unset 0.8."""
    edge_threshold: float | None = None
    """The same for edges; unset 0.98."""
    max_nodes: int | None = None
    """At most so many features and error nodes; unset: no limit."""
    max_edges: int | None = None
    """At most so many edges; unset: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitSet(WireValue):
    """A replacement set that a circuit spans."""

    name: str
    content_hash: str
    """Of its weights; empty for neurons, and where it is not known (imported and older circuits)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitInfo(WireValue):
    """A circuit without its nodes and edges."""

    name: str
    prompt: str
    tokens: tuple[Token, ...]
    targets: tuple[ExplainedTarget, ...]
    """What is explained, in the order of the target nodes."""
    replacement: str
    edge_rule: str
    """`exact`, or `relp_half` (an estimate); of global circuits `twera` or `era`."""
    quality: EstimateQuality | None
    baseline: float
    """The explained quantity on the prompt: the targets' values, each times its share."""
    selected_share: float
    """Of the influence of all active features, the share of the selected ones, 0 to 1."""
    error_share: float
    """Share of all influence that enters through error nodes; NaN of imported graphs that do not say it."""
    active_features: int
    n_nodes: int
    n_edges: int
    caveats: tuple[str, ...]
    create_time: str
    version: Version
    seconds: float
    peak_extra_bytes: int
    provenance: Provenance
    scores: GraphScores | None
    """None for neurons, whose reconstruction has no error."""
    hierarchy: HierarchicalAttribution | None
    """None where features were chosen by influence."""
    sets: tuple[CircuitSet, ...]
    """Every set that it spans, first the one that `replacement` names."""
    layers: tuple[int, ...]
    """Layers whose features it could choose from; empty where it does not say (imported and older ones)."""
    across: GlobalFigures | None
    """Of global circuits, which have no prompt: their one token stands for all positions."""

    @property
    def set_names(self) -> tuple[str, ...]:
        """Names of the sets that it spans."""
        return tuple(each.name for each in self.sets) or (self.replacement,)

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the sets beside the first."""
        return self.set_names[1:]

    @property
    def target_label(self) -> str:
        """What is explained, for people."""
        return ", ".join(target.label for target in self.targets)

    @property
    def noun(self) -> str:
        """What its feature nodes are: `neuron`, or `feature` of a replacement set."""
        return "neuron" if self.set_names in (("",), ("neurons",)) else "feature"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedFeature(WireValue):
    """A candidate of a proposal."""

    feature: FeatureRef
    effect: float
    """How far the target falls, measured, when it is ablated at positions >= 1, logits."""
    use: float
    """rms activation x decoder norm on the retain text."""
    score: float
    """Effect over use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint(WireValue):
    """Effect and damage of ablating the first `count` features at every position."""

    count: int
    value: float
    """The target, logits."""
    drop: float
    """Share of the baseline that is gone."""
    retain_kl: float
    """Nats per token, all positions."""
    retain_kl_after_first: float
    """Nats per token, positions >= 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal(WireValue):
    """An effect-against-damage curve, and the smallest prefix that could ship."""

    baseline: float
    curve: tuple[CurvePoint, ...]
    ranking: tuple[RankedFeature, ...]
    chosen: int
    """Length of the chosen prefix; 0: nothing meets both bounds, nothing is to be shipped."""
    why: str
    retain_tokens: int
    retain_text: str
    version: Version
