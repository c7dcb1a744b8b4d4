"""What a fitting process is told, and where it keeps its things. No torch: the engine imports it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from trephine.domain.fitting import FitRecipe, FitReport


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRequest:
    """One fit, as the child reads it."""

    recipe: FitRecipe
    corpus: str | None
    corpus_name: str
    folder: str
    """Where the set is written, and nothing else."""
    checkpoints: str
    """Where everything to go on from is kept."""
    model_folder: str
    model_name: str
    weight_hash: str
    dtype: str
    device: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """The folder in which a fit keeps its request, its contexts and its checkpoints."""

    work: Path

    @property
    def request(self) -> Path:
        """The request, kept so that another fit cannot take this one up."""
        return self.work / "request.json"

    @property
    def lock(self) -> Path:
        """Held by the process that works here."""
        return self.work / "lock"

    @property
    def rows(self) -> Path:
        """Token contexts."""
        return self.work / "rows.safetensors"

    @property
    def samples(self) -> Path:
        """The model's own samples, a file per batch."""
        return self.work / "samples"

    @property
    def report(self) -> Path:
        """Written last."""
        return self.work / "report.json"

    def stage(self, name: str) -> Path:
        """Checkpoints of a stage."""
        return self.work / name


_REQUEST, _REPORT = TypeAdapter(FitRequest), TypeAdapter(FitReport)


def request_text(request: FitRequest) -> str:
    """Spell a request out as JSON."""
    return _REQUEST.dump_json(request, indent=1).decode()


def read_request(path: Path) -> FitRequest:
    """Read a request."""
    return _REQUEST.validate_json(path.read_bytes())


def report_text(report: FitReport) -> str:
    """Spell a report out as JSON."""
    return _REPORT.dump_json(report, indent=1).decode()


def read_report(path: Path) -> FitReport | None:
    """Read a report; None if there is none."""
    return _REPORT.validate_json(path.read_bytes()) if path.exists() else None


def same_work(kept: FitRequest, asked: FitRequest) -> bool:
    """Say whether a kept request is the one that is asked for; threads and paths may differ."""
    return (kept.recipe, kept.corpus_name, kept.weight_hash, kept.dtype) == (
        asked.recipe,
        asked.corpus_name,
        asked.weight_hash,
        asked.dtype,
    )
