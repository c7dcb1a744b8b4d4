"""Graphs of other tools: files of the circuit-tracer / Neuronpedia schema as read-only circuits.

Source of the schema: circuit-tracer 0.5.0, `frontend/graph_models.py`. Error nodes may have the older id
`0_{layer}_{position}` or the newer `{layer}_-1_{position}`; we write -2 and below for other sites of a layer
than its MLP (`domain.error_sites`), and `{layer}_{feature}_{position}_{n}` for features of a further set, by
its place in the scan, `MODEL/SET+SET` (`pages.circuit_json`). The older one is also the id of a feature of
layer 0; where a file has both, a link from that id is the feature's if its target lies too low for the
error, or if it is the first of two to that target (files list features first), and the count of what stays
open becomes a caveat.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from trephine.app.circuits.circuit_columns import array_of
from trephine.app.circuits.imported_figures import imported_figures, told_error_share
from trephine.app.circuits.imported_influence import OF_LINKS, with_influence, with_shares
from trephine.app.circuits.imported_nodes import Figure, with_told
from trephine.app.circuits.imported_targets import imported_targets
from trephine.domain.circuits import (
    Circuit,
    CircuitFigures,
    EdgeRule,
    Edges,
    GraphSet,
    Node,
    NodeKind,
)
from trephine.domain.errors import InvalidRequestError
from trephine.domain.targets import ExplainedTarget
from trephine.domain.tokens import Token

LARGEST_FILE = 512 << 20
"""Bytes of a graph file; the largest that Neuronpedia serves are about 100 MB."""

_KINDS = {
    "mlp reconstruction error": NodeKind.ERROR,
    "embedding": NodeKind.TOKEN,
    "logit": NodeKind.LOGIT,
}
"""By `feature_type`; every other type is some kind of feature."""
_ORDER = (NodeKind.FEATURE, NodeKind.ERROR, NodeKind.TOKEN, NodeKind.LOGIT)
_LAST = _ORDER.index(NodeKind.LOGIT)
_IMPORTED = "Imported from a file: nothing about it was verified here; influences follow from its edges."
_IMPORTED_SHARES = (
    "Imported from a file: nothing about it was verified here; figures and influences are the file's."
)

_BEFORE = "What follows was said of the graph that the file was written from; the file may hold a part of it."
_OF_IMPORTS = (_IMPORTED, _IMPORTED_SHARES, _BEFORE)


class _FileNode(BaseModel):
    """A node as the file has it; what we do not read is ignored."""

    node_id: str
    layer: str
    ctx_idx: int
    feature_type: str
    token_prob: float | None = None
    is_target_logit: bool | None = None
    clerp: str | None = None
    activation: float | None = None


class _FileLink(BaseModel):
    source: str
    target: str
    weight: Figure


class _FileMetadata(BaseModel):
    scan: str
    prompt: str
    prompt_tokens: list[str]
    info: dict[str, Any] | None = None


class _File(BaseModel):
    metadata: _FileMetadata
    nodes: list[_FileNode]
    links: list[_FileLink]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedGraph:
    """What a file holds."""

    circuit: Circuit
    document: Mapping[str, Any]
    """The file as parsed; its `qParams` may hold annotations."""
    generator: str
    """Who wrote it, as far as it says."""


def read_graph(data: bytes) -> ImportedGraph:
    """Read a graph file.

    Raises:
        InvalidRequestError: If it is no such file, or its graph has holes, doubles or a cycle.
    """
    document, file = _parsed(data)
    measured = imported_figures(_told(file.metadata))
    nodes, places = _nodes(file, targets_needed=measured is None)
    edges, doubtful = _edges(file, nodes, places)
    told, rows = with_told(nodes, _in_order(places), edges, _told(file.metadata))
    model, (replacement, *beside) = _model(file.metadata), _sets(file.metadata)
    targets, asked = imported_targets(told, _told(file.metadata))
    shares = None if measured is None else measured.of(_in_order(places))
    caveats = [_IMPORTED if shares is None else _IMPORTED_SHARES]
    if doubtful:
        caveats.append(
            f"{doubtful} links start at an id that a feature of layer 0 and an error node share in the file; "
            "they were given to the feature."
        )
    caveats += _told_caveats(file.metadata)
    circuit = Circuit(
        prompt=file.metadata.prompt,
        tokens=_tokens(file.metadata, nodes) if measured is None else _everywhere(file.metadata),
        targets=targets,
        asked=asked,
        replacement=replacement,
        beside=tuple(GraphSet(name=name) for name in beside),
        edge_rule=_edge_rule(file.metadata),
        nodes=told,
        edges=edges,
        rows=rows,
        quality=None,
        figures=_figures(nodes, targets),
        model=model,
        weight_hash=str((file.metadata.info or {}).get("weight_hash", "")),
        caveats=tuple(caveats),
        across=None if measured is None else measured.across,
    )
    return ImportedGraph(
        circuit=with_influence(circuit, told_error_share(_told(file.metadata)))
        if shares is None
        else with_shares(circuit, shares),
        document=document,
        generator=_generator(file.metadata),
    )


def _parsed(data: bytes) -> tuple[Mapping[str, Any], _File]:
    try:
        document = json.loads(data)
        return document, _File.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidRequestError(
            f"the file is no graph of the circuit-tracer schema: {where}: {first['msg']}", field="artifact"
        ) from error
    except ValueError as error:
        raise InvalidRequestError(f"the file is no JSON: {error}", field="artifact") from error
    except RecursionError as error:
        raise InvalidRequestError(
            "the file is no graph: its JSON is nested deeper than any of the schema", field="artifact"
        ) from error


# --- nodes ----------------------------------------------------------------------------------------


def _nodes(file: _File, *, targets_needed: bool) -> tuple[list[Node], dict[str, list[int]]]:
    """Return the nodes in a circuit's order, and the places of every id of the file."""
    read = [(_node(one, file.metadata), one.node_id) for one in file.nodes]
    if targets_needed and not any(node.kind is NodeKind.LOGIT for node, _ in read):
        raise InvalidRequestError("the graph has no target: no node of the type `logit`", field="artifact")
    # Sorting is stable: targets stay in the file's order, the explained one first.
    read.sort(key=lambda pair: _address(pair[0]) if pair[0].kind is not NodeKind.LOGIT else (_LAST,))
    nodes = [node for node, _ in read]
    doubled = [address for address, count in Counter(map(_address, nodes)).items() if count > 1]
    if doubled:
        raise InvalidRequestError(f"{len(doubled)} nodes are in the file twice", field="artifact")
    places: dict[str, list[int]] = {}
    for place, (_, identity) in enumerate(read):
        places.setdefault(identity, []).append(place)
    return nodes, places


