"""Stored circuits: one folder each, read in pages, pruned and rendered on demand."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, overload
from uuid import uuid4

import numpy as np
import structlog
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from trephine.app.circuits.circuit_columns import columns_of, with_columns, without_columns
from trephine.app.circuits.circuit_pruning import shown_nodes
from trephine.app.circuits.pruning import numbers
from trephine.app.storage.artifacts import ArtifactStore
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.app.storage.files import TEMPORARY, full_disk_is_typed, publish_folder, sweep, write_whole
from trephine.app.storage.names import id_in, resource
from trephine.app.storage.records import decode, encode
from trephine.app.storage.results import newest_first
from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.circuit_annotations import NO_ANNOTATIONS, Annotations
from trephine.domain.circuit_queries import DISCOVERED, EVERY_CIRCUIT, CircuitFilter, Provenance
from trephine.domain.circuits import Circuit, Edges, Node, NodeKind, PrunedNodes, Rows
from trephine.domain.error_sites import numbered
from trephine.domain.errors import CorruptRecordError, ResourceNotFoundError
from trephine.domain.features import FeatureDescription
from trephine.domain.sites import FeatureRef
from trephine.pages.circuit_graphml import circuit_graphml
from trephine.pages.circuit_json import circuit_json, view_of
from trephine.pages.circuit_page import circuit_html

CircuitFormat = Literal["json", "html", "graphml"]
Forget = Callable[[str], Awaitable[None]]

_HEADER, _NUMBERS, _ANNOTATIONS = "circuit.json", "numbers.safetensors", "annotations.json"
_KEPT_OPEN = 8
"""Circuits kept in memory for paging."""
_log = structlog.get_logger("trephine.circuits")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCircuit:
    """A circuit with its resource name, `circuits/ID`."""

    name: str
    create_time: str
    circuit: Circuit
    provenance: Provenance = DISCOVERED


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedNode:
    """A node with its index, and what enters it if it is a target row."""

    index: int
    node: Node
    bias: float | None
    remainder: float | None
    total: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedEdge:
    """One edge."""

    source: int
    target: int
    weight: float


class EdgeList(Sequence[ListedEdge]):
    """Edges of a circuit in a given order, made into values only where they are looked at."""

    def __init__(self, edges: Edges, order: NDArray[np.int64]) -> None:
        self._source, self._target = numbers(edges.source), numbers(edges.target)
        self._weight = numbers(edges.weight)
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> ListedEdge: ...

    @overload
    def __getitem__(self, index: slice) -> list[ListedEdge]: ...

    def __getitem__(self, index: int | slice) -> ListedEdge | list[ListedEdge]:
        if isinstance(index, slice):
            return [self._edge(int(edge)) for edge in self._order[index]]
        return self._edge(int(self._order[index]))

    def _edge(self, edge: int) -> ListedEdge:
        return ListedEdge(
            source=int(self._source[edge]), target=int(self._target[edge]), weight=float(self._weight[edge])
        )


class Circuits:
    """Stored circuits. Names may be `circuits/ID` or `ID`."""

    def __init__(self, folder: Path, artifacts: ArtifactStore, *, clock: Clock | None = None) -> None:
        self._folder = folder
        self._artifacts = artifacts
        self._clock = clock or SystemClock()
        self._open: OrderedDict[str, StoredCircuit] = OrderedDict()
        self._changing = asyncio.Lock()
        self._forgetting: list[Forget] = []
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(folder)

    async def save(
        self,
        circuit: Circuit,
        *,
        circuit_id: str | None = None,
        provenance: Provenance = DISCOVERED,
        annotations: Annotations = NO_ANNOTATIONS,
    ) -> StoredCircuit:
        """Publish a circuit by one rename. Saving under an id again returns what is there.

        Args:
            circuit: What was found.
            circuit_id: None: a new one.
            provenance: Where it came from.
            annotations: What is said about it from the first.

        Raises:
            DiskFullError: If there is no room; nothing is kept.
        """
        circuit_id = circuit_id or uuid4().hex
        async with self._changing:  # ids of pruned and imported circuits are the same for the same request
            if not self.exists(circuit_id):
                stored = StoredCircuit(
                    name=resource("circuits", circuit_id),
                    create_time=timestamp(self._clock.now()),
                    circuit=circuit,
                    provenance=provenance,
                )
                await asyncio.to_thread(_publish, self._folder / circuit_id, stored, annotations)
        return await self.get(circuit_id)

    async def get(self, name: str) -> StoredCircuit:
        """Return a circuit.

        Raises:
            ResourceNotFoundError: If there is none of that name.
            CorruptRecordError: If its files cannot be read.
        """
        circuit_id = id_in("circuits", name)
        stored = self._open.get(circuit_id)
        if stored is None:
            self._require(circuit_id)
            try:
                stored = await asyncio.to_thread(_read, self._folder / circuit_id)
            except (FileNotFoundError, CorruptRecordError):
                self._require(circuit_id)  # it may have been deleted while it was read
                raise
            self._require(circuit_id)  # before it is kept: what is deleted must not come back
            self._open[circuit_id] = stored
            while len(self._open) > _KEPT_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(circuit_id)
        return stored

    async def list(self, wanted: CircuitFilter = EVERY_CIRCUIT) -> tuple[StoredCircuit, ...]:
        """Return every circuit that passes a filter and can be read, newest first.

        One that cannot is logged as an error and left out, and so is what is deleted meanwhile.
        """
        stored = []
        for circuit_id in [path.parent.name for path in self._folder.glob(f"*/{_HEADER}")]:
            if circuit_id.startswith(TEMPORARY):
                continue
            try:
                stored.append(await self.get(circuit_id))
            except ResourceNotFoundError:
                continue
            except CorruptRecordError as error:
                _log.error("corrupt_record", record=circuit_id, folder="circuits", error=error.message)
        kept = (each for each in stored if _passes(each, wanted))
        return newest_first(kept)

    async def delete(self, name: str) -> None:
        """Forget a circuit and what was said or measured of it. Circuits that were pruned from it stay.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        circuit_id = id_in("circuits", name)
        hidden = self._folder / f"{TEMPORARY}{uuid4().hex}"
        async with self._changing:
            self._require(circuit_id)
            # What is kept of it elsewhere goes first: after a crash there is still a circuit to delete.
            await self._forget(circuit_id)
            # Out of sight by one rename; what a crash leaves of it is swept at the next start.
            await asyncio.to_thread((self._folder / circuit_id).rename, hidden)
            self._open.pop(circuit_id, None)  # after the rename: no reader can keep it from here on
            await self._forget(circuit_id)  # and again, for what was stored until it was out of sight
        await asyncio.to_thread(shutil.rmtree, hidden, ignore_errors=True)

    def on_delete(self, forget: Forget) -> None:
        """Have what is kept of circuits elsewhere forgotten with them; it is told a circuit's name."""
        self._forgetting.append(forget)

    async def _forget(self, circuit_id: str) -> None:
        for forget in self._forgetting:
            await forget(resource("circuits", circuit_id))

    async def annotations(self, name: str) -> Annotations:
        """Return what was said about a circuit's nodes.

        Raises:
            ResourceNotFoundError: If there is no such circuit.
            CorruptRecordError: If the file cannot be read.
        """
        circuit_id = id_in("circuits", (await self.get(name)).name)
        return await asyncio.to_thread(_read_annotations, self._folder / circuit_id)

    async def annotate(self, name: str, change: Callable[[Annotations], Annotations]) -> Annotations:
        """Change what is said about a circuit's nodes, one change after the other; return what is said now.

        Raises:
            ResourceNotFoundError: If there is no such circuit.
            DiskFullError: If there is no room; nothing is changed.
        """
        async with self._changing:
            changed = change(await self.annotations(name))
            file = self._folder / id_in("circuits", name) / _ANNOTATIONS
            await asyncio.to_thread(write_whole, file, encode(changed))
        return changed

    def exists(self, circuit_id: str) -> bool:
        """True if a circuit of that id was published."""
        return (self._folder / circuit_id / _HEADER).is_file()

    def _require(self, circuit_id: str) -> None:
        if not self.exists(circuit_id):
            raise ResourceNotFoundError(f"there is no circuit {circuit_id}", name=f"circuits/{circuit_id}")

    def nodes(
        self, stored: StoredCircuit, kind: NodeKind | None = None, min_influence: float | None = None
    ) -> Sequence[ListedNode]:
        """Return nodes, most influential first, with what enters those that are targets."""
        circuit = stored.circuit
        rows = _entering(circuit.rows)
        chosen = [
            _listed(index, node, rows.get(index))
            for index, node in enumerate(circuit.nodes)
            if (kind is None or node.kind is kind)
            and (min_influence is None or node.influence >= min_influence)
        ]
        return sorted(chosen, key=lambda listed: (-listed.node.influence, listed.index))

    def edges(
        self,
        stored: StoredCircuit,
        source: int | None = None,
        target: int | None = None,
        min_weight: float | None = None,
    ) -> Sequence[ListedEdge]:
        """Return edges, heaviest first, filtered by end points and smallest absolute weight."""
        edges = stored.circuit.edges
        size = np.abs(numbers(edges.weight))
        keep = np.ones(len(size), np.bool_)
        if source is not None:
            keep &= numbers(edges.source) == source
        if target is not None:
            keep &= numbers(edges.target) == target
        if min_weight is not None:
            keep &= size >= min_weight
        chosen = np.flatnonzero(keep)
        return EdgeList(edges, chosen[np.argsort(-size[chosen], kind="stable")])

    async def render(
        self,
        name: str,
        format: CircuitFormat,
        node_threshold: float | None = None,
        edge_threshold: float | None = None,
        feature_pages: Collection[FeatureRef] = (),
        known: Sequence[FeatureDescription] = (),
    ) -> tuple[ArtifactInfo, PrunedNodes]:
        """Store a pruned circuit as a file: circuit-tracer's JSON schema, GraphML, or one page.

        Pinned nodes are kept whatever the thresholds, and labels, pins and groups are in every format.

        Args:
            name: Of the circuit.
            format: As what.
            node_threshold: Share of the influence that the kept nodes reach. None: 0.8, or everything where
                the circuit is a part of a larger one already.
            edge_threshold: The same for edges. None: 0.98, or everything.
            feature_pages: Features whose own pages will lie beside the circuit's.
            known: What is known of features; a page shows it in its panel.

        Raises:
            ResourceNotFoundError: If there is none of that name.
            InvalidRequestError: If a threshold is outside (0, 1].
        """
        stored, said = await self.get(name), await self.annotations(name)
        bounds = node_threshold, edge_threshold
        kept = await asyncio.to_thread(shown_nodes, stored.circuit, stored.provenance, said.pinned, *bounds)
        data, media_type = await asyncio.to_thread(_render, stored, kept, format, feature_pages, known, said)
        return await self._artifacts.put(data, media_type=media_type), kept


