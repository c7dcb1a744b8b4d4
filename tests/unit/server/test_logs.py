"""What a server's log says of exceptions: where they came from, and their words where that is asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from trephine.app.jobs.jobs import _ToStructlog
from trephine.app.operations import Operations
from trephine.server.logs import configure_logs

SECRET = "the diagnosis of Alice"


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def broken() -> ValueError:
    """An exception whose message, and whose line of source, quote a prompt."""
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as cause:
            raise ValueError("cannot handle the diagnosis of Alice") from cause
    except ValueError as error:
        return error


def by_structlog(error: Exception) -> None:
    """As our own code logs."""
    structlog.get_logger("trephine").error("operation_broke", operation="op", exc_info=error)


def by_the_standard_library(error: Exception) -> None:
    """As asyncio does."""
    logging.getLogger("asyncio").error("a task broke", exc_info=error)


def while_handling(error: Exception) -> None:
    """As an `except` clause does."""
    try:
        raise error
    except ValueError:
        structlog.get_logger("trephine").exception("the server failed")


def of_a_lost_task(error: Exception) -> None:
    """As asyncio does: its words hold the exception, and a callback's arguments."""
    words = f"Exception in callback told({SECRET!r})\nfuture: <Task finished exception={error!r}>"
    logging.getLogger("asyncio").error(words, exc_info=error)


def within_words(error: Exception) -> None:
    """As libraries do that log what they caught, and no trace."""
    logging.getLogger("library").error("failed: %s", error)


def within_named_words(error: Exception) -> None:
    """The same with a mapping."""
    logging.getLogger("library").error("failed %(why)s", {"why": error})


def instead_of_words(error: Exception) -> None:
    """As a library may."""
    logging.getLogger("library").error(error)


def of_the_job_store(error: Exception) -> None:
    """As DBOS does: within its words."""
    told = (type(error), error, error.__traceback__)
    _ToStructlog().emit(logging.LogRecord("dbos", logging.ERROR, "", 0, f"lost it, {error}", None, told))


WAYS = (
    by_structlog,
    by_the_standard_library,
    while_handling,
    of_a_lost_task,
    within_words,
    within_named_words,
    instead_of_words,
    of_the_job_store,
)


@pytest.mark.parametrize("way", WAYS)
def test_no_prompt_is_logged_with_an_exception(
    way: Callable[[Exception], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Type, cause and frames are there; message and source lines only where contents may be logged."""
    configure_logs("info")
    way(broken())
    out, err = capsys.readouterr()
    assert "Alice" not in out + err
    told: dict[str, Any] = json.loads(err)
    assert (told["error"], told["cause"]) == ("ValueError", "KeyError")
    assert any(frame.endswith(" broken") for frame in told["frames"])
    configure_logs("info", content=True)
    way(broken())
    assert json.loads(capsys.readouterr().err)["message"] == "cannot handle the diagnosis of Alice"


async def test_an_operation_that_breaks_quotes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Its failure says where to look, and the log says where it broke."""

    class Journal:
        finished: dict[str, Any]

        async def finish(self, operation_id: str, state: object, *, failure: object = None) -> None:
            self.finished = {"id": operation_id, "failure": failure}

    configure_logs("info")
    operations: Any = object.__new__(Operations)
    operations._journal = Journal()
    await operations._fail("op", broken())
    assert "Alice" not in repr(operations._journal.finished)
    told = capsys.readouterr().err
    assert "Alice" not in told
    assert json.loads(told)["event"] == "operation_broke"


def test_words_of_libraries_are_told_up_to_where_they_quote(capsys: pytest.CaptureFixture[str]) -> None:
    """What happened and who says so stay; without an exception, and with contents, all of it does."""
    configure_logs("info")
    of_a_lost_task(broken())
    told = json.loads(capsys.readouterr().err)
    assert (told["event"], told["logger"]) == ("Exception in callback told", "asyncio")
    of_the_job_store(broken())
    told = json.loads(capsys.readouterr().err)
    assert (told["event"], told["said"]) == ("job_store", "lost it, ValueError")
    logging.getLogger("library").warning("slow: %s (of 3)", "disk")
    assert json.loads(capsys.readouterr().err)["event"] == "slow: disk (of 3)"
    configure_logs("info", content=True)
    of_a_lost_task(broken())
    assert SECRET in json.loads(capsys.readouterr().err)["event"]
