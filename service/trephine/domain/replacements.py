"""Replacement sets: where they come from, what they are, how good they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from math import nan

from trephine.domain.commands import Command, Progress
from trephine.domain.errors import InvalidRequestError
from trephine.domain.findings import Figure
from trephine.domain.sites import Site


class LayerKind(StrEnum):
    """What a replacement layer replaces."""

    SAE = "sae"
    """Reads and reconstructs one site."""
    TRANSCODER = "transcoder"
    """Reads one site and reconstructs another of the same layer, mostly an MLP's input and output."""
    SKIP_TRANSCODER = "skip_transcoder"
    """A transcoder with a linear path from input to output beside its features."""
    CROSS_LAYER_TRANSCODER = "cross_layer_transcoder"
    """Reads one layer and writes that layer and every later one."""
    NEURONS = "neurons"
    """The MLP's own neurons: exact, untrained."""


class SupportRule(StrEnum):
    """Which features count as active. Never simply `f > 0` (DESIGN 5.2)."""

    RELU = "relu"
    JUMPRELU = "jumprelu"
    """Pre-activation strictly above the feature's threshold."""
    TOPK = "topk"
    """The k largest pre-activations of a position that are above 0."""
    ABS_TOPK = "abs_topk"
    """The k largest by magnitude; their sign is kept."""
    GATED = "gated"
    """The gate's pre-activation above 0; the value comes from the magnitude path."""
    DENSE = "dense"
    """Always active: neurons."""


