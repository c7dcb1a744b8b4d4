"""Pins, labels and groups of a circuit's nodes: set, kept beside the circuit, brought in and out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from trephine.app.circuits.circuit_grouping import found_groups, unique_names
from trephine.app.circuits.circuit_queries import require_node
from trephine.app.circuits.circuits import Circuits, StoredCircuit
from trephine.app.circuits.group_scores import score_groups
from trephine.app.features.labels import LONGEST_AUTHOR, LONGEST_LABEL, require_label
from trephine.app.models.models import Models
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.domain.circuit_annotations import (
    Annotations,
    AutomaticGroups,
    NodeGroup,
    NodeLabel,
    NodePin,
)
from trephine.domain.errors import InvalidRequestError, ResourceNotFoundError
from trephine.domain.group_scores import GroupingScores
from trephine.pages.circuit_annotations import annotations_document, identities, read_document


class CircuitAnnotations:
    """What people say about stored circuits. Names may be `circuits/ID` or `ID`."""

    def __init__(self, circuits: Circuits, models: Models, *, clock: Clock | None = None) -> None:
        self._circuits = circuits
        self._models = models
        self._clock = clock or SystemClock()

    async def get(self, name: str) -> Annotations:
        """Return what was said about a circuit.

        Raises:
            ResourceNotFoundError: If there is no such circuit.
            CorruptRecordError: If the file cannot be read.
        """
        return await self._circuits.annotations(name)

    async def pin(self, name: str, nodes: Iterable[int], author: str) -> Annotations:
        """Pin nodes: pruning keeps them. Pinning again changes nothing.

        Raises:
            InvalidRequestError: If a node does not exist, or the author is unfit.
        """
        stored, wanted = await self._circuits.get(name), sorted(set(nodes))
        for node in wanted:
            require_node(stored.circuit, node, "nodes")
        by, now = _author(author), self._now()

        def change(before: Annotations) -> Annotations:
            new = [NodePin(node=n, author=by, create_time=now) for n in wanted if n not in before.pinned]
            return replace(before, pins=tuple(sorted((*before.pins, *new), key=lambda pin: pin.node)))

        return await self._circuits.annotate(name, change)

    async def unpin(self, name: str, nodes: Iterable[int]) -> Annotations:
        """Take pins off; nodes without a pin are no error."""
        gone = frozenset(nodes)
        return await self._circuits.annotate(
            name, lambda before: replace(before, pins=tuple(p for p in before.pins if p.node not in gone))
        )

    async def label(self, name: str, node: int, text: str, author: str) -> Annotations:
        """Call a node something; an empty text takes the label off.

        Raises:
            InvalidRequestError: If the node does not exist, or text or author are unfit to be shown.
            ResourceNotFoundError: If a label is taken off that is not there.
        """
        stored = await self._circuits.get(name)
        require_node(stored.circuit, node, "node")
        label = None
        if text:
            shown = require_label(text, LONGEST_LABEL, field="text")
            label = NodeLabel(node=node, text=shown, author=_author(author), create_time=self._now())

        def change(before: Annotations) -> Annotations:
            if label is None and node not in before.texts:
                raise ResourceNotFoundError(f"node {node} of {stored.name} has no label", name=stored.name)
            kept = [one for one in before.labels if one.node != node]
            return replace(before, labels=_by_node([*kept, *([label] if label else [])]))

        return await self._circuits.annotate(name, change)

    async def group(self, name: str, group: str, nodes: Iterable[int], author: str) -> Annotations:
        """Make a group of nodes, or make it anew; nodes leave the groups that they were in.

        Raises:
            InvalidRequestError: If there are no nodes, one does not exist, or a text is unfit.
        """
        stored, members = await self._circuits.get(name), tuple(sorted(set(nodes)))
        if not members:
            raise InvalidRequestError("a group needs at least one node", field="by_hand.nodes")
        for node in members:
            require_node(stored.circuit, node, "by_hand.nodes")
        made = NodeGroup(
            name=require_label(group, LONGEST_LABEL, field="by_hand.name"),
            nodes=members,
            author=_author(author),
            create_time=self._now(),
        )
        return await self._circuits.annotate(name, lambda before: _with_groups(before, (made,)))

    async def ungroup(self, name: str, group: str) -> Annotations:
        """Dissolve a group.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """

        def change(before: Annotations) -> Annotations:
            left = tuple(one for one in before.groups if one.name != group)
            if len(left) == len(before.groups):
                names = ", ".join(repr(one.name) for one in before.groups) or "none"
                raise ResourceNotFoundError(f"there is no group {group!r}; there are: {names}", name=name)
            return replace(before, groups=left)

        return await self._circuits.annotate(name, change)

    async def group_automatically(self, name: str, how: AutomaticGroups, author: str) -> Annotations:
        """Group features that read and write alike and are close; groups made by hand keep their nodes.

        Groups that were found before are replaced.

        Raises:
            InvalidRequestError: If a bound is out of its domain, or the circuit is imported and its
                features' directions are not here; group it by its edges.
            NothingMatchedError: If no two features are that similar, or no groups show enough.
            ModelNotReadyError, ReplacementNotFoundError: If the directions are asked for and not loaded.
        """
        stored, by = await self._circuits.get(name), _author(author)
        found = await found_groups(stored, how, self._models)
        now = self._now()
        groups = [replace(one, author=by, create_time=now) for one in found]

        def change(before: Annotations) -> Annotations:
            by_hand = tuple(one for one in before.groups if not one.how)
            taken = {node for one in by_hand for node in one.nodes}
            left = Annotations(groups=tuple(groups)).without_nodes(taken)
            several = unique_names(left, {one.name for one in by_hand})
            return replace(before, groups=(*by_hand, *several))

        return await self._circuits.annotate(name, change)

    async def group_scores(self, name: str) -> GroupingScores:
        """Score a circuit's groups, found or made by hand, beside partitions of the same sizes.

        Raises:
            InvalidRequestError: If no group has two nodes.
            UnsupportedOptionError: If the circuit is too large.
        """
        stored, said = await self._circuits.get(name), await self.get(name)
        return await asyncio.to_thread(score_groups, stored.circuit, said.groups)

    async def export_document(self, name: str) -> dict[str, Any]:
        """Return everything that was said, nodes by their ids in the Neuronpedia schema."""
        stored = await self._circuits.get(name)
        return annotations_document(stored.circuit, await self.get(name))

    async def import_document(
        self, name: str, document: Mapping[str, Any], author: str
    ) -> tuple[Annotations, tuple[str, ...]]:
        """Add what a document says: of `export_document`, a graph file, or its `qParams`.

        Returns:
            What is said now, and the ids in the document that the circuit does not have.

        Raises:
            InvalidRequestError: If it is no such document, a text is unfit, or no id is in the circuit.
        """
        stored = await self._circuits.get(name)
        by, now = _author(author), self._now()
        said, skipped = await asyncio.to_thread(
            read_document, document, identities(stored.circuit), author=by, now=now
        )
        _require_texts(said)
        if said == Annotations():
            raise InvalidRequestError(_why_nothing(stored, skipped), field="document")
        return await self._circuits.annotate(name, lambda before: merged(before, said)), skipped

    def _now(self) -> str:
        return timestamp(self._clock.now())


def merged(before: Annotations, new: Annotations) -> Annotations:
    """Add annotations to others; the new ones win, but what was said already keeps its author."""
    pins = {pin.node: pin for pin in (*new.pins, *before.pins)}
    labels = {label.node: label for label in before.labels}
    labels |= {one.node: one for one in new.labels if before.texts.get(one.node) != one.text}
    said = Annotations(pins=_by_node(pins.values()), labels=_by_node(labels.values()), groups=before.groups)
    for one in new.groups:  # in turn: of two with one name, or one node, the later has it
        if (one.name, one.nodes) not in {(each.name, each.nodes) for each in said.groups}:
            said = _with_groups(said, (one,))
    return said


def _by_node(said: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(said, key=lambda one: one.node))


def _with_groups(before: Annotations, new: tuple[NodeGroup, ...]) -> Annotations:
    names, taken = {one.name for one in new}, {node for one in new for node in one.nodes}
    left = (one for one in before.without_nodes(taken) if one.name not in names)
    return replace(before, groups=(*left, *new))


def _author(author: str) -> str:
    return require_label(author, LONGEST_AUTHOR, field="author") if author else ""


def _require_texts(said: Annotations) -> None:
    for text in (*said.texts.values(), *(group.name for group in said.groups)):
        require_label(text, LONGEST_LABEL, field="document")
    for author in {one.author for several in (said.pins, said.labels, said.groups) for one in several}:
        _author(author)


def _why_nothing(stored: StoredCircuit, skipped: tuple[str, ...]) -> str:
    if skipped:
        shown = ", ".join(skipped[:3])
        return f"{stored.name} has none of the document's nodes ({shown}, ...): is it of another circuit?"
    return "there is no pin, no label and no group in it; write pinnedIds, clerps or supernodes"
