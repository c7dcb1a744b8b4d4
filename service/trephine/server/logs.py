"""Logs of a server: one line per event on stderr, JSON off a terminal."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import structlog
from structlog.typing import EventDict

from trephine.domain.frames import frames_of

_QUOTES = re.compile(r"[\n:(<\[{'\"]")
"""Where a line begins to quote; asyncio puts a lost task's exception there, and a callback's arguments."""


def configure_logs(level: str, *, content: bool = False) -> None:
    """Route structlog and the standard library's logging to stderr.

    Args:
        level: The least that is written.
        content: Write messages of exceptions, too, which may quote prompts; where they came from is always
            written.
    """
    renderer: Any = structlog.processors.JSONRenderer(default=str)
    if sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            partial(_without_quotes, content),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


def _without_quotes(content: bool, _logger: Any, _name: str, event: EventDict) -> EventDict:
    """Tell an exception by its type and frames: its message and its lines of source may quote a prompt.

    So may the words that it was logged with, of which the beginning is told.
    """
    given = event.pop("exc_info", None)
    error = given[1] if isinstance(given, tuple) else given
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event.update(error=type(error).__name__, frames=frames_of(error))
        if error.__cause__ is not None:
            event["cause"] = type(error.__cause__).__name__
        if content:
            event["message"] = str(error)
        else:
            event.update({key: _opening(event[key], error) for key in ("event", "said") if key in event})
    return event


def _opening(said: Any, error: BaseException) -> str:
    """Return a log line up to where it quotes, with the exception's type in place of its message."""
    kind, text = type(error).__name__, str(error)
    plain = str(said).replace(text, kind) if text else str(said)
    return _QUOTES.split(plain, maxsplit=1)[0].strip() or kind


class _Forward(logging.Handler):
    """Hands records of the standard library to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info or next(
            (one for one in _parts(record) if isinstance(one, BaseException)), None
        )
        log = structlog.get_logger(record.name)
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=error)


def _parts(record: logging.LogRecord) -> tuple[object, ...]:
    """Return what a record's line is made of: an exception may be among it without being its `exc_info`."""
    args = record.args or ()
    return (record.msg, *(args.values() if isinstance(args, Mapping) else args))
