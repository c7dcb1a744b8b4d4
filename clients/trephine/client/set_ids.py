"""Names of replacement sets: requests carry ids; callers give an id, a name, or the set itself."""

from __future__ import annotations

from typing import Protocol

from trephine.client.errors import InvalidRequestError


class NamedSet(Protocol):
    """A set as a value: a handle of one that is loaded, or what a server says of it."""

    @property
    def name(self) -> str:
        """Resource name, `models/MODEL/replacements/SET`."""
        ...

    @property
    def set_id(self) -> str:
        """What its features are addressed by."""
        ...


AnySet = str | NamedSet
"""`small`, `replacements/small`, `models/tiny/replacements/small`, or a set that was loaded."""


def set_id(given: AnySet, model: str = "") -> str:
    """Return what a set is called in requests; ids pass as they are, for `neurons` and `heads` are such.

    Args:
        given: The set.
        model: Name of the model that is asked; empty: any.

    Raises:
        InvalidRequestError: If the name is that of a set beside another model, or no name of a set.
    """
    text = given if isinstance(given, str) else given.name
    owner, slash, identifier = text.removeprefix("models/").rpartition("replacements/")
    if not slash:
        identifier = text
    elif owner and model and owner.strip("/") != model.removeprefix("models/"):
        raise InvalidRequestError(
            f"{text} is loaded beside another model than {model}; load it beside this one, and name that",
            field="replacement",
        )
    if "/" in identifier:
        raise InvalidRequestError(
            f"{text!r} names no loaded set: give its id (small), its name (models/MODEL/replacements/small) "
            "or the set itself, as model.replacements() lists them; load_replacements opens a folder",
            field="replacement",
        )
    return identifier
