"""What a server's log says of exceptions: where they came from, and their words where that is asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

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


WAYS = (by_structlog, by_the_standard_library, while_handling)


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
