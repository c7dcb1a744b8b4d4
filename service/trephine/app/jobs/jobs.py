"""The durable job store: the only module that knows DBOS (DESIGN 5.11).

DBOS keeps which operations have been handed over and are not finished, and starts those again after a
crash. It runs one workflow, `run_operation(operation_id)`, in its threads; the work itself runs on the
server's event loop. Its default serialisation is pickle, so that one is disabled for the whole process,
and rows that hold anything but portable JSON of ours are refused before DBOS sees the database.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy
import structlog
from dbos import DBOS, DBOSConfig, SetWorkflowID
from dbos._serialization import DBOSPortableJSON, DefaultSerializer

from trephine.domain.errors import CorruptRecordError, DrainingError, InternalError

APPLICATION_VERSION = "1"
"""Raised only together with a migration: a row of another version is never started again by itself."""

WORKFLOW = "run_operation"

_SERIALIZATION = DBOSPortableJSON.name()
_UNFINISHED = {"PENDING", "ENQUEUED", "DELAYED"}
_log = structlog.get_logger("trephine.jobs")

Run = Callable[[str], Awaitable[str]]
"""Carries out an operation by id; returns its final state; cancelled only when the server ends."""


class JobInterruptedError(BaseException):
    """The server ends while a job runs. No `Exception`, so that DBOS leaves the job to be resumed."""


class _Bridge:
    """From DBOS' threads to the one event loop that does the work."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.run: Run | None = None

    def call(self, operation_id: str) -> str:
        """Run an operation on the loop and wait for it in this thread."""
        if self.loop is None or self.run is None:
            raise JobInterruptedError
        future = asyncio.run_coroutine_threadsafe(_awaited(self.run, operation_id), self.loop)
        try:
            return future.result()
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            raise JobInterruptedError from None


_bridge = _Bridge()


async def _awaited(run: Run, operation_id: str) -> str:
    return await run(operation_id)


@DBOS.workflow(name=WORKFLOW)  # type: ignore[untyped-decorator]
def _run_operation(operation_id: str) -> str:
    """The one registered workflow."""
    return _bridge.call(operation_id)


class Jobs:
    """DBOS on one database. DBOS is global state, so a process has one open `Jobs` at a time."""

    def __init__(self, *, database_url: str, executor_id: str) -> None:
        self._url = database_url
        self._executor_id = executor_id
        self._schema = f"trephine_{executor_id}"
        """In PostgreSQL every state folder has a schema of its own, so servers may share a database."""

    @classmethod
    def sqlite(cls, file: Path, *, executor_id: str) -> Jobs:
        """Keep the jobs in one SQLite file with a write-ahead log."""
        url = sqlalchemy.URL.create("sqlite", database=str(file))
        return cls(database_url=url.render_as_string(hide_password=False), executor_id=executor_id)

    async def open(
        self,
        *,
        run: Run,
        unfinished: Iterable[str],
        on_refused: Callable[[str, CorruptRecordError], None],
    ) -> None:
        """Refuse foreign rows, launch DBOS, and start every unfinished operation again.

        Args:
            run: Carries out an operation on this event loop.
            unfinished: Operations whose records are not final.
            on_refused: Called with the operation id of every refused row, before anything runs.
        """
        if _bridge.run is not None:
            raise InternalError("the job store is open already in this process")
        refused, waiting = await asyncio.to_thread(self._inspect)
        for operation_id, error in refused.items():
            on_refused(operation_id, error)
        _bridge.loop, _bridge.run = asyncio.get_running_loop(), run
        await asyncio.to_thread(self._launch)
        for operation_id in unfinished:
            if operation_id not in waiting and operation_id not in refused:
                await self.submit(operation_id)

    async def submit(self, operation_id: str) -> None:
        """Hand an operation over durably; from here on it survives a crash.

        Raises:
            DrainingError: If the store is closed.
        """
        if _bridge.run is None:
            raise DrainingError("the server is shutting down; try again on the next one")
        await asyncio.to_thread(_submit, operation_id)

    async def close(self) -> None:
        """Stop DBOS. What still runs must have been cancelled before; it is resumed at the next start."""
        if _bridge.run is None:
            return
        _bridge.run = None
        await asyncio.to_thread(DBOS.destroy)
        _bridge.loop = None

    def _launch(self) -> None:
        _fence()
        DBOS(config=self._config())
        DBOS.launch()

    def _config(self) -> DBOSConfig:
        return DBOSConfig(
            name="trephine",
            system_database_url=self._url,
            dbos_system_schema=self._schema,
            application_version=APPLICATION_VERSION,
            executor_id=self._executor_id,
            serializer=DBOSPortableJSON,
            enable_otlp=False,
            log_level="WARNING",
            use_listen_notify=False,
            # We send no notifications; closing waits for one round of this poll.
            notification_listener_polling_interval_sec=0.1,
        )

    def _inspect(self) -> tuple[dict[str, CorruptRecordError], set[str]]:
        """Return refused rows, and operations that DBOS will start again by itself."""
        engine = sqlalchemy.create_engine(_driver(self._url))
        try:
            with engine.begin() as connection:
                if engine.dialect.name == "sqlite":
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                schema = None if engine.dialect.name == "sqlite" else self._schema
                return _refuse_foreign_rows(connection, schema)
        finally:
            engine.dispose()


