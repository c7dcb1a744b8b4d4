from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue
from trephine.client.types.common import Figure, Site, SiteKind, Version


class ReplacementState(StrEnum):
    """Where a replacement set is in its life."""

    UNSPECIFIED = "unspecified"
    AVAILABLE = "available"
    LOADED = "loaded"
    LOST = "lost"
    """It was loaded and could not be loaded again."""


class LayerKind(StrEnum):
    """What a replacement layer replaces."""

    UNSPECIFIED = "unspecified"
    SAE = "sae"
    TRANSCODER = "transcoder"
    SKIP_TRANSCODER = "skip_transcoder"
    CROSS_LAYER_TRANSCODER = "cross_layer_transcoder"
    NEURONS = "neurons"


class SupportRule(StrEnum):
    """Which features count as active."""

    UNSPECIFIED = "unspecified"
    RELU = "relu"
    JUMPRELU = "jumprelu"
    TOPK = "topk"
    ABS_TOPK = "abs_topk"
    GATED = "gated"
    DENSE = "dense"


class SetFormat(StrEnum):
    """How a set lies on disk; unspecified is told from the files."""

    UNSPECIFIED = "unspecified"
    SAELENS = "saelens"
    CIRCUIT_TRACER = "circuit_tracer"
    CIRCUIT_TRACER_CLT = "circuit_tracer_clt"
    GEMMA_SCOPE_2_CLT = "gemma_scope_2_clt"
    SPARSIFY = "sparsify"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementLayer(WireValue):
    """One replacement layer."""

    layer: int
    kind: LayerKind
    support: SupportRule
    site_in: Site
    sites_out: tuple[Site, ...]
    d_in: int
    d_out: int
    d_sae: int
    normalisation: str
    has_skip: bool
    claimed_l0: float | None
    """Active features per position as the file claims."""
    memory_bytes: int
    content_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAdmission(WireValue):
    """What the probe text showed of one layer, position 0 excluded."""

    layer: int
    l0: float
    """Mean active features per position."""
    fvu: float
    """Fraction of variance unexplained, variance per dimension; the worst output site."""
    l0_first: float
    fvu_first: float
    """Position 0 apart: squared error over the squared norm there."""
    dead_share: float
    convention: str
    """How the input hook was read: `stored`, `post_gain`, `pre_gain`."""
    margin: float | None
    passed: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission(WireValue):
    """The check on load."""

    passed: bool
    why: str
    layers: tuple[LayerAdmission, ...]
    text: str
    """Name and hash of the probe text."""
    tokens: int
    begins_with: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency(WireValue):
    """Where a set's weights are."""

    total_bytes: int
    resident_bytes: int
    peak_bytes: int
    budget_bytes: int
    loads: int
    """Layers read from disk since the set was loaded."""
    evictions: int
    """Layers that made room for others."""
    pinned_bytes: int
    """Of the resident bytes those in use now, which stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementSetInfo(WireValue):
    """A replacement set. The fields after `why` are set once it was loaded."""

    name: str
    """`models/MODEL/replacements/SET`, or `replacements/SET` for one on disk."""
    state: ReplacementState
    why: str
    """Why it was lost."""
    format: SetFormat
    content_hash: str
    version: Version
    """The weights that it was admitted on."""
    layers: tuple[ReplacementLayer, ...]
    admission: Admission
    degraded: bool
    """True if it failed admission and was accepted all the same."""
    residency: Residency

    @property
    def set_id(self) -> str:
        """What its features are addressed by."""
        return self.name.rpartition("/")[2]


class Dictionary(StrEnum):
    """Whose figures a row holds: the set's, or a control's of equal size and L0."""

    UNSPECIFIED = "unspecified"
    GIVEN = "given"
    RANDOM = "random"
    FROZEN_DECODER = "frozen_decoder"
    FROZEN_ENCODER = "frozen_encoder"


class EvaluationFormat(StrEnum):
    """As what an evaluation is rendered."""

    JSON = "json"
    CSV = "csv"
    HTML = "html"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScore(WireValue):
    """One layer spliced alone, position 0 of every context excluded."""

    layer: int
    dictionary: Dictionary
    fvu: Figure
    l0: Figure
    dead_share: float
    ce_score: Figure
    """Share of the cross-entropy lost by mean ablation that is recovered."""
    ce_score_zero: Figure
    kl_score: Figure
    kl_score_zero: Figure
    top1_agreement: Figure
    error_share: Figure | None
    """|error| / (|error| + |reconstruction|); None in evaluations of before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplicedLayer(WireValue):
    """One layer while all are spliced: it reads what the reconstructions below make of the stream."""

    layer: int
    fvu: Figure
    """What is written in the spliced run against what the plain run holds there."""
    l0: Figure
    dead_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SplicedScore(WireValue):
    """All layers spliced at once: the reconstruction runs as the model."""

    dictionary: Dictionary
    ce_plain: Figure
    ce_spliced: Figure
    ce_mean_ablated: Figure
    ce_zero_ablated: Figure
    ce_score: Figure
    ce_score_zero: Figure
    kl: Figure
    kl_score: Figure
    kl_score_zero: Figure
    top1_agreement: Figure
    error_share: Figure
    fvu: Figure | None
    """Mean over layers in the spliced run; None in evaluations of before, as the two below."""
    l0: Figure | None
    dead_share: float | None
    layers: tuple[SplicedLayer, ...]
    """What the three are means of, ascending by layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthFaithfulness(WireValue):
    """Whether perturbations of features do downstream what they do in the model."""

    dictionary: Dictionary
    """Whose layers answer; the perturbed features are the set's own in any case."""
    depth: int
    cosine: Figure
    nmse: Figure
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim(WireValue):
    """Whether the set beats one control on one figure."""

    figure: str
    control: Dictionary
    beats: bool
    difference: Figure
    """Paired over contexts; its interval decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationInfo(WireValue):
    """How good a set is, with its controls beside it."""

    name: str
    """Resource name, `evaluations/...`."""
    replacement_set: ReplacementSetInfo
    layers: tuple[LayerScore, ...]
    spliced: tuple[SplicedScore, ...]
    depths: tuple[DepthFaithfulness, ...]
    claims: tuple[Claim, ...]
    text: str
    tokens: int
    contexts: int
    seed: int
    caveats: tuple[str, ...]
    seconds: float
    create_time: str
    peak_extra_bytes: int
    """Of a prediction: memory beyond the loaded model and set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndToEnd(WireValue):
    """A short phase through the whole model with all layers spliced."""

    tokens: int
    lr: float
    local_control: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRecipe(WireValue):
    """What was fitted, and how."""

    kind: LayerKind
    site: SiteKind
    layers: tuple[int, ...]
    d_sae: int
    k: int
    tokens: int
    context_tokens: int
    batch_tokens: int
    lr: float
    dead_after_tokens: int
    warm_start: bool
    end_to_end: EndToEnd
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPoint(WireValue):
    """One point of a training curve."""

    phase: str
    """`local`, `end_to_end`, `local_control`."""
    layer: int
    """-1: over all layers."""
    tokens: int
    fvu: float
    l0: float
    dead_share: float
    kl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedLayer(WireValue):
    """One layer after fitting, on held-out contexts."""

    layer: int
    fvu: float
    l0: float
    dead_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GapClosed(WireValue):
    """What the end-to-end phase closed of the spliced model's cross-entropy gap."""

    ce_plain: float
    ce_local: float
    ce_end_to_end: float
    ce_local_control: float | None
    closed: float
    l0_change: float
    seconds_end_to_end: float
    seconds_local_control: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedFit(WireValue):
    """What a fit would take."""

    seconds: float
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport(WireValue):
    """A finished fit, or with `predicted` what one would take."""

    name: str
    """Resource name, `fits/...`."""
    replacement_set: str
    """The published set, `replacements/SET`."""
    recipe: FitRecipe
    layers: tuple[FittedLayer, ...]
    curve: tuple[FitPoint, ...]
    gap: GapClosed | None
    corpus: str
    tokens: int
    version: Version
    seconds: float
    peak_bytes: int
    resumed: int
    create_time: str
    predicted: PredictedFit | None
