"""The report as JSON: every field, exactly, in the order of the domain's values."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from trephine.domain.findings import AuditReport

SCHEMA = "trephine.audit.v1"

_REPORT = TypeAdapter(AuditReport)


def json_report(report: AuditReport) -> bytes:
    """Encode the report as ASCII JSON.

    Half a surrogate pair, which no UTF-8 can hold, becomes U+FFFD; all other text survives as it is.
    """
    return encode({"schema": SCHEMA, **_REPORT.dump_python(report)})


def encode(value: Any) -> bytes:
    """Encode as ASCII JSON with a final newline.

    Raises:
        ValueError: If a number is not finite: JSON has no way to write it.
    """
    text = json.dumps(_whole(value), ensure_ascii=True, allow_nan=False, indent=2)
    return text.replace("\x7f", "\\u007f").encode("ascii") + b"\n"


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return value