def _in_order(places: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the id of every node, in a circuit's order."""
    return [identity for _, identity in sorted((at, one) for one, of in places.items() for at in of)]


def _address(node: Node) -> tuple[int | str, ...]:
    return _ORDER.index(node.kind), node.layer, node.position, node.feature, node.replacement


def _node(found: _FileNode, metadata: _FileMetadata) -> Node:
    kind = _KINDS.get(found.feature_type, NodeKind.FEATURE)
    if not 0 <= found.ctx_idx < len(metadata.prompt_tokens):
        raise InvalidRequestError(
            f"node {found.node_id} lies at position {found.ctx_idx} of {len(metadata.prompt_tokens)} tokens",
            field="artifact",
        )
    layer = -1 if kind is NodeKind.TOKEN else _number(found.layer, found)
    probability = found.token_prob if found.token_prob is not None else nan
    activation = found.activation if found.activation is not None else nan
    return Node(
        kind=kind,
        # The file puts targets one layer above the model's last plus one.
        layer=layer - 1 if kind is NodeKind.LOGIT else layer,
        position=found.ctx_idx,
        feature=_error_number(found) if kind is NodeKind.ERROR else _number(_middle(found), found),
        replacement=_set_of(found, _sets(metadata)) if kind is NodeKind.FEATURE else "",
        activation={NodeKind.FEATURE: activation, NodeKind.LOGIT: probability}.get(kind, 0.0),
        influence=0.0,
        effect=nan,
        label=found.clerp or "",
        promotes=(),
        suppresses=(),
    )


def _middle(found: _FileNode) -> str:
    parts = found.node_id.split("_")
    return parts[1] if len(parts) in (3, 4) else ""


def _set_of(found: _FileNode, sets: Sequence[str]) -> str:
    """Return the set that a feature's id names: the first where it names none."""
    parts = found.node_id.split("_")
    if len(parts) != 4:
        return sets[0]
    place = _number(parts[3], found)
    if not 0 < place < len(sets):
        raise InvalidRequestError(
            f"node {found.node_id!r} is of set {place}, and the scan names {len(sets)}, from 0",
            field="artifact",
        )
    return sets[place]


def _error_number(found: _FileNode) -> int:
    """Return -1 but where the id has a number of its own; the older id's middle is a layer."""
    middle = _middle(found)
    return int(middle) if re.fullmatch(r"-[1-9]", middle) else -1


def _number(text: str, found: _FileNode) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InvalidRequestError(
            f"node {found.node_id!r} has no id like LAYER_FEATURE_POSITION with a layer that is a number",
            field="artifact",
        ) from error


# --- edges ----------------------------------------------------------------------------------------


def _edges(file: _File, nodes: Sequence[Node], places: Mapping[str, list[int]]) -> tuple[Edges, int]:
    """Return the edges, by target, and how many could not be told apart."""
    seen: Counter[tuple[str, str]] = Counter()
    doubtful, found = 0, []
    for link in file.links:
        if link.source not in places or link.target not in places:
            raise InvalidRequestError(
                f"a link goes from {link.source!r} to {link.target!r}, which are not both nodes",
                field="artifact",
            )
        target = places[link.target][0]  # features before errors, and nothing enters an error
        sources = places[link.source]
        nth = seen[link.source, link.target]
        seen[link.source, link.target] += 1
        able = (
            [one for one in sources if nodes[one].layer < nodes[target].layer]
            if len(sources) > 1
            else sources
        )
        if nth >= max(1, len(able)):
            raise InvalidRequestError(
                f"{link.source} -> {link.target} is in the file twice", field="artifact"
            )
        doubtful += len(able) > 1 and not nth
        doubtful -= len(able) > 1 and nth == 1  # both are there: the first is the feature's
        found.append((target, able[nth] if able else sources[0], link.weight))
    found.sort()
    targets, starts, weights = zip(*found, strict=True) if found else ((), (), ())
    return (
        Edges(
            source=array_of(np.asarray(starts, "<i4")),
            target=array_of(np.asarray(targets, "<i4")),
            weight=array_of(np.asarray(weights, "<f4")),
        ),
        doubtful,
    )


# --- the rest -------------------------------------------------------------------------------------


def _model(metadata: _FileMetadata) -> str:
    """Return the model. Foreign files name it and the set at once by their scan."""
    return metadata.scan.partition("/")[0] if _is_ours(metadata) else metadata.scan


def _sets(metadata: _FileMetadata) -> list[str]:
    """Return the names of the sets, of which there is at least one. What they held stays unverified."""
    if not _is_ours(metadata):
        return [metadata.scan]
    return metadata.scan.partition("/")[2].split("+")


def _is_ours(metadata: _FileMetadata) -> bool:
    return _generator(metadata) == "trephine" and "/" in metadata.scan


def _told(metadata: _FileMetadata) -> Mapping[str, Any]:
    """Return what a file of ours says beyond the schema."""
    return (metadata.info or {}) if _is_ours(metadata) else {}


def _told_caveats(metadata: _FileMetadata) -> list[str]:
    """Return what a file of ours says that a reader must know, and what it is said of."""
    found = _told(metadata).get("caveats")
    told = [one for one in (found if isinstance(found, list) else []) if isinstance(one, str)]
    said = [one for one in told if one not in _OF_IMPORTS and not one.endswith(OF_LINKS)]
    return [_BEFORE, *said] if said else []


def _generator(metadata: _FileMetadata) -> str:
    generator = (metadata.info or {}).get("generator")
    name = generator.get("name") if isinstance(generator, Mapping) else generator
    return name if isinstance(name, str) else "unknown"


def _edge_rule(metadata: _FileMetadata) -> EdgeRule:
    generator = (metadata.info or {}).get("generator")
    rule = generator.get("edge_rule") if isinstance(generator, Mapping) else None
    return rule if rule in ("exact", "relp_half", "twera", "era") else "unknown"


def _tokens(metadata: _FileMetadata, nodes: Sequence[Node]) -> tuple[Token, ...]:
    ids = {node.position: node.feature for node in nodes if node.kind is NodeKind.TOKEN}
    return tuple(
        Token(id=ids.get(place, -1), raw=text.encode("utf-8", "replace"), display=text)
        for place, text in enumerate(metadata.prompt_tokens)
    )


def _everywhere(metadata: _FileMetadata) -> tuple[Token, ...]:
    """Return the tokens of a global circuit, which stand for no token of the model."""
    return tuple(Token(id=-1, raw=b"", display=text) for text in metadata.prompt_tokens)


def _figures(nodes: Sequence[Node], targets: Sequence[ExplainedTarget]) -> CircuitFigures:
    """What is explained, where all targets say so; nothing else is known of a file."""
    features = sum(node.kind is NodeKind.FEATURE for node in nodes)
    return CircuitFigures(
        baseline=sum(target.share * target.value for target in targets) if targets else nan,
        selected_share=nan,
        error_share=nan,
        active_features=features,
        selected_features=features,
        seconds=0.0,
        peak_extra_bytes=0,
    )
