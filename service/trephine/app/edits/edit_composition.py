"""Making one edit out of several, and comparing two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trephine.app.edits.edit_requests import Composed
from trephine.app.edits.edit_stacks import EditStacks, require_no_conflict, require_some
from trephine.app.edits.edits import Edits
from trephine.domain.edit_conflicts import EditConflict, EditInUse, joined
from trephine.domain.edit_diff import EditDiff, diff
from trephine.domain.edits import Edit, EditPart
from trephine.domain.live_edits import EditUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """What is to become one edit."""

    edit_id: str
    parts: tuple[EditUse, ...]
    author: str
    reason: str = ""
    """Empty: that it is composed, and of what."""
    evidence: tuple[str, ...] = ()
    """Beside that of the parts."""


class EditComposition:
    """Composes and compares edits."""

    def __init__(self, edits: Edits, stacks: EditStacks) -> None:
        self._edits = edits
        self._stacks = stacks

    async def conflicts(self, parts: Sequence[EditUse]) -> tuple[EditConflict, ...]:
        """Say what stands in the way of a composition; nothing is stored.

        Raises:
            ResourceNotFoundError: If there is no such edit or version.
            InvalidRequestError: If no edit is named, or one twice.
        """
        require_some(parts, field="parts")
        return self._stacks.conflicts(await self._stacks.get(parts, field="parts"))

    async def compose(self, composition: Composition, *, request_id: str = "") -> Edit:
        """Store one edit that does what several do, each at its strength, in their order.

        Raises:
            EditConflictError: If two of them cannot act together; all conflicts are counted.
            ParentChangedError: If the weights or sets that are loaded are not those of the parts.
            TrephineError: As `conflicts` does, and as `Edits.create`.
        """
        require_some(composition.parts, field="parts")
        stack = await self._stacks.get(composition.parts, field="parts")
        require_no_conflict(self._stacks.conflicts(stack))
        return await self._edits.add(_composed(composition, stack), request_id=request_id)

    async def diff(self, first: str, second: str) -> EditDiff:
        """Compare two edits or versions.

        Raises:
            ResourceNotFoundError: If there is no such edit or version.
        """
        return diff(await self._edits.get(first), await self._edits.get(second))


def _composed(composition: Composition, stack: Sequence[EditInUse]) -> Composed:
    first = stack[0].edit
    told = ", ".join(f"{one.edit.reference} at strength {one.strength:g}" for one in stack)
    evidence = [name for one in stack for name in one.edit.evidence]
    return Composed(
        edit_id=composition.edit_id,
        model=first.model,
        interventions=joined(stack),
        reason=composition.reason or f"composed of {told}",
        author=composition.author,
        evidence=tuple(dict.fromkeys((*composition.evidence, *evidence))),
        weight_hash=first.weight_hash,
        sets=tuple({named.name: named for one in stack for named in one.edit.sets}.values()),
        parts=tuple(
            EditPart(
                name=one.edit.name,
                version=one.edit.version,
                content_hash=one.edit.content_hash,
                strength=one.strength,
            )
            for one in stack
        ),
    )
