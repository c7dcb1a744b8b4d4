"""What each kind of operation is asked to do, as frozen values that are stored as artifacts."""

from __future__ import annotations

from dataclasses import dataclass

from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.edits import ProposeEdit
from trephine.domain.findings import AuditSpec
from trephine.domain.models import ModelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """Load a model. The result is `models/<name>`."""

    source: ModelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoverRequest:
    """Find a circuit. The result is `circuits/<operation id>`."""

    model: str
    """Name of a loaded model."""
    command: DiscoverCircuit


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposeRequest:
    """Find what could ship. The result is `proposals/<operation id>`."""

    model: str
    """Name of a loaded model."""
    command: ProposeEdit


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """Compile and publish an edit. The result is `exports/<export_id>`."""

    edit: str
    """Name of a stored edit."""
    export_id: str
    """Name of the folder to publish in the export root; must not exist."""
    model: str | None = None
    """Loaded model to compile from; None: the edit's own."""
    keep_rejected: bool = False
    """Keep a folder that misses a gate as `NAME.rejected`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRequest:
    """Run one auditor on one model. The result is `audits/<operation id>`."""

    model: str
    """Name of a loaded model."""
    spec: AuditSpec


OperationRequest = LoadRequest | DiscoverRequest | ProposeRequest | ExportRequest | AuditRequest

REQUEST_TYPES: dict[str, type[OperationRequest]] = {
    "LoadModel": LoadRequest,
    "DiscoverCircuit": DiscoverRequest,
    "ProposeEdit": ProposeRequest,
    "ExportCheckpoint": ExportRequest,
    "RunAudit": AuditRequest,
}
"""The methods that are operations, and what each is asked with."""
