"""Names of groups, which no two groups share, whatever labels and attributes are called."""

from __future__ import annotations

import json
from collections.abc import Iterable

from trephine.domain.errors import InvalidRequestError
from trephine.domain.spurious_repeats import as_written


def group_name(label: str, attribute: str) -> str:
    """Return `LABEL/ATTRIBUTE`; a part that holds a slash, or begins with a quotation mark, is quoted.

    So `a` with `b/c` is `a/"b/c"` and `a/b` with `c` is `"a/b"/c`.
    """
    return f"{group_part(label)}/{group_part(attribute)}"


def group_part(name: str) -> str:
    """Return a label or an attribute as it stands in a group's name."""
    return json.dumps(name, ensure_ascii=False) if "/" in name or name.startswith('"') else name


def require_apart(names: Iterable[str], what: str, field: str) -> None:
    """Refuse two names that look alike: half of a group would be another one.

    Args:
        names: Of labels, or of values of the attribute.
        what: They are, in words.
        field: As errors name it.

    Raises:
        InvalidRequestError: If two differ in case, blanks or characters that cannot be seen alone.
    """
    seen: dict[str, str] = {}
    for name in sorted(names):
        other = seen.setdefault(as_written(name).casefold(), name)
        if other != name:
            raise InvalidRequestError(
                f"the {what} {other!a} and {name!a} differ in case, blanks or characters that cannot be seen "
                "alone, and would count as two: write one of them everywhere",
                field=field,
            )
