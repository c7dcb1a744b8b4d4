"""JSON of files that anybody may have written."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON; nesting that Python cannot follow is a fault of the text, as any other is.

    Args:
        text: A document.
        options: Those of `json.loads`.

    Raises:
        ValueError: If it is no JSON, or is nested too deeply.
    """
    try:
        return json.loads(text, **options)
    except RecursionError as failure:
        raise ValueError("brackets within brackets, too many of them") from failure
