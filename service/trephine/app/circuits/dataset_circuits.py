"""Circuits of behaviours: found over datasets by an engine, and kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trephine.app.circuits.dataset_circuit_costs import DatasetCost, dataset_circuit_cost
from trephine.app.jobs.events import forwarded
from trephine.app.jobs.requests import DatasetCircuitRequest
from trephine.app.models.models import Models
from trephine.app.sets.replacements import Replacements
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.app.storage.names import resource
from trephine.app.storage.records import RecordFolder
from trephine.app.storage.results import found_once, newest_first, stored_result
from trephine.domain.commands import Progress
from trephine.domain.dataset_circuits import (
    ERRORS,
    HEADS,
    CheckDatasetCircuit,
    CheckedDatasetCircuit,
    DatasetCircuit,
)
from trephine.domain.errors import (
    LayerOutOfRangeError,
    TrephineError,
)
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS, Site, SiteKind
from trephine.domain.spanned_sets import check_parts_apart

COLLECTION = "datasetCircuits"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDatasetCircuit:
    """What was found, with its resource name, `datasetCircuits/ID`."""

    name: str
    create_time: str
    found: DatasetCircuit


class DatasetCircuits:
    """Circuits over datasets. Names may be `datasetCircuits/ID` or `ID`."""

    def __init__(
        self, folder: Path, *, models: Models, replacements: Replacements, clock: Clock | None = None
    ) -> None:
        self._records = RecordFolder(folder, StoredDatasetCircuit)
        self._models = models
        self._replacements = replacements
        self._clock = clock or SystemClock()

    async def check(self, request: DatasetCircuitRequest) -> ModelInfo:
        """Refuse at once what cannot be found; return the model.

        Raises:
            ReplacementNotFoundError: If the set is not loaded, or was lost.
            LayerOutOfRangeError: If the model or the set does not have a layer.
            UnsupportedOptionError: If two names stand for one part of the stream.
        """
        info, command = await self._models.info(request.model), request.command
        covered: set[int] = set()
        owners: list[tuple[str, Site]] = []
        for index, name in enumerate((command.replacement, *command.beside)):
            try:
                written = self._written(request.model, name, info)
                covered |= written.keys()
                owners += (
                    (name, site)
                    for layer, sites in written.items()
                    if command.layers is None or layer in command.layers
                    for site in sites
                )
                check_parts_apart((owner, (site,)) for owner, site in owners)
            except TrephineError as error:
                raise error.with_field(f"beside[{index - 1}]" if index else "replacement") from None
        for index, layer in enumerate(command.layers or ()):
            if layer not in covered:
                names = ", ".join((command.replacement, *command.beside))
                raise LayerOutOfRangeError(
                    f"{names}: none covers layer {layer} of {info.name}; they have "
                    f"{', '.join(map(str, sorted(covered)))}. Name some of these, or add a set that has it",
                    field=f"layers[{index}]",
                    layer=layer,
                )
        return info

    async def predict(
        self, request: DatasetCircuitRequest
    ) -> tuple[ModelInfo, DatasetCost, CheckedDatasetCircuit]:
        """Check a request as the work itself would, run nothing, and predict its cost.

        Raises:
            OverBudgetError: If it would be refused.
            TrephineError: As `check` does, or naming the example that cannot be used.
        """
        info = await self.check(request)
        await self._models.predict_command(request.model, request.command)
        engine = self._models.engine(request.model)
        checked = await engine.run(CheckDatasetCircuit(command=request.command))
        sets = self._models.shelf(request.model).layers
        return info, dataset_circuit_cost(request.command, info, sets, checked.tokens), checked

    async def run(
        self, request: DatasetCircuitRequest, on_progress: Callable[[Progress], None], *, circuit_id: str
    ) -> StoredDatasetCircuit:
        """Find and store; what is stored already is not found again.

        Raises:
            TrephineError: Whatever finding raised.
        """

        async def discover() -> StoredDatasetCircuit:
            engine = self._models.engine(request.model)
            return StoredDatasetCircuit(
                name=resource(COLLECTION, circuit_id),
                found=await engine.run(request.command, on_event=forwarded(on_progress)),
                create_time=timestamp(self._clock.now()),
            )

        return await found_once(self._records, circuit_id, discover)

    async def get(self, name: str) -> StoredDatasetCircuit:
        """Return what was found.

        Raises:
            ResourceNotFoundError: If there is none of that name.
            CorruptRecordError: If its file cannot be read.
        """
        return await stored_result(self._records, COLLECTION, name, what="dataset circuit")

    async def list(self) -> tuple[StoredDatasetCircuit, ...]:
        """Return every one that can be read, newest first."""
        return newest_first((await asyncio.to_thread(self._records.all)).values())

    def _written(self, model: str, name: str, info: ModelInfo) -> dict[int, tuple[Site, ...]]:
        """Return what nodes of a name write, by the layer that they are of."""
        if name in (NEURONS, HEADS):
            kind = SiteKind.NEURONS if name == NEURONS else SiteKind.ATTN_Z
            return {layer: (Site(kind=kind, layer=layer),) for layer in range(info.n_layers)}
        if name == ERRORS:
            return {}
        return {layer.layer: layer.sites_out for layer in self._replacements.loaded(name, model).layers}
