"""A baseline: findings that people accepted, each until a day and for a reason.

    {"accepted": [{"fingerprint": "...", "severity": "medium", "expires": "2030-01-31", "reason": "..."}]}

A baseline that cannot be read, or has an entry without reason or day, is invalid: it never makes a build
green. An entry that has expired, or whose finding got worse, covers nothing.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trephine.client.errors import BaselineInvalidError
from trephine.client.types import Finding, Severity


class Accepted(BaseModel):
    """One finding that was accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str = Field(min_length=8)
    severity: Severity
    expires: date
    reason: str = Field(min_length=1)


class Baseline(BaseModel):
    """Everything that was accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accepted: tuple[Accepted, ...] = ()

    def covers(self, finding: Finding, *, today: date | None = None) -> bool:
        """True if this finding was accepted, is no worse than then, and the day has not passed."""
        day = today or datetime.now(tz=UTC).date()
        return any(
            entry.fingerprint == finding.fingerprint
            and finding.severity.rank <= entry.severity.rank
            and day <= entry.expires
            for entry in self.accepted
            if entry.severity is not Severity.UNSPECIFIED
        )


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        BaselineInvalidError: If it is missing, unreadable or incomplete.
    """
    try:
        return Baseline.model_validate_json(path.read_bytes())
    except OSError as failure:
        raise BaselineInvalidError(f"cannot read the baseline {path}: {failure.strerror}") from failure
    except ValidationError as failure:
        first = failure.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"{place}: {first['msg']}" if place else first["msg"]  # of no JSON at all there is no place
        raise BaselineInvalidError(f"{path} is no baseline: {what}") from failure
