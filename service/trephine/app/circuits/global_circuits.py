"""Global circuits: found by an engine, and kept among the circuits."""

from __future__ import annotations

from collections.abc import Callable

from trephine.app.circuits.circuits import Circuits, StoredCircuit
from trephine.app.circuits.global_circuit_costs import GlobalCost, global_circuit_cost
from trephine.app.jobs.events import forwarded
from trephine.app.jobs.requests import GlobalCircuitRequest
from trephine.app.models.models import Models
from trephine.app.sets.replacements import Replacements
from trephine.domain.circuits import GraphSet
from trephine.domain.commands import Progress
from trephine.domain.errors import LayerOutOfRangeError, TrephineError
from trephine.domain.global_circuits import CheckedGlobalCircuit, CheckGlobalCircuit
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS


class GlobalCircuits:
    """Circuits that no single prompt decides; they are stored as circuits are."""

    def __init__(self, circuits: Circuits, *, models: Models, replacements: Replacements) -> None:
        self._circuits, self._models, self._replacements = circuits, models, replacements

    async def check(self, request: GlobalCircuitRequest) -> tuple[ModelInfo, GraphSet]:
        """Refuse at once what cannot be found; return the model and the set.

        Raises:
            ReplacementNotFoundError: If the set is not loaded, or was lost.
            LayerOutOfRangeError: If the model or the set does not have a layer.
        """
        info, command = await self._models.info(request.model), request.command
        covered, content = set(range(info.n_layers)), ""
        if command.replacement != NEURONS:
            try:
                loaded = self._replacements.loaded(command.replacement, request.model)
            except TrephineError as error:
                raise error.with_field("replacement") from None
            covered, content = {layer.layer for layer in loaded.layers}, loaded.content_hash
        for index, layer in enumerate(command.layers or ()):
            if layer not in covered:
                raise LayerOutOfRangeError(
                    f"{command.replacement} does not cover layer {layer} of {info.name}; it has "
                    f"{', '.join(map(str, sorted(covered)))}. Name some of these",
                    field=f"layers[{index}]",
                    layer=layer,
                )
        return info, GraphSet(name=command.replacement, content_hash=content)

    async def predict(
        self, request: GlobalCircuitRequest
    ) -> tuple[ModelInfo, GraphSet, GlobalCost, CheckedGlobalCircuit]:
        """Check a request as far as the work itself would before its first pass, and predict its cost.

        Raises:
            OverBudgetError: If it would be refused.
            TrephineError: As `check` does, or naming the text, feature or token that cannot be used.
        """
        info, spanned = await self.check(request)
        await self._models.predict_command(request.model, request.command)
        engine = self._models.engine(request.model)
        checked = await engine.run(CheckGlobalCircuit(command=request.command))
        cost = global_circuit_cost(
            request.command,
            info,
            self._models.shelf(request.model).layers,
            training=checked.training_tokens,
            held_out=checked.held_out_tokens,
        )
        return info, spanned, cost, checked

    async def run(
        self, request: GlobalCircuitRequest, on_progress: Callable[[Progress], None], *, circuit_id: str
    ) -> StoredCircuit:
        """Find and store; what is stored already is not found again.

        Raises:
            TrephineError: Whatever finding raised.
        """
        if self._circuits.exists(circuit_id):
            return await self._circuits.get(circuit_id)
        found = await self._models.engine(request.model).run(request.command, on_event=forwarded(on_progress))
        return await self._circuits.save(found, circuit_id=circuit_id)
