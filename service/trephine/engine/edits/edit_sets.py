"""The sets of an edit: those that are loaded must be those that it was made for, and go on record."""

from __future__ import annotations

from trephine.domain.edits import Edit, EditSet
from trephine.domain.errors import ParentChangedError
from trephine.domain.sites import NEURONS
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.contexts import sets_of
from trephine.engine.replacements.sets import require_set


def require_same_sets(hosted: HostedModel, edit: Edit) -> None:
    """Refuse an edit whose sets have other content here than when it was made.

    Raises:
        ParentChangedError: With both hashes.
        ReplacementNotFoundError: If a set is not loaded.
    """
    for named in edit.sets:
        found = require_set(hosted, named.name).admitted.content_hash
        if found != named.content_hash:
            raise ParentChangedError(
                f"the edit {edit.name} was made for other features than those of the set {named.name} that "
                "is loaded; load that one, or create the edit again",
                edit_set=named.content_hash,
                loaded_set=found,
            )


def loaded_sets(hosted: HostedModel, edit: Edit) -> tuple[EditSet, ...]:
    """Say which content was loaded of every set that an edit names, by name; neurons are no set.

    Raises:
        ReplacementNotFoundError: If one of them is not loaded.
    """
    names = {named.name for named in edit.sets} | set(sets_of(edit.interventions)) - {NEURONS}
    return tuple(
        EditSet(name=name, content_hash=require_set(hosted, name).admitted.content_hash)
        for name in sorted(names)
    )
