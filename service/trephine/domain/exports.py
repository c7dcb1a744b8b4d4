"""Exports: a plan before anything is written, and a certificate measured on the reloaded folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from trephine.domain.commands import Command, Progress
from trephine.domain.edits import Edit

Tier = Literal["noop", "exact"]
"""`exact`: neuron scaling in the down projection. Further tiers come with further operations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStep:
    """How one intervention is written into weights."""

    intervention: int
    """Index into the edit's interventions."""
    tier: Tier
    tensor: str
    """Name of the tensor that changes."""
    description: str


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
    servers: tuple[ServerSupport, ...]
    gates: tuple[Gate, ...]
    plan_hash: str


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
class Certificate:
    """What was measured on the reloaded folder, in a clean process without Trephine."""

    edit: str
    edit_hash: str
    plan_hash: str
    parent_hash: str
    dtype: str
    measurements: tuple[Measurement, ...]
    gates: tuple[GateResult, ...]
    passed: bool
    changed_tensors: tuple[str, ...]
    untouched_tensors_verified: int
    environment: dict[str, str]
    """Versions of python, torch, transformers, safetensors in the clean process."""
    text: str
    """Which text was measured on: a name and its sha256."""
    n_tokens: int


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanExport(Command[ExportPlan, Progress]):
    """Say what an export would write; refuses what weights cannot express, naming the field."""

    edit: Edit


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
    """Server path of a PEM private key (P-256). None: not signed."""
    keep_rejected: bool = False
    """Keep a folder that misses a gate as `NAME.rejected`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedExport:
    """The outcome of checking a published folder."""

    passed: bool
    problems: tuple[str, ...] = field(default=())
    files: int = 0
