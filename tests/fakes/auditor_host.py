"""An auditor host without processes."""

from __future__ import annotations

from collections.abc import Callable

from trephine.domain.commands import Progress
from trephine.domain.errors import TrephineError
from trephine.domain.findings import AuditorInfo, AuditOutcome, AuditSpec, Rule, Verdict
from trephine.domain.ports import Engine

INFO = AuditorInfo(
    name="fake",
    version="1",
    question="Does the test pass?",
    evidence="none",
    blind_spot="everything",
    rules=(Rule(id="fake/rule", title="Rule", description="A rule.", help="Nothing to do."),),
)
OUTCOME = AuditOutcome(
    verdict=Verdict.INCONCLUSIVE, why="It is a fake.", findings=(), figures=(), would_decide="A real one."
)


class FakeAuditorHost:
    """Implements the `AuditorHost` port: reports one step, then answers or raises as told."""

    def __init__(self, answer: AuditOutcome | TrephineError = OUTCOME) -> None:
        self.answer = answer
        self.runs: list[AuditSpec] = []

    async def list_auditors(self) -> tuple[AuditorInfo, ...]:
        """Return the one fake auditor."""
        return (INFO,)

    async def run_audit(
        self, spec: AuditSpec, engine: Engine, *, on_progress: Callable[[Progress], None]
    ) -> AuditOutcome:
        """Answer as told."""
        self.runs.append(spec)
        on_progress(Progress(stage="fake", done=1, total=1))
        if isinstance(self.answer, TrephineError):
            raise self.answer
        return self.answer
