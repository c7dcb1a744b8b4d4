from __future__ import annotations

from dataclasses import dataclass

from trephine.client.decoding import WireValue
from trephine.client.types.common import Version
from trephine.client.types.export_signing import SignedBy
from trephine.client.types.export_verdict import ExportVerdict
from trephine.client.types.gguf import QuantisedCopy
from trephine.client.types.interventions import Intervention
from trephine.client.types.live_edits import EditUse
from trephine.client.types.removal import Fate, Removal, RemovalVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class EditSet(WireValue):
    """A replacement set whose features an edit names; another set under that name is refused."""

    name: str
    content_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EditPart(WireValue):
    """An edit that another one was composed of."""

    edit: str
    """Resource name with version, `edits/no-mary@2`."""
    content_hash: str
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit(WireValue):
    """One version of a stored edit."""

    name: str
    """Resource name, `edits/no-mary`."""
    version: int
    content_hash: str
    """Over weights, sets and interventions."""
    interventions: tuple[Intervention, ...]
    reason: str
    author: str
    evidence: tuple[str, ...]
    create_time: str
    made_for: Version
    """The weights that it was made for; another parent is refused."""
    update_time: str = ""
    """When this version was made."""
    etag: str = ""
    """Over everything that this version holds; sent back with updates, so that none is overwritten unseen."""
    sets: tuple[EditSet, ...] = ()
    reverted_from: int = 0
    """The version that this one brings back; 0: none."""
    parts: tuple[EditPart, ...] = ()
    evidence_warnings: tuple[str, ...] = ()
    """What of `evidence` is not on this server, each with what to do; lists leave it out."""

    @property
    def reference(self) -> str:
        """Resource name with version, `edits/no-mary@2`: it means this version for ever."""
        return f"{self.name}@{self.version}"

    def at(self, strength: float) -> EditUse:
        """This version, so many times as far as stored: 0 does nothing, 1 is the edit itself."""
        return EditUse(edit=self.reference, strength=strength)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStep(WireValue):
    """How one intervention is written into weights."""

    intervention: int
    tier: str
    tensor: str
    description: str
    predicted_error: float | None = 0.0
    """None: nothing changes where it would be measured."""
    held_out: bool = False
    """Whether it is of windows that nothing was fitted on or chosen by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate(WireValue):
    """A bound fixed before writing."""

    name: str
    limit: float
    unit: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSupport(WireValue):
    """Which software loads the folder."""

    server: str
    loads: bool
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WidenedLayer(WireValue):
    """A layer whose MLP is given more neurons."""

    layer: int
    neurons: int
    """How many more."""
    zeros: int
    """How many of these are zeros and do nothing: layers share one width, a multiple of a friendly number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan(WireValue):
    """What an export will write and must measure."""

    edit: str
    edit_hash: str
    parent_hash: str
    steps: tuple[PlanStep, ...]
    changed_tensors: tuple[str, ...]
    untouched_tensors: int
    config_changes: tuple[str, ...]
    size_growth_bytes: int
    """Beyond the parent's bytes: of tensors and adapter exactly, of GGUF files that were asked for at
    most."""
    servers: tuple[ServerSupport, ...]
    gates: tuple[Gate, ...]
    plan_hash: str
    fitted: bool = False
    text: str = ""
    caveats: tuple[str, ...] = ()
    """Sets that failed admission and were accepted all the same; what is measured and not judged."""
    doubt: str = ""
    """What no gate can tell of the edit itself, and what to do; with it an export is inconclusive at best."""
    widened: tuple[WidenedLayer, ...] = ()
    """Layers whose MLPs are given more neurons, those that get nothing but zeros included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement(WireValue):
    """One figure of a certificate."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult(WireValue):
    """A gate and what was measured for it."""

    gate: Gate
    measured: float
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate(WireValue):
    """What was measured on the reloaded folder, in a clean process without Trephine."""

    edit: str
    edit_hash: str
    plan_hash: str
    parent_hash: str
    dtype: str
    measurements: tuple[Measurement, ...]
    gates: tuple[GateResult, ...]
    passed: bool
    """Whether all gates hold and tell the edit from its absence: not where the verdict is inconclusive."""
    changed_tensors: tuple[str, ...]
    untouched_tensors_verified: int
    environment: dict[str, str]
    text: str
    n_tokens: int
    removal: Removal | None = None
    """What attacks brought back; None: none was run."""
    quantised: tuple[QuantisedCopy, ...] = ()
    """GGUF files of the export."""
    caveats: tuple[str, ...] = ()
    """The plan's."""
    fate: Fate | None = None
    """What may be said of the ablated behaviour, attacked or not; None: the server is older than this."""
    verdict: ExportVerdict = ExportVerdict.UNSPECIFIED
    """What gates and doubt come to."""
    doubt: str = ""
    """The plan's: why it is inconclusive."""
    sets: tuple[EditSet, ...] = ()
    """Replacement sets whose features were compiled, as they were loaded; empty also if it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile(WireValue):
    """One file of a published folder."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Export(WireValue):
    """A published folder."""

    name: str
    """Resource name, `exports/edited`."""
    certificate: Certificate
    files: tuple[ExportedFile, ...]
    """Of one that was asked for by name; a list leaves them out, as it does measurements and tensors."""
    signed: bool
    signed_by: SignedBy | None = None
    """None: not signed, or published before this was kept."""
    create_time: str = ""
    """RFC 3339, UTC; empty: published before this was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedExport(WireValue):
    """The outcome of checking a published folder on the server."""

    passed: bool
    """Whether everything holds: the folder is what was certified. What that is, `verdict` says."""
    problems: tuple[str, ...]
    files: int
    removal: RemovalVerdict = RemovalVerdict.UNSPECIFIED
    """What the certificate says of the ablated behaviour; unspecified: it cannot be read."""
    notes: tuple[str, ...] = ()
    """What a check does not prove, or could not check."""
    fate: Fate | None = None
    """The word as text: `suppressed (not attacked)`; None: the certificate cannot be read."""
    verdict: ExportVerdict = ExportVerdict.UNSPECIFIED
    """The certificate's; unspecified: it cannot be read."""
    doubt: str = ""
    """Of an inconclusive one."""
