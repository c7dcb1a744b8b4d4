"""Annotations of a circuit as `qParams` of the Neuronpedia schema, with who said what beside.

`pinnedIds` and `supernodes` (`[[name, id, ...], ...]`) are circuit-tracer's; `clerps` (`[[id, label], ...]`)
is what Neuronpedia adds. `authorship` is ours; other readers ignore it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trephine.domain.circuit_annotations import Annotations, NodeGroup, NodeLabel, NodePin
from trephine.domain.circuits import Circuit, NodeKind
from trephine.domain.errors import InvalidRequestError
from trephine.pages.circuit_json import node_ids, view_of

Said = tuple[str, str]
"""Who, and when."""


def identities(circuit: Circuit) -> dict[str, int]:
    """Return a circuit's nodes by their ids; error nodes by their older ids too, where no other node has it.

    Older are `0_{layer}_{position}`, and `{layer}_-1_{position}` for errors of other sites than the MLP's.
    """
    known = {identity: node for node, identity in enumerate(node_ids(circuit))}
    errors = [(index, node) for index, node in enumerate(circuit.nodes) if node.kind is NodeKind.ERROR]
    for index, node in sorted(errors, key=lambda pair: -pair[1].feature):  # the MLP's first
        known.setdefault(f"{node.layer}_-1_{node.position}", index)
        known.setdefault(f"0_{node.layer}_{node.position}", index)
    return known


def annotations_document(circuit: Circuit, annotations: Annotations) -> dict[str, Any]:
    """Return all annotations with their authors; `read_document` reads it back."""
    ids, view = node_ids(circuit), view_of(circuit, annotations)
    return {
        **{name: view[name] for name in ("pinnedIds", "supernodes", "clerps")},
        "authorship": {
            "pins": {ids[one.node]: [one.author, one.create_time] for one in annotations.pins},
            "labels": {ids[one.node]: [one.author, one.create_time] for one in annotations.labels},
            "groups": {one.name: [one.author, one.create_time, one.how] for one in annotations.groups},
        },
    }


def read_document(
    document: Mapping[str, Any], nodes: Mapping[str, int], *, author: str, now: str
) -> tuple[Annotations, tuple[str, ...]]:
    """Read annotations, of our document, a graph's, or its `qParams`.

    Args:
        document: As parsed from JSON.
        nodes: Node by id.
        author: Of what names no author.
        now: When that was said.

    Returns:
        The annotations, and ids that are no node, each once.

    Raises:
        InvalidRequestError: If it has not that form.
    """
    view = document.get("qParams", document)
    if not isinstance(view, Mapping):
        raise InvalidRequestError("qParams must be a JSON object", field="document")
    said = view.get("authorship", {})
    authors = said if isinstance(said, Mapping) else {}
    pinned, labels = _texts(view, "pinnedIds"), list(_labels(view))
    groups = _groups(view)
    named = [*pinned, *(one for one, _ in labels), *(one for group in groups for one in group[1:])]
    skipped = tuple(dict.fromkeys(one for one in named if one not in nodes))
    return (
        Annotations(
            pins=tuple(
                NodePin(node=nodes[one], author=by, create_time=when)
                for one in dict.fromkeys(pinned)
                if one in nodes
                for by, when in [_by(authors, "pins", one, (author, now))]
            ),
            labels=tuple(
                NodeLabel(node=nodes[one], text=text, author=by, create_time=when)
                for one, text in dict(labels).items()
                if one in nodes
                for by, when in [_by(authors, "labels", one, (author, now))]
            ),
            groups=tuple(
                left
                for name, *ids in groups
                for by, when in [_by(authors, "groups", name, (author, now))]
                for said_so in [
                    NodeGroup(name=name, nodes=(), author=by, create_time=when, how=_how(authors, name))
                ]
                if (left := _members(said_so, ids, nodes)) is not None
            ),
        ),
        skipped,
    )


def _members(group: NodeGroup, ids: Sequence[str], nodes: Mapping[str, int]) -> NodeGroup | None:
    """Fill a group with the nodes that are here; None if they are too few."""
    named = set(ids)
    return group.left_with({nodes[one] for one in named if one in nodes}, len(named - nodes.keys()))


def _by(authors: Mapping[str, Any], kind: str, key: str, otherwise: Said) -> Said:
    found = authors.get(kind)
    said = found.get(key) if isinstance(found, Mapping) else None
    if isinstance(said, list) and len(said) >= 2 and all(isinstance(one, str) for one in said[:2]):
        return said[0], said[1]
    return otherwise


def _how(authors: Mapping[str, Any], name: str) -> str:
    """How a group was found; empty for one that was made by hand, or of a foreign file."""
    groups = authors.get("groups")
    said = groups.get(name) if isinstance(groups, Mapping) else None
    return said[2] if isinstance(said, list) and len(said) > 2 and isinstance(said[2], str) else ""


def _texts(view: Mapping[str, Any], name: str) -> list[str]:
    found = view.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise InvalidRequestError(f"{name} must be a list of node ids", field="document")
    return found


def _groups(view: Mapping[str, Any]) -> list[list[str]]:
    found = view.get("supernodes") or []
    if not isinstance(found, list) or not all(_is_texts(one) for one in found):
        raise InvalidRequestError("supernodes must be a list of [name, node id, ...]", field="document")
    return found


def _labels(view: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    found = view.get("clerps") or []
    pairs = [list(pair) for pair in found.items()] if isinstance(found, Mapping) else found
    if not isinstance(pairs, list) or not all(_is_texts(one) and len(one) == 2 for one in pairs):
        raise InvalidRequestError("clerps must be a list of [node id, label]", field="document")
    yield from ((one, text) for one, text in pairs if text)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
