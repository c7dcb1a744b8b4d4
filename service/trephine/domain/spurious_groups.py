"""Names of groups, which no two groups share, whatever labels and attributes are called."""

from __future__ import annotations

import json


def group_name(label: str, attribute: str) -> str:
    """Return `LABEL/ATTRIBUTE`; a part that holds a slash, or begins with a quotation mark, is quoted.

    So `a` with `b/c` is `a/"b/c"` and `a/b` with `c` is `"a/b"/c`.
    """
    return f"{group_part(label)}/{group_part(attribute)}"


def group_part(name: str) -> str:
    """Return a label or an attribute as it stands in a group's name."""
    return json.dumps(name, ensure_ascii=False) if "/" in name or name.startswith('"') else name