def _submit(operation_id: str) -> None:
    # A job has an id of its own, because DBOS never runs an id twice: an operation may be deleted and
    # begun anew while DBOS still writes down how the first one ended.
    with SetWorkflowID(f"{operation_id}.{uuid4().hex}"):
        DBOS.start_workflow(_run_operation, operation_id)


def _driver(url: str) -> str:
    parsed = sqlalchemy.make_url(url)
    if parsed.drivername.startswith("postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed.render_as_string(hide_password=False)


# --- rows of another serialisation ---------------------------------------------------------------


def _refuse_foreign_rows(
    connection: sqlalchemy.Connection, schema: str | None
) -> tuple[dict[str, CorruptRecordError], set[str]]:
    """Read every row raw; delete those that are not ours, undecoded, and those that have ended.

    Returns:
        Errors by operation for the former, and the operations whose jobs DBOS will start again.
    """
    metadata = sqlalchemy.MetaData(schema=schema)
    metadata.reflect(connection)
    tables = {table.name: table for table in metadata.tables.values()}
    if "workflow_status" not in tables:
        return {}, set()
    foreign = _delete_foreign_side_rows(connection, tables)
    inputs = tables["workflow_input"]
    stored = {row.workflow_uuid: row.inputs for row in connection.execute(sqlalchemy.select(inputs))}
    refused: dict[str, CorruptRecordError] = {}
    waiting: set[str] = set()
    for row in connection.execute(sqlalchemy.select(tables["workflow_status"])).mappings().all():
        job_id = str(row["workflow_uuid"])
        operation_id = job_id.partition(".")[0]
        if job_id in foreign or not _is_ours(row, stored.get(job_id)):
            _delete_job(connection, tables, job_id)
            refused[operation_id] = _refusal(operation_id, row["serialization"])
        elif row["status"] in _UNFINISHED:
            waiting.add(operation_id)
        else:
            _delete_job(connection, tables, job_id)
    return refused, waiting


def _delete_foreign_side_rows(
    connection: sqlalchemy.Connection, tables: dict[str, sqlalchemy.Table]
) -> set[str]:
    """Delete steps, events and messages of another serialisation; return whose they were.

    Schedules go too: we have none, so that whatever is there was put there by somebody else.
    """
    owners: set[str] = set()
    if "workflow_schedules" in tables:
        connection.execute(tables["workflow_schedules"].delete())
    for name, table in tables.items():
        if name == "workflow_status" or "serialization" not in table.c:
            continue
        foreign = sqlalchemy.or_(table.c.serialization.is_(None), table.c.serialization != _SERIALIZATION)
        key = table.c["destination_uuid" if "destination_uuid" in table.c else "workflow_uuid"]
        owners |= {str(owner) for owner in connection.scalars(sqlalchemy.select(key).where(foreign))}
        connection.execute(table.delete().where(foreign))
    return owners


def _delete_job(connection: sqlalchemy.Connection, tables: dict[str, sqlalchemy.Table], job_id: str) -> None:
    for name in ("workflow_input", "workflow_output", "workflow_status"):
        if name in tables:
            table = tables[name]
            connection.execute(table.delete().where(table.c.workflow_uuid == job_id))


def _is_ours(row: sqlalchemy.RowMapping, inputs: str | None) -> bool:
    """True for `run_operation(ID)` in portable JSON, by a job named `ID.<anything>`, and nothing else."""
    if row["serialization"] != _SERIALIZATION or row["name"] != WORKFLOW or row["inputs"] is not None:
        return False
    try:
        operation_id = str(row["workflow_uuid"]).partition(".")[0]
        return bool(json.loads(inputs or "") == {"namedArgs": {}, "positionalArgs": [operation_id]})
    except ValueError:
        return False


def _refusal(operation_id: str, serialization: object) -> CorruptRecordError:
    _log.error("foreign_job_refused", operation=operation_id, serialization=str(serialization))
    return CorruptRecordError(
        "the stored job is not of the serialisation that this server writes; it was removed unread. "
        "Start the operation again with a new request id",
        operation=operation_id,
        serialization=str(serialization),
    )


def _refuse_to_unpickle(*_: object) -> Any:
    raise CorruptRecordError("a stored job is pickled; pickles are never opened, delete the row")


# --- the fence around DBOS -----------------------------------------------------------------------


class _ToStructlog(logging.Handler):
    """Sends DBOS' log where ours goes."""

    def emit(self, record: logging.LogRecord) -> None:
        _log.log(record.levelno, "job_store", said=record.getMessage(), exc_info=record.exc_info)


def _fence() -> None:
    """Disable pickle in DBOS for good, and take over its log before it opens one of its own."""
    DefaultSerializer.deserialize = _refuse_to_unpickle
    DefaultSerializer.serialize = _refuse_to_unpickle
    logger = logging.getLogger("dbos")
    if not any(isinstance(handler, _ToStructlog) for handler in logger.handlers):
        logger.handlers[:] = [_ToStructlog()]
    logger.propagate = False
