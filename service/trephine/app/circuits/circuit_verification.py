"""Verifying stored circuits, and keeping what was found beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trephine.app.circuits.circuit_pruning import shown_nodes
from trephine.app.circuits.circuit_queries import require_node
from trephine.app.circuits.circuits import Circuits, StoredCircuit
from trephine.app.circuits.graph_sets import spanned_layers
from trephine.app.jobs.costs import Cost, Sets, feature_counts, forward_bytes, predict_beside
from trephine.app.jobs.events import forwarded
from trephine.app.jobs.requests import VerifyRequest
from trephine.app.models.models import Models
from trephine.app.sets.replacements import Replacements
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.app.storage.names import resource
from trephine.app.storage.records import RecordFolder
from trephine.app.storage.results import found_once, newest_first, stored_result
from trephine.domain.circuit_sets import require_same_set
from trephine.domain.circuits import Circuit
from trephine.domain.commands import Progress
from trephine.domain.errors import (
    ParentChangedError,
    UnsupportedOptionError,
)
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS
from trephine.domain.verification import Substitute, VerificationReport, VerifyCircuit

COLLECTION = "circuitVerifications"

_RETAIN_TOKENS, _FIT_TOKENS = 1024, 4096
"""The text of mean ablation, and the text that a random dictionary is fitted on."""
_WINDOWS, _WINDOW_TOKENS = 4, 128
"""Of the text of mean ablation, in one pass."""
_GROUP_KINDS = 4
_STEP_PASSES = 8
"""Of the search over masks: a pass, its adjoint, its rounded mask, and as many random masks."""
_BATCH_TOKENS = 256
_FLOAT, _HALF = 4, 2


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

    async def check(self, request: VerifyRequest) -> tuple[StoredCircuit, ModelInfo]:
        """Refuse at once what cannot be verified; return the circuit and its model.

        Raises:
            ResourceNotFoundError: If there is no such circuit.
            ModelNotReadyError, ModelNotFoundError: If its model is not loaded.
            ParentChangedError: If the model's weights, or a set, are not those that it was found with.
            ReplacementNotFoundError: If one of its sets is not loaded, or was lost.
            InvalidRequestError: If a supernode names a node that does not exist.
            UnsupportedOptionError: If it is global, so that it has no prompt; if
                it came from a file, so that what it was found in is not known; or if
                it was stored before targets were, and explains something else than one next token.
        """
        stored = await self._circuits.get(request.circuit)
        if stored.provenance.is_foreign:
            raise UnsupportedOptionError(
                "the circuit was imported from another tool's file: which weights and features it is about "
                "is not known, so that nothing can be ablated; discover it here",
                field="circuit",
            )
        stored.circuit.require_prompt("verification by ablations of a target")
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
        return stored, info

    async def predict(self, request: VerifyRequest) -> tuple[StoredCircuit, ModelInfo, Cost]:
        """Check a request and predict its cost.

        Raises:
            OverBudgetError: If it would be refused.
            TrephineError: As `check` does.
        """
        stored, info = await self.check(request)
        return stored, info, await self._models.predict_command(info.name, await self._command(request))

    async def run(
        self, request: VerifyRequest, on_progress: Callable[[Progress], None], *, verification_id: str
    ) -> StoredVerification:
        """Verify and store; what is stored already is not measured again.

        Raises:
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

        return await found_once(self._records, verification_id, verify)

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
        stored = await self._circuits.get(request.circuit)
        said = await self._circuits.annotations(stored.name)
        bounds = request.node_threshold, request.edge_threshold
        kept = await asyncio.to_thread(shown_nodes, stored.circuit, stored.provenance, said.pinned, *bounds)
        return VerifyCircuit(
            circuit=stored.circuit,
            kept=kept.nodes,
            supernodes=request.supernodes or tuple(group.nodes for group in said.groups),
            options=request.options,
        )

    def _model(self, request: VerifyRequest, stored: StoredCircuit) -> str:
        return request.model or stored.circuit.model


@predict_beside.register
def _(command: VerifyCircuit, info: ModelInfo, sets: Sets) -> Cost:
    """Count rows of the prompt; masks are as large as all features of the covered layers, per row."""
    options, prompt = command.options, len(command.circuit.tokens)
    rows = options.nodes + options.depth_nodes + _GROUP_KINDS * options.groups
    rows += len(options.substitutes) * (2 * options.random_circuits + 3)
    rows += _STEP_PASSES * options.adversary_steps
    beside = options.control and command.circuit.set_names != (NEURONS,)
    counts = _features(command.circuit, info, sets)
    features, widest = sum(counts), max(info.d_mlp, *counts)
    masks = 3 * max(prompt, _BATCH_TOKENS) * features * _FLOAT
    dictionary = 2 * features * info.d_model * _HALF if beside else 0
    fitted = _FIT_TOKENS if beside else 0
    return Cost(
        tokens=rows * prompt * (2 if beside else 1) + _RETAIN_TOKENS + fitted,
        memory_bytes=dictionary
        + _averaged(command, info, masks + max(prompt, _BATCH_TOKENS) * widest * 8 * _FLOAT, widest),
    )


def _averaged(command: VerifyCircuit, info: ModelInfo, ablating: int, widest: int) -> int:
    """Bytes of ablating, and of averaging before it: what the text was read as, and logits, which stay."""
    if Substitute.MEAN not in command.options.substitutes:
        return ablating
    kept = _RETAIN_TOKENS * info.d_vocab * _FLOAT
    read = info.n_layers * (info.d_mlp if NEURONS in command.circuit.set_names else info.d_model) + 2 * widest
    reading = _WINDOWS * _WINDOW_TOKENS * read * _FLOAT
    return kept + max(ablating, reading + forward_bytes(_WINDOW_TOKENS, _WINDOWS, info))


def _features(circuit: Circuit, info: ModelInfo, sets: Sets) -> list[int]:
    """Count the features of every layer of every set; of a set that is not known as many as neurons."""
    spanned = spanned_layers(circuit.set_names, info, sets, circuit.layers)
    unknown = (name for name in circuit.set_names if name != NEURONS and name not in sets)
    guessed = (feature_counts(name, info, sets, circuit.layers).values() for name in unknown)
    return [one.d_sae for one in spanned] + [count for counts in guessed for count in counts]
