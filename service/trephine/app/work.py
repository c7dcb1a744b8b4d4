"""What each kind of operation does. Every method may run again after a crash (DESIGN 5.11).

A result is published under a name that the operation fixes, by one rename. A second run of the same
operation finds it and returns, so that no effect is lost and none is visible twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from trephine.app.audits import Audits
from trephine.app.circuits.circuit_costs import admission_cost
from trephine.app.circuits.circuit_pruning import in_words, pruned_at_once
from trephine.app.circuits.circuit_verification import CircuitVerifications
from trephine.app.circuits.circuits import Circuits
from trephine.app.circuits.dataset_circuits import DatasetCircuits
from trephine.app.circuits.global_circuits import GlobalCircuits
from trephine.app.circuits.graph_sets import loaded_sets, opened_layers
from trephine.app.edits.edit_evaluations import EditEvaluations
from trephine.app.edits.proposals import Proposals
from trephine.app.exports.classifiers import Classifiers
from trephine.app.exports.exports import Exports
from trephine.app.features.feature_indexes import FeatureIndexes
from trephine.app.jobs.costs import predict_beside
from trephine.app.jobs.events import forwarded
from trephine.app.jobs.requests import (
    AuditRequest,
    DatasetCircuitRequest,
    DiscoverRequest,
    EvaluateEditRequest,
    EvaluateSetRequest,
    ExportClassifierRequest,
    ExportRequest,
    FitSetRequest,
    GlobalCircuitRequest,
    IndexRequest,
    LoadRequest,
    LoadSetRequest,
    OperationRequest,
    ProposeRequest,
    RemoveSpuriousRequest,
    VerifyRequest,
)
from trephine.app.models.models import Models
from trephine.app.sets.evaluations import Evaluations
from trephine.app.sets.fits import Fits
from trephine.app.sets.replacements import Replacements
from trephine.app.spurious.spurious_removals import SpuriousRemovals
from trephine.app.storage.names import resource
from trephine.domain.circuit_queries import DISCOVERED, Provenance
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.commands import Progress
from trephine.domain.sites import NEURONS

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Carries out operations with the stores and the engines."""

    models: Models
    circuits: Circuits
    circuit_verifications: CircuitVerifications
    dataset_circuits: DatasetCircuits
    global_circuits: GlobalCircuits
    proposals: Proposals
    edit_evaluations: EditEvaluations
    spurious_removals: SpuriousRemovals
    exports: Exports
    classifiers: Classifiers
    audits: Audits
    replacements: Replacements
    evaluations: Evaluations
    fits: Fits
    feature_indexes: FeatureIndexes

    async def check(self, request: OperationRequest, *, operation_id: str) -> None:
        """Refuse at once what cannot succeed, before an operation is made of it.

        Raises:
            TrephineError: What the work itself would raise later.
        """
        match request:
            case LoadRequest():
                await self.models.check(request.source)
            case DiscoverRequest():
                await self._check_sets(request)
            case ProposeRequest():
                self.models.engine(request.model)
            case DatasetCircuitRequest():
                await self.dataset_circuits.check(request)
            case GlobalCircuitRequest():
                await self.global_circuits.check(request)
            case EvaluateEditRequest():
                await self.edit_evaluations.check(request)
            case RemoveSpuriousRequest():
                await self.spurious_removals.check(request, operation_id=operation_id)
            case ExportClassifierRequest():
                await self.classifiers.check(request, operation_id=operation_id)
            case ExportRequest():
                await self.exports.check(request, operation_id=operation_id)
            case AuditRequest():
                self.models.engine(request.model)
            case LoadSetRequest():
                await self.replacements.check(request.model, request.source)
            case EvaluateSetRequest():
                await self.evaluations.check(request)
            case FitSetRequest():
                await self.fits.check(request, operation_id=operation_id)
            case IndexRequest():
                await self.feature_indexes.check(request)
            case VerifyRequest():
                await self.circuit_verifications.check(request)

    async def perform(self, request: OperationRequest, report: Report, *, operation_id: str) -> str:
        """Do the work and return the resource name of its result.

        Raises:
            EngineLostError: If the engine ended meanwhile; the same call may succeed now.
            TrephineError: Whatever the work raised.
        """
        match request:
            case LoadRequest():
                info = await self.models.load(request.source, report)
                return resource("models", info.name)
            case DiscoverRequest():
                return await self._discover(request, report, operation_id)
            case DatasetCircuitRequest():
                return (await self.dataset_circuits.run(request, report, circuit_id=operation_id)).name
            case GlobalCircuitRequest():
                return (await self.global_circuits.run(request, report, circuit_id=operation_id)).name
            case ProposeRequest():
                return await self._propose(request, report, operation_id)
            case EvaluateEditRequest():
                measured = await self.edit_evaluations.run(request, report, evaluation_id=operation_id)
                return measured.name
            case RemoveSpuriousRequest():
                return (await self.spurious_removals.run(request, report, removal_id=operation_id)).name
            case ExportClassifierRequest():
                classifier = await self.classifiers.run(request, report, operation_id=operation_id)
                return resource("classifiers", classifier.name)
            case ExportRequest():
                export = await self.exports.run(request, report, operation_id=operation_id)
                return resource("exports", export.name.removeprefix("exports/"))
            case AuditRequest():
                audit = await self.audits.run(request, report, audit_id=operation_id)
                return resource("audits", audit.id.removeprefix("audits/"))
            case LoadSetRequest():
                loaded = await self.replacements.load(request.model, request.source, report)
                return f"{resource('models', request.model)}/replacements/{loaded.name}"
            case EvaluateSetRequest():
                return (await self.evaluations.run(request, report, evaluation_id=operation_id)).name
            case FitSetRequest():
                return (await self.fits.run(request, report, fit_id=operation_id)).name
            case IndexRequest():
                return (await self.feature_indexes.run(request, report)).name
            case VerifyRequest():
                verified = await self.circuit_verifications.run(request, report, verification_id=operation_id)
                return verified.name

    async def _check_sets(self, request: DiscoverRequest) -> None:
        self.models.engine(request.model)
        if request.command.sets == (NEURONS,):
            return
        loaded = loaded_sets(self.replacements, request.model, request.command)
        opened_layers(request.command, await self.models.info(request.model), loaded)

    async def _discover(self, request: DiscoverRequest, report: Report, operation_id: str) -> str:
        if not self.circuits.exists(operation_id):
            engine = self.models.engine(request.model)
            circuit = await engine.run(request.command, on_event=forwarded(report))
            provenance = DISCOVERED
            if request.pruning is not None:
                provenance = Provenance(how=in_words(request.pruning, 0))
                circuit = await asyncio.to_thread(pruned_at_once, circuit, request.pruning)
            await self.circuits.save(circuit, circuit_id=operation_id, provenance=provenance)
        return resource("circuits", operation_id)

    async def _propose(self, request: ProposeRequest, report: Report, operation_id: str) -> str:
        if not self.proposals.exists(operation_id):
            engine = self.models.engine(request.model)
            proposal = await engine.run(request.command, on_event=forwarded(report))
            await self.proposals.save(proposal, proposal_id=operation_id)
        return resource("proposals", operation_id)


predict_beside.register(DiscoverCircuit, admission_cost)
