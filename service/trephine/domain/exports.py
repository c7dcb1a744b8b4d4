"""Exports: a plan before anything is written, and a certificate measured on the reloaded folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from trephine.domain.commands import Command, Progress
from trephine.domain.edits import Edit, EditSet
from trephine.domain.errors import InvalidRequestError
from trephine.domain.removal import FEWEST_STEPS, MOST_STEPS, Fate, Removal, Verdict, fate_of
from trephine.domain.signing import SignedBy

Tier = Literal["noop", "exact", "graft", "near_constant", "ridge"]
"""`exact`: neurons, heads, directions, constants where there are biases, up to rounding. `graft`: features as
extra neurons, up to rounding and the softness of their knees. `near_constant`: constants without a bias,
along what is nearly constant in a module's input. `ridge`: fitted. What these two miss is measured."""

ExportVerdict = Literal["passed", "inconclusive", "failed"]
"""`failed`: a gate was missed, and nothing is published. `inconclusive`: all gates hold, and cannot tell the
edit from its absence (`doubt`); it is published, and is no pass. `passed`: all gates hold, and they can."""

GgufType = Literal["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
"""How the matrices of a GGUF file are quantised, in blocks of 32 weights."""
GGUF_TYPES: tuple[GgufType, ...] = get_args(GgufType)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How an edit is compiled and judged."""

    text: str | None = None
    """Calibrates grafts and fits, and is measured on, part by part; None: the built-in retain text."""
    min_recovery: float = 0.9
    """Of fitted parts: the share of the edit's KL that must be carried, above 0. Less is refused, and so is
    less than a tenth, whatever is asked for: a copy of the parent comes near to that by rounding."""
    keep_shapes: bool = False
    """Fit features into the matrices that are there instead of adding neurons."""
    attack: bool = False
    """Attack what was exported before it is signed: is the behaviour removed or suppressed?"""
    attack_steps: int = FEWEST_STEPS
    """Of training, benign and few-shot."""
    gguf: tuple[GgufType, ...] = ()
    """Write these GGUF files as well and measure each. Grafts then use no biases, where a reader of GGUF
    might leave them out."""

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.gguf if kind not in GGUF_TYPES]
        if unknown or len(set(self.gguf)) < len(self.gguf):
            raise InvalidRequestError(
                f"gguf takes each of {', '.join(GGUF_TYPES)} at most once, got {', '.join(self.gguf)}",
                field="gguf",
            )
        if not FEWEST_STEPS <= self.attack_steps <= MOST_STEPS:
            raise InvalidRequestError(
                f"attack_steps must be between {FEWEST_STEPS} and {MOST_STEPS}, got {self.attack_steps}",
                field="attack_steps",
            )
        if not 0.0 < self.min_recovery <= 1.0:
            raise InvalidRequestError(
                f"min_recovery must be above 0 and at most 1, got {self.min_recovery}: a fit that carries "
                "nothing is a copy of the parent",
                field="min_recovery",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStep:
    """How one intervention is written into weights."""

    intervention: int
    """Index into the edit's interventions."""
    tier: Tier
    tensor: str
    """Name of the tensor that changes; several are joined by commas."""
    description: str
    predicted_error: float | None = 0.0
    """Mean squared error over mean squared change of what is written, on the calibration text; None: nothing
    changes where it would be measured, so that it is not known."""
    held_out: bool = False
    """Whether that is of windows of this text that nothing was fitted on or chosen by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A bound fixed before writing. A measurement above it is a failure, never a new bound."""

    name: str
    limit: float
    unit: str
    reason: str
    """Where the limit comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSupport:
    """Which software can load the exported folder."""

    server: str
    loads: bool
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WidenedLayer:
    """A layer whose MLP is given more neurons."""

    layer: int
    neurons: int
    """How many more."""
    zeros: int
    """How many of these are zeros and do nothing: layers share one width, a multiple of a friendly number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """What an export will write and what it must measure."""

    edit: str
    edit_hash: str
    parent_hash: str
    steps: tuple[PlanStep, ...]
    changed_tensors: tuple[str, ...]
    untouched_tensors: int
    config_changes: tuple[str, ...]
    size_growth_bytes: int
    """Beyond the parent's bytes: of tensors and adapter exactly, of GGUF files that were asked for at most;
    certificate, card and other papers are not counted."""
    servers: tuple[ServerSupport, ...]
    gates: tuple[Gate, ...]
    plan_hash: str
    fitted: bool = False
    """True if a part is fitted: such an export is labelled approximate, or refused below its tolerance."""
    text: str = ""
    """Which text grafts and fits were calibrated on: a name and its sha256."""
    caveats: tuple[str, ...] = ()
    """Sets that failed admission and were accepted all the same; what is measured and not judged."""
    doubt: str = ""
    """What no gate can tell of the edit itself, and what to do; with it an export is inconclusive at best."""
    widened: tuple[WidenedLayer, ...] = ()
    """Layers whose MLPs are given more neurons, those that get nothing but zeros included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One figure of a certificate."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """A gate and what was measured for it."""

    gate: Gate
    measured: float
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedCopy:
    """A GGUF file of the export, reloaded alone by stock transformers in a clean process.

    It is held against the parent quantised in the same way, in which the runtime intervenes, so that what
    quantising itself does to the model is not taken for a loss of the edit. Nats per token.
    """

    kind: GgufType
    file: str
    """Relative to the folder."""
    size: int
    kl: float
    """KL(quantised parent, intervened in || this file)."""
    edit_kl: float
    """KL(quantised parent, intervened in || quantised parent)."""
    recovery: float | None
    """1 - kl / edit_kl; None: the edit moves nothing on this text."""
    kl_firing: float | None
    """On tokens on which an edited feature fires; None: none does, or no feature of a set is edited."""
    edit_kl_firing: float | None
    recovery_firing: float | None
    quantisation_kl: float
    """KL(parent || quantised parent): what quantising alone does."""
    perplexity_ratio: float
    """Of this file over the quantised parent that is intervened in."""
    top1_agreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What was measured on the reloaded folder, in a clean process without Trephine."""

    edit: str
    edit_hash: str
    plan_hash: str
    parent_hash: str
    dtype: str
    measurements: tuple[Measurement, ...]
    gates: tuple[GateResult, ...]
    changed_tensors: tuple[str, ...]
    untouched_tensors_verified: int
    environment: dict[str, str]
    """Versions of python, torch, transformers, safetensors in the clean process; `compute_dtype`, and
    `floor_dtype`, which the parent's floor of its dtype is of beside it; `greedy_tokens`, by how many each
    prompt was continued; what was rounded stochastically; `retain_text` and `retain_tokens`, if damage was
    measured on a second text."""
    text: str
    """Which text was measured on: a name and its sha256."""
    n_tokens: int
    removal: Removal | None = None
    """What attacks brought back; None: none was run."""
    quantised: tuple[QuantisedCopy, ...] = ()
    """The folder's GGUF files."""
    caveats: tuple[str, ...] = ()
    """The plan's."""
    doubt: str = ""
    """The plan's."""
    sets: tuple[EditSet, ...] = ()
    """The sets whose features were compiled, as they were loaded."""

    @property
    def verdict(self) -> ExportVerdict:
        """What gates and doubt come to."""
        if not all(result.passed for result in self.gates):
            return "failed"
        return "inconclusive" if self.doubt else "passed"

    @property
    def passed(self) -> bool:
        """Whether all gates hold and tell the edit from its absence."""
        return self.verdict == "passed"

    @property
    def failed(self) -> bool:
        """Whether a gate was missed: such a folder is neither signed nor published."""
        return self.verdict == "failed"

    @property
    def fate(self) -> Fate:
        """What may be said of the ablated behaviour; where no tensor was changed, none was ablated."""
        if self.removal is None and not self.changed_tensors:
            return Fate(verdict="inconclusive", reason="no tensor was changed")
        return fate_of(self.removal)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """One file of a published folder."""

    path: str
    """Relative, with forward slashes."""
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A published folder. `folder` is a server path and never crosses the wire."""

    name: str
    folder: str
    certificate: Certificate
    files: tuple[ExportedFile, ...]
    signed: bool
    signed_by: SignedBy | None = None
    """None: not signed, or entered before this was kept."""
    create_time: str = ""
    """RFC 3339, UTC: when it was published. Empty: before this was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanExport(Command[ExportPlan, Progress]):
    """Say what an export would write; refuses what weights cannot express, naming the field."""

    edit: Edit
    options: ExportOptions = field(default_factory=ExportOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileExport(Command[Export, Progress]):
    """Build in a sibling folder, reload it in a clean process, certify, sign, publish by one rename."""

    interactive: ClassVar[bool] = False

    edit: Edit
    plan: ExportPlan
    name: str
    folder: str
    """Absolute server path inside the export root; must not exist."""
    signing_key: str | None = None
    """Server path of a PEM private key (P-256). None: not signed by the engine."""
    keep_rejected: bool = False
    """Keep a folder that misses a gate as `NAME.rejected`."""
    options: ExportOptions = field(default_factory=ExportOptions)
    """As in the plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedExport:
    """The outcome of checking a published folder."""

    passed: bool
    problems: tuple[str, ...] = field(default=())
    files: int = 0
    removal: Verdict | None = None
    """What the certificate says of the ablated behaviour; None: it cannot be read."""
    reason: str = ""
    """Why, where no attack decided, as in `Fate`."""
    verdict: ExportVerdict | None = None
    """The certificate's; None: it cannot be read."""
    doubt: str = ""
    """Of an inconclusive one."""
    notes: tuple[str, ...] = ()
    """What a check does not prove, or could not check."""
