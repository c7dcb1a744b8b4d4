"""Resource names: `collection/id`, and which ids are allowed."""

from __future__ import annotations

import re

from trephine.domain.errors import InvalidRequestError

_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_NEW_ID = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")


def resource(collection: str, resource_id: str) -> str:
    """Return the resource name of an id: `circuits/3f..`."""
    return f"{collection}/{resource_id}"


def id_in(collection: str, name: str) -> str:
    """Return the id of a resource name; the bare id is accepted too.

    The id is safe as a file name: no separator, no leading dot.

    Raises:
        InvalidRequestError: If it is no name of that collection.
    """
    identifier = name.removeprefix(f"{collection}/")
    if not _ID.fullmatch(identifier):
        raise InvalidRequestError(
            f"{name!r} is not a name like {collection}/ID, with letters, digits, dots and dashes",
            field="name",
        )
    return identifier


def require_new_id(value: str, *, field: str) -> str:
    """Return an id that a caller chose, if it is fit to become a name.

    Raises:
        InvalidRequestError: Unless it consists of lower case letters, digits, dashes and inner dots.
    """
    if not _NEW_ID.fullmatch(value) or ".." in value or value.endswith(".rejected"):
        raise InvalidRequestError(
            f"{value!r} cannot be a name: use up to 63 lower case letters, digits, dashes and inner dots",
            field=field,
        )
    return value
