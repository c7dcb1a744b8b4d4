"""The use cases, bundled as the one object that the edge is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trephine.app.artifacts import ArtifactStore
from trephine.app.audits import Audits
from trephine.app.circuits import Circuits
from trephine.app.clock import Clock, SystemClock
from trephine.app.edits import Edits
from trephine.app.exports import Exports
from trephine.app.jobs import Jobs
from trephine.app.journal import Journal
from trephine.app.models import Models
from trephine.app.operations import Operations
from trephine.app.proposals import Proposals
from trephine.app.signing_key import signing_key
from trephine.app.state import StateFolder
from trephine.app.uploads import Uploads
from trephine.app.work import Work
from trephine.domain.ports import AuditorHost, EngineLauncher, ReportWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What the use cases need of others: ports, which only the server fills with concrete classes."""

    launcher: EngineLauncher
    auditor_host: AuditorHost
    report_writer: ReportWriter
    clock: Clock = SystemClock()  # noqa: RUF009  without state


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """What can be configured."""

    model_roots: tuple[Path, ...] = ()
    export_root: Path | None = None
    """None: `published` inside the state folder."""
    database_url: str | None = None
    """PostgreSQL; None: SQLite inside the state folder."""
    artifacts_url: str | None = None
    """Any URL that fsspec knows; None: inside the state folder."""
    memory_budget_bytes: int | None = None
    max_running_operations: int = 8
    sign_exports: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Everything that a servicer may ask for. `open` it before serving and `close` it after."""

    models: Models
    operations: Operations
    circuits: Circuits
    proposals: Proposals
    edits: Edits
    exports: Exports
    audits: Audits
    artifacts: ArtifactStore
    uploads: Uploads

    async def open(self) -> None:
        """Clear what interrupted work left, then resume every unfinished operation."""
        self.exports.sweep({record.id for record in self.operations.list()})
        await self.operations.open()

    async def close(self) -> None:
        """Stop: unfinished operations stay to be resumed, every engine ends."""
        await self.operations.close()
        await self.models.close()


def assemble(state: StateFolder, outside: Outside, options: ServiceOptions) -> Service:
    """Build the use cases on a state folder. Nothing runs before `Service.open`."""
    clock = outside.clock
    export_root = options.export_root or state.default_export_root
    artifacts = ArtifactStore(options.artifacts_url or state.folder("artifacts").as_uri(), clock=clock)
    models = Models(
        launcher=outside.launcher,
        roots=options.model_roots,
        export_root=export_root,
        remembered=state.folder("models"),
        memory_budget_bytes=options.memory_budget_bytes,
    )
    circuits = Circuits(state.folder("circuits"), artifacts, clock=clock)
    proposals = Proposals(state.folder("proposals"))
    edits = Edits(state.folder("edits"), models, clock=clock)
    exports = Exports(
        state.folder("exports"),
        export_root=export_root,
        models=models,
        edits=edits,
        signing_key=signing_key(state.folder("keys")) if options.sign_exports else None,
    )
    audits = Audits(
        state.folder("audits"),
        models=models,
        host=outside.auditor_host,
        writer=outside.report_writer,
        artifacts=artifacts,
        clock=clock,
    )
    operations = Operations(
        jobs=_jobs(state, options.database_url),
        journal=Journal(state.folder("operations"), clock),
        requests=ArtifactStore(state.folder("requests").as_uri(), clock=clock),
        work=Work(models=models, circuits=circuits, proposals=proposals, exports=exports, audits=audits),
        clock=clock,
        max_running=options.max_running_operations,
    )
    return Service(
        models=models,
        operations=operations,
        circuits=circuits,
        proposals=proposals,
        edits=edits,
        exports=exports,
        audits=audits,
        artifacts=artifacts,
        uploads=Uploads(state.folder("uploads"), artifacts, clock=clock),
    )


def model_roots(cache: Path, configured: Iterable[Path]) -> tuple[Path, ...]:
    """Return the roots: always the cache's `models`, then those that were configured."""
    return (cache / "models", *configured)


def _jobs(state: StateFolder, database_url: str | None) -> Jobs:
    executor_id = state.executor_id()
    if database_url is not None:
        return Jobs(database_url=database_url, executor_id=executor_id)
    return Jobs.sqlite(state.jobs_database, executor_id=executor_id)