class SetFormat(StrEnum):
    """How a set lies on disk."""

    AUTO = "auto"
    """Told from the files; more than one reading is an error that lists them."""
    SAELENS = "saelens"
    CIRCUIT_TRACER = "circuit_tracer"
    CIRCUIT_TRACER_CLT = "circuit_tracer_clt"
    GEMMA_SCOPE_2_CLT = "gemma_scope_2_clt"
    SPARSIFY = "sparsify"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementSource:
    """What to load. `folder` is a resolved path inside a replacement root; it never leaves the server."""

    name: str
    """Resource id, `smollm2-135m-tc`; features are addressed by it."""
    folder: str
    format: SetFormat = SetFormat.AUTO
    memory_budget_bytes: int | None = None
    """Resident weights at most; layers are paged beyond. None: half of what is free."""
    accept_degraded: bool = False
    """Load a set that fails admission, with a flag that every result then carries."""
    allow_unverified: bool = False
    """Load a format for which no writer could be obtained to test against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementLayerInfo:
    """One replacement layer."""

    layer: int
    """Layer of its input site; its features are addressed by it."""
    kind: LayerKind
    support: SupportRule
    site_in: Site
    sites_out: tuple[Site, ...]
    """One, or one per written layer of a cross-layer transcoder, ascending."""
    d_in: int
    d_out: int
    d_sae: int
    normalisation: str
    """`none`, or what is done to the input and undone at the output: `layer_norm`, `constant_norm`, ...; then
    what the file says, or leaves open, of centred weights."""
    has_skip: bool
    claimed_l0: float | None
    """Active features per position as the file claims."""
    memory_bytes: int
    """Resident bytes of its weights."""
    content_hash: str
    """sha256 over its sorted (tensor name, dtype, shape, bytes) and its configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAdmission:
    """What the probe text showed of one layer, position 0 excluded."""

    layer: int
    l0: float
    """Mean active features per position."""
    fvu: float
    """Fraction of variance unexplained, variance per dimension, at its first output site.

    Of a cross-layer transcoder: of the sum of all decoders that write there.
    """
    l0_first: float
    """At position 0, apart: it is an attention sink."""
    fvu_first: float
    """Squared error at position 0 over the squared norm there."""
    dead_share: float
    """Share of features that never fire on the probe text."""
    convention: str
    """How the input hook was read: `stored`, `post_gain`, `pre_gain`."""
    margin: float | None
    """FVU of the second-best convention over the best one's; None where nothing was ambiguous."""
    passed: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The check on load (DESIGN 5.2)."""

    passed: bool
    why: str
    layers: tuple[LayerAdmission, ...]
    text: str
    """Name and hash of the probe text."""
    tokens: int
    begins_with: str
    """The token in front of every context by the set's own policy; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """Where a set's weights are."""

    total_bytes: int
    resident_bytes: int
    peak_bytes: int
    """Resident at most, while the set was admitted and ever since."""
    budget_bytes: int
    loads: int
    """Layers read from disk since the set was loaded."""
    evictions: int
    """Layers that made room for others."""
    pinned_bytes: int = 0
    """Of the resident bytes those in use now, which stay; 0 in records of before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementSetInfo:
    """A loaded replacement set."""

    name: str
    format: SetFormat
    content_hash: str
    """sha256 over its layers' hashes."""
    model: str
    weight_hash: str
    """Of the model that it was admitted on."""
    layers: tuple[ReplacementLayerInfo, ...]
    """Ascending by layer; layers that are absent stay the model's own."""
    admission: Admission
    degraded: bool
    """True if it failed admission and was accepted all the same."""
    residency: Residency


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReplacementSet(Command[ReplacementSetInfo, Progress]):
    """Load a set beside the model, and admit it."""

    source: ReplacementSource
    admitted: ReplacementSetInfo | None = None
    """The set as it was admitted before. Its admission is taken over, instead of being measured again, where
    content, weights and probe text are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadReplacementSet(Command[ReplacementSetInfo, Progress]):
    """Forget a set; answers with what it was."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementSets:
    """Loaded sets, by name. The model's own neurons are always there and are not listed."""

    sets: tuple[ReplacementSetInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListReplacementSets(Command[ReplacementSets, Progress]):
    """List the loaded sets."""


def _not_measured(name: str) -> Figure:
    return Figure(name=name, value=nan)


# --- evaluation ----------------------------------------------------------------------------------


class Dictionary(StrEnum):
    """Whose figures a row holds: the set's, or a control's of equal size and L0."""

    GIVEN = "given"
    RANDOM = "random"
    """Random encoder and decoder, decoder scaled by least squares, thresholds set to the same L0."""
    FROZEN_DECODER = "frozen_decoder"
    """A random decoder that stays; the encoder is fitted to it."""
    FROZEN_ENCODER = "frozen_encoder"
    """A random encoder that stays; the decoder is fitted to it by least squares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScore:
    """One replacement layer, spliced alone, position 0 of every context excluded."""

    layer: int
    dictionary: Dictionary
    fvu: Figure
    l0: Figure
    dead_share: float
    ce_score: Figure
    """(CE_mean-ablated - CE_spliced) / (CE_mean-ablated - CE_plain)."""
    ce_score_zero: Figure
    """The same against zero-ablation."""
    kl_score: Figure
    """(KL_mean-ablated - KL_spliced) / KL_mean-ablated."""
    kl_score_zero: Figure
    top1_agreement: Figure
    error_share: Figure | None = None
    """|error| / (|error| + |reconstruction|), L2 norms, over positions; None in evaluations of before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplicedLayer:
    """One layer while all are spliced: it reads what the reconstructions below make of the stream."""

    layer: int
    fvu: Figure
    """What is written there against what the plain run holds; above 1 where errors add up."""
    l0: Figure
    dead_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SplicedScore:
    """All layers spliced at once: the reconstruction runs as the model."""

    dictionary: Dictionary
    ce_plain: Figure
    """Nats per token."""
    ce_spliced: Figure
    ce_mean_ablated: Figure
    ce_zero_ablated: Figure
    ce_score: Figure
    kl: Figure
    kl_score: Figure
    top1_agreement: Figure
    error_share: Figure
    """|error| / (|error| + |reconstruction|), L2 norms, over all layers and positions."""
    ce_score_zero: Figure = field(default_factory=partial(_not_measured, "ce_score_zero"))
    """No number in evaluations of before, as the one below."""
    kl_score_zero: Figure = field(default_factory=partial(_not_measured, "kl_score_zero"))
    fvu: Figure | None = None
    """Mean over layers in the spliced run; None in evaluations of before, as the two below."""
    l0: Figure | None = None
    dead_share: float | None = None
    layers: tuple[SplicedLayer, ...] = ()
    """What the three are means of, ascending by layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthFaithfulness:
    """Perturb a feature in the replacement model and in the true one; compare downstream changes."""

    depth: int
    """Layers between the perturbed one and the compared one."""
    cosine: Figure
    nmse: Figure
    pairs: int
    dictionary: Dictionary = Dictionary.GIVEN
    """Whose layers answer; the perturbed features are the set's own in any case. In evaluations of before
    nothing but the set answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Whether the set beats one control on one figure."""

    figure: str
    control: Dictionary
    beats: bool
    difference: Figure
    """Paired over contexts; its interval decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementEvaluation:
    """How good a set is, with its controls beside it."""

    replacement: ReplacementSetInfo
    layers: tuple[LayerScore, ...]
    spliced: tuple[SplicedScore, ...]
    depths: tuple[DepthFaithfulness, ...]
    claims: tuple[Claim, ...]
    text: str
    """Name and hash of the held-out text."""
    tokens: int
    contexts: int
    seed: int
    caveats: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateReplacementSet(Command[ReplacementEvaluation, Progress]):
    """Measure a loaded set on a text that it was not trained on."""

    interactive = False

    name: str
    text: str
    """Held-out text; empty: the built-in retain text."""
    text_name: str
    """How reports call the text."""
    context_tokens: int = 128
    max_contexts: int = 32
    layers: tuple[int, ...] = ()
    """Layers that are scored one by one; empty: all. All are spliced together in any case."""
    controls: tuple[Dictionary, ...] = (
        Dictionary.RANDOM,
        Dictionary.FROZEN_DECODER,
        Dictionary.FROZEN_ENCODER,
    )
    control_text: str = ""
    """Text that the controls are fitted on; empty: what follows the scored contexts in `text`, then the probe
    text. More text makes them stronger, so that the set's claims are the harder to make."""
    bootstrap: int = 1000
    perturbations: int = 32
    """Features perturbed for the figures by depth; 0 skips them."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.context_tokens < 8:
            raise InvalidRequestError("context_tokens must be at least 8", field="context_tokens")
        if self.max_contexts < 2:
            raise InvalidRequestError("intervals need at least 2 contexts", field="max_contexts")
        if self.bootstrap < 100:
            raise InvalidRequestError("bootstrap needs at least 100 samples", field="bootstrap")
        if self.perturbations < 0:
            raise InvalidRequestError("perturbations must not be negative", field="perturbations")
