"""Verifying stored circuits, and keeping what was found beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trephine.app.circuits.circuit_pruning import shown_nodes
from trephine.app.circuits.circuit_queries import require_node
from trephine.app.circuits.circuits import Circuits, StoredCircuit
from trephine.app.circuits.verification_costs import verification_cost
from trephine.app.jobs.costs import Cost, predict_beside
from trephine.app.jobs.events import forwarded
from trephine.app.jobs.requests import VerifyRequest
from trephine.app.models.models import Models
from trephine.app.sets.replacements import Replacements
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.app.storage.names import id_in, resource
from trephine.app.storage.records import RecordFolder
from trephine.app.storage.results import found_once, newest_first, stored_result
from trephine.domain.circuit_sets import require_same_set
from trephine.domain.commands import Progress
from trephine.domain.errors import (
    ParentChangedError,
    ResourceNotFoundError,
    UnsupportedOptionError,
)
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS
from trephine.domain.tokens import Tokenize
from trephine.domain.verification import Substitute, VerificationReport, VerifyCircuit, ablated_features

COLLECTION = "circuitVerifications"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVerification:
    """A verification with its resource name, `circuitVerifications/ID`, and its circuit's."""

    name: str
    circuit: str
    create_time: str
    report: VerificationReport


class CircuitVerifications:
    """Verifications of stored circuits. Names may be `circuitVerifications/ID` or `ID`."""

    def __init__(
        self,
        folder: Path,
        *,
        circuits: Circuits,
        models: Models,
        replacements: Replacements,
        clock: Clock | None = None,
    ) -> None:
        self._records = RecordFolder(folder, StoredVerification)
        self._circuits, self._models, self._replacements = circuits, models, replacements
        self._clock = clock or SystemClock()
        circuits.on_delete(self.forget)

    async def check(self, request: VerifyRequest) -> tuple[StoredCircuit, ModelInfo]:
        """Refuse at once what cannot be verified; return the circuit and its model.

        Raises:
            ResourceNotFoundError: If there is no such circuit.
            ModelNotReadyError, ModelNotFoundError: If its model is not loaded.
            ParentChangedError: If the model's weights, or a set, are not those that it was found with.
            ReplacementNotFoundError: If one of its sets is not loaded, or was lost.
            InvalidRequestError: If a supernode names a node that does not exist, or its pruned form has
                nothing to ablate.
            UnsupportedOptionError: If it is global or of a behaviour, so that it has no prompt; if
                it came from a file, so that what it was found in was not checked here; or if
                it was stored before targets were, and explains something else than one next token.
        """
        stored, info, _ = await self._checked(request)
        return stored, info

    async def _checked(self, request: VerifyRequest) -> tuple[StoredCircuit, ModelInfo, VerifyCircuit]:
        """Return what is checked, and what the engine would be asked: the circuit is pruned once."""
        stored = await self._circuits.get(request.circuit)
        stored.circuit.require_prompt("verification by ablations of a target")
        if stored.provenance.is_foreign:
            raise UnsupportedOptionError(
                "the circuit was imported from a file: which weights and features it is about "
                "is the file's word at most, so that nothing is ablated by it; discover it here",
                field="circuit",
            )
        info = await self._models.info(self._model(request, stored))
        if info.weight_hash != stored.circuit.weight_hash:
            raise ParentChangedError(
                f"{stored.name} was found in weights {stored.circuit.weight_hash[:12]} of "
                f"{stored.circuit.model}, and {info.name} now has {info.weight_hash[:12]}; load the weights "
                "that it was found in, or discover it again",
                circuit_weights=stored.circuit.weight_hash,
                model_weights=info.weight_hash,
            )
        for each in stored.circuit.sets:
            if each.name != NEURONS:
                loaded = self._replacements.loaded(each.name, info.name)
                require_same_set(each, loaded.content_hash)
        stored.circuit.question()
        for place, group in enumerate(request.supernodes):
            for node in group:
                require_node(stored.circuit, node, f"supernodes[{place}]")
        return stored, info, await self._command(request)

    async def predict(self, request: VerifyRequest) -> tuple[StoredCircuit, ModelInfo, Cost]:
        """Check a request, with its counterfactual's tokens, and predict its cost.

        Raises:
            OverBudgetError: If it would be refused.
            InvalidRequestError: If the counterfactual is not another prompt of the same length.
            TrephineError: As `check` does.
        """
        stored, info, command = await self._checked(request)
        if Substitute.RESAMPLE in request.options.substitutes:
            engine = self._models.engine(info.name)
            other = await engine.run(Tokenize(text=request.options.counterfactual or ""))
            prompt = [token.id for token in stored.circuit.tokens]
            request.options.check_counterfactual([token.id for token in other.tokens], prompt)
        return stored, info, await self._models.predict_command(info.name, command)

    async def run(
        self, request: VerifyRequest, on_progress: Callable[[Progress], None], *, verification_id: str
    ) -> StoredVerification:
        """Verify and store; what is stored already is not measured again.

        Raises:
            ResourceNotFoundError: If the circuit was deleted meanwhile; nothing is kept.
            TrephineError: Whatever verifying raised.
        """

        async def verify() -> StoredVerification:
            stored = await self._circuits.get(request.circuit)
            engine = self._models.engine(self._model(request, stored))
            report = await engine.run(await self._command(request), on_event=forwarded(on_progress))
            return StoredVerification(
                name=resource(COLLECTION, verification_id),
                circuit=stored.name,
                create_time=timestamp(self._clock.now()),
                report=report,
            )

        found = await found_once(self._records, verification_id, verify)
        # Only now that it is written: a circuit that is deleted from here on takes it along.
        if not self._circuits.exists(id_in("circuits", found.circuit)):
            await asyncio.to_thread(self._records.delete, verification_id)
            raise ResourceNotFoundError(
                f"{found.circuit} was deleted while it was verified", name=found.circuit
            )
        return found

    async def forget(self, circuit: str) -> None:
        """Forget every verification of a circuit; none is no error.

        Args:
            circuit: Its resource name.
        """
        await asyncio.to_thread(self._forget, circuit)

    def _forget(self, circuit: str) -> None:
        for verification_id, one in self._records.all().items():
            if one.circuit == circuit:
                self._records.delete(verification_id)

    async def get(self, name: str) -> StoredVerification:
        """Return a verification.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        return await stored_result(self._records, COLLECTION, name, what="verification")

    async def list(self, circuit: str) -> tuple[StoredVerification, ...]:
        """Return a circuit's verifications, newest first.

        Raises:
            ResourceNotFoundError: If there is no such circuit.
        """
        stored = await self._circuits.get(circuit)
        every = (await asyncio.to_thread(self._records.all)).values()
        return newest_first(one for one in every if one.circuit == stored.name)

    async def _command(self, request: VerifyRequest) -> VerifyCircuit:
        """Return what the engine is asked, refused where nothing could be ablated."""
        stored = await self._circuits.get(request.circuit)
        said = await self._circuits.annotations(stored.name)
        bounds = request.node_threshold, request.edge_threshold
        kept = await asyncio.to_thread(shown_nodes, stored.circuit, stored.provenance, said.pinned, *bounds)
        ablated_features(stored.circuit, kept.nodes)
        return VerifyCircuit(
            circuit=stored.circuit,
            kept=kept.nodes,
            supernodes=request.supernodes or tuple(group.nodes for group in said.groups),
            options=request.options,
        )

    def _model(self, request: VerifyRequest, stored: StoredCircuit) -> str:
        return request.model or stored.circuit.model


predict_beside.register(VerifyCircuit, verification_cost)