def _render(
    stored: StoredCircuit,
    kept: PrunedNodes,
    format: CircuitFormat,
    pages: Collection[FeatureRef],
    known: Sequence[FeatureDescription],
    said: Annotations,
) -> tuple[bytes, str]:
    circuit, name = stored.circuit, stored.name
    if format == "html":
        view = view_of(circuit, said, shown=frozenset(kept.nodes))
        page = circuit_html(
            circuit, kept, name=name, pages=pages, features=known, view=view, provenance=stored.provenance
        )
        return page.encode(), "text/html; charset=utf-8"
    if format == "graphml":
        return circuit_graphml(circuit, kept, name=name, annotations=said), "application/graphml+xml"
    document = circuit_json(circuit, kept, slug=id_in("circuits", name), annotations=said)
    return json.dumps(document, ensure_ascii=False).encode(), "application/json"


def _passes(stored: StoredCircuit, wanted: CircuitFilter) -> bool:
    circuit = stored.circuit
    return (
        wanted.model in ("", circuit.model)
        and wanted.replacement in ("", *circuit.set_names)
        and wanted.parent in ("", stored.provenance.parent)
        and wanted.prompt.casefold() in circuit.prompt.casefold()
    )


def _listed(index: int, node: Node, row: tuple[float, float, float] | None) -> ListedNode:
    total, bias, remainder = row or (None, None, None)
    return ListedNode(index=index, node=node, bias=bias, remainder=remainder, total=total)


