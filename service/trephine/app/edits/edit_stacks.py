"""Several edits at once: each at its strength, for the weights and sets that are loaded, without conflict."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.app.edits.edits import Edits
from trephine.app.models.models import Models
from trephine.app.sets.replacements import Replacements
from trephine.domain.edit_conflicts import EditConflict, EditInUse, find_conflicts
from trephine.domain.edit_order import LayerPlaces, Places
from trephine.domain.edit_strength import at_strength
from trephine.domain.edit_weights import require_weights
from trephine.domain.edits import Edit
from trephine.domain.errors import (
    EditConflictError,
    InvalidRequestError,
    ParentChangedError,
    ReplacementNotFoundError,
    TrephineError,
)
from trephine.domain.interventions import FeatureTarget
from trephine.domain.live_edits import EditUse, require_different
from trephine.domain.replacements import ReplacementSetInfo
from trephine.domain.sites import NEURONS

_TOLD = 3


class EditStacks:
    """Finds edits by name and says whether they can act together."""

    def __init__(self, edits: Edits, models: Models, replacements: Replacements) -> None:
        self._edits = edits
        self._models = models
        self._replacements = replacements

    async def get(self, uses: Sequence[EditUse], *, field: str) -> tuple[EditInUse, ...]:
        """Read edits and scale them.

        Raises:
            ResourceNotFoundError: If there is no such edit or version.
            InvalidRequestError: If an edit is named twice.
            UnsupportedInterventionError: If an edit has no strength but 1.
        """
        require_different(tuple(uses), field=field)
        return tuple([await self._in_use(use, f"{field}[{place}]") for place, use in enumerate(uses)])

    async def for_model(self, uses: Sequence[EditUse], model: str, *, field: str) -> tuple[EditInUse, ...]:
        """Read edits that are to act together on a loaded model.

        Raises:
            ParentChangedError: If one was made for other weights, or for other features of a set.
            ReplacementNotFoundError: If a set is not loaded.
            EditConflictError: If two cannot act together.
            TrephineError: As `get` does.
        """
        stack = await self.get(uses, field=field)
        for place, one in enumerate(stack):
            await self._require_made_for(one.edit, model, f"{field}[{place}].edit")
        require_no_conflict(self.conflicts(stack, model))
        return stack

    def conflicts(self, stack: Sequence[EditInUse], model: str | None = None) -> tuple[EditConflict, ...]:
        """Compare every two edits; sets are those beside the model, or beside the first edit's own."""
        if len(stack) < 2:
            return ()
        return find_conflicts(stack, self._places(stack, model or stack[0].edit.model))

    async def _in_use(self, use: EditUse, field: str) -> EditInUse:
        try:
            edit = await self._edits.get(use.edit)
            return EditInUse(
                edit=edit, strength=use.strength, interventions=at_strength(edit.interventions, use.strength)
            )
        except TrephineError as error:
            raise error.with_field(f"{field}.edit") from None

    async def _require_made_for(self, edit: Edit, model: str, field: str) -> None:
        info = await self._models.info(model)
        require_weights(edit, info.name, info.weight_hash, field=field)
        for named in edit.sets:
            loaded = self._loaded(edit, named.name, model)
            if loaded.content_hash != named.content_hash:
                raise ParentChangedError(
                    f"the edit {edit.name} was made for other features than those of the set {named.name} "
                    "that is loaded; load that one, or create the edit again",
                    field=field,
                    edit_set=named.content_hash,
                    loaded_set=loaded.content_hash,
                )

    def _loaded(self, edit: Edit, name: str, model: str) -> ReplacementSetInfo:
        """Return a set that an edit needs."""
        needs = f"the edit {edit.name} needs the set {name}, which"
        try:
            entry = self._replacements.entry(name, model)
        except ReplacementNotFoundError:
            raise ReplacementNotFoundError(
                f"{needs} is not loaded beside {model}; load it, or serve without this edit", replacement=name
            ) from None
        if entry.info is None or entry.state != "loaded":
            raise ReplacementNotFoundError(
                f"{needs} could not be loaded again: {entry.why}. Load it again", replacement=name
            )
        return entry.info

    def _places(self, stack: Sequence[EditInUse], model: str) -> Places:
        """Where features are read and write, of sets that are loaded."""
        targets = [i.target for one in stack for i in one.interventions]
        conditions = [i.condition for one in stack for i in one.interventions]
        names = {target.feature.replacement for target in targets if isinstance(target, FeatureTarget)}
        names |= {condition.feature.replacement for condition in conditions if condition is not None}
        found: dict[tuple[str, int], LayerPlaces] = {}
        for name in sorted(names - {NEURONS}):
            info = self._replacements.entry(name, model).info
            for layer in () if info is None else info.layers:
                found[name, layer.layer] = LayerPlaces(source=layer.site_in, outputs=layer.sites_out)
        return found


def require_no_conflict(conflicts: Sequence[EditConflict]) -> None:
    """Refuse edits that cannot act together.

    Raises:
        EditConflictError: With the first conflict in its context and the first few in its message.
    """
    if not conflicts:
        return
    first = conflicts[0]
    more = f"; and {len(conflicts) - _TOLD} more" if len(conflicts) > _TOLD else ""
    raise EditConflictError(
        f"{'; '.join(map(str, conflicts[:_TOLD]))}{more}",
        kind=first.kind.value,
        target=first.target,
        positions=first.positions,
        first=first.first,
        second=first.second,
        first_intervention=first.first_intervention,
        second_intervention=first.second_intervention,
        conflicts=len(conflicts),
    )


def require_some(uses: Sequence[EditUse], *, field: str) -> None:
    """Refuse a composition of nothing.

    Raises:
        InvalidRequestError: If no edit is named.
    """
    if not uses:
        raise InvalidRequestError("at least one edit is needed", field=field)
