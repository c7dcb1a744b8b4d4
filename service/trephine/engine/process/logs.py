"""Structured logs of the engine: one JSON object per line on stderr. Prompts are never in them."""

from __future__ import annotations

import json
import logging
import sys
import warnings

import structlog


class _JsonLines(logging.Formatter):
    """Other libraries' records, in the form of ours."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
        )


def configure() -> None:
    """Send our logs, other libraries' warnings and Python's warnings to stderr as JSON lines."""
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    warnings.simplefilter("default")