def _entering(rows: Rows) -> dict[int, tuple[float, float, float]]:
    columns = (numbers(column).tolist() for column in (rows.target, rows.total, rows.bias, rows.remainder))
    return {target: (total, bias, remainder) for target, total, bias, remainder in zip(*columns, strict=True)}


# --- on disk: a JSON header, and the numbers as safetensors --------------------------------------


def _publish(final: Path, stored: StoredCircuit, said: Annotations) -> None:
    temporary = final.with_name(f"{TEMPORARY}{uuid4().hex}")
    try:
        with full_disk_is_typed("a circuit"):
            temporary.mkdir(mode=0o700)
            # Not by save_file: its error of a full disk is none of the system's, and says so in words alone.
            (temporary / _NUMBERS).write_bytes(save(columns_of(stored.circuit)))
            header = replace(stored, circuit=without_columns(stored.circuit))
            (temporary / _HEADER).write_bytes(encode(header))
            if said != NO_ANNOTATIONS:
                (temporary / _ANNOTATIONS).write_bytes(encode(said))
            publish_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(folder: Path) -> StoredCircuit:
    stored = decode(StoredCircuit, (folder / _HEADER).read_bytes(), what=f"circuits/{folder.name}")
    try:
        circuit = with_columns(stored.circuit, load_file(folder / _NUMBERS))
    except (OSError, SafetensorError, KeyError) as error:
        raise CorruptRecordError(
            f"the numbers of circuits/{folder.name} cannot be read; discover it again"
        ) from error
    return replace(stored, circuit=replace(circuit, nodes=numbered(circuit.nodes)))


def _read_annotations(folder: Path) -> Annotations:
    try:
        data = (folder / _ANNOTATIONS).read_bytes()
    except FileNotFoundError:
        return NO_ANNOTATIONS
    return decode(Annotations, data, what=f"the annotations of circuits/{folder.name}")
