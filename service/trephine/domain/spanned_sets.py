"""Which replacement sets an explanation may span together."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.domain.errors import InvalidRequestError
from trephine.domain.sites import NEURONS


def check_spanned_sets(replacement: str, beside: Sequence[str]) -> None:
    """Refuse a set that is named twice, and neurons as the first of several.

    Raises:
        InvalidRequestError: Naming the field.
    """
    sets = (replacement, *beside)
    twice = sorted({name for name in sets if sets.count(name) > 1})
    if twice:
        raise InvalidRequestError(f"{', '.join(twice)} is named twice; name it once", field="beside")
    if beside and replacement == NEURONS:
        raise InvalidRequestError(
            "neurons are what is left where no set reconstructs an MLP: name a set as the replacement, and "
            "neurons beside it",
            field="replacement",
        )
