"""Names of groups, which no two groups share, whatever labels and attributes are called."""

from __future__ import annotations

import json


def group_name(label: str, attribute: str) -> str:
    """Return `LABEL/ATTRIBUTE`; a part that holds a slash, or begins with a quotation mark, is quoted.

    So `a` with `b/c` is `a/"b/c"` and `a/b` with `c` is `"a/b"/c`.
    """
    return f"{_part(label)}/{_part(attribute)}"


def _part(name: str) -> str:
    return json.dumps(name, ensure_ascii=False) if "/" in name or name.startswith('"') else name
