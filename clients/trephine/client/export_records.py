"""The records beside an export's weights, as a reader needs them: certificate and manifest."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """One object of a JSON file; fields that are not named here are left alone."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class FileRecord(Record):
    """A file of the folder."""

    path: str
    size: int
    sha256: str


class TensorRecord(Record):
    """A tensor with its digest in the parent and here; `before` is empty where it is new."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    before: str
    after: str


class GateRecord(Record):
    """A bound of the plan."""

    name: str
    limit: float
    unit: str
    reason: str


class GateResultRecord(Record):
    """A gate and what was measured for it."""

    gate: GateRecord
    measured: float
    passed: bool


class MeasurementRecord(Record):
    """One figure."""

    name: str
    value: float


class RemovalRecord(Record):
    """What attacks came to."""

    verdict: str


class FateRecord(Record):
    """What may be said of the ablated behaviour."""

    verdict: str
    reason: str = ""


class SetRecord(Record):
    """A replacement set and what was in it."""

    name: str
    content_hash: str


class CertificateRecord(Record):
    """`certificate.json`."""

    edit_hash: str
    plan_hash: str
    parent_hash: str
    passed: bool
    gates: tuple[GateResultRecord, ...] = Field(min_length=1)
    measurements: tuple[MeasurementRecord, ...]
    changed_tensors: tuple[str, ...]
    untouched_tensors_verified: int
    removal: RemovalRecord | None = None
    fate: FateRecord | None = None
    """None: written before the word stood in it."""
    verdict: str | None = None
    """None: written before the word stood in it."""
    doubt: str = ""
    sets: tuple[SetRecord, ...] | None = None
    """As they were loaded; None: written before they stood in it."""

    @property
    def due_verdict(self) -> str:
        """The verdict that its gates and its doubt come to."""
        if not all(result.passed for result in self.gates):
            return "failed"
        return "inconclusive" if self.doubt else "passed"

    @property
    def word(self) -> FateRecord | None:
        """Its word as it was written; of one from before that, the word of its attacks, or None."""
        if self.fate is not None or self.removal is None:
            return self.fate
        return FateRecord(verdict=self.removal.verdict)

    @property
    def contradicts_attacks(self) -> bool:
        """Whether its word is not that of its attacks; without any it may not be `removed`, and says why."""
        if self.fate is None:
            return False
        if self.removal is None:
            return self.fate.verdict == "removed" or not self.fate.reason
        return self.fate != FateRecord(verdict=self.removal.verdict)


class EditRecord(Record):
    """What was exported."""

    content_hash: str
    weight_hash: str
    sets: tuple[SetRecord, ...] = ()


class PlanRecord(Record):
    """What was to be written and measured."""

    edit_hash: str
    plan_hash: str
    parent_hash: str
    changed_tensors: tuple[str, ...]
    gates: tuple[GateRecord, ...]
    doubt: str = ""


class ManifestRecord(Record):
    """`edit_manifest.json`."""

    edit: EditRecord
    plan: PlanRecord
    sets: tuple[SetRecord, ...] | None = None
    """As they were loaded; None: written before they stood in it."""
    tensors: dict[str, TensorRecord]
    files: tuple[FileRecord, ...]
