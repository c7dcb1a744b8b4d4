"""Global circuits: found by an engine, and kept among the circuits."""

from __future__ import annotations

from collections.abc import Callable

from trephine.app.circuits.circuits import Circuits, StoredCircuit
from trephine.app.jobs.costs import Cost, Sets, feature_counts, forward_bytes, predict_beside, tokens_of
from trephine.app.jobs.events import forwarded
from trephine.app.jobs.requests import GlobalCircuitRequest
from trephine.app.models.models import Models
from trephine.app.sets.replacements import Replacements
from trephine.domain.circuits import GraphSet
from trephine.domain.commands import Progress
from trephine.domain.errors import LayerOutOfRangeError, TrephineError
from trephine.domain.global_circuits import (
    ABLATED_TOKENS,
    CheckedGlobalCircuit,
    CheckGlobalCircuit,
    DiscoverGlobalCircuit,
)
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS

_PACK_TOKENS = 256
"""Of one pass, the longest text apart."""
_PASSES = 2
"""Over the training texts: how active features are, and how active together."""
_READOUTS = 2
"""Of a gated neuron."""
_MATRICES = 6
"""Of all pairs of candidates beside their sums: virtual weights, edges, those of each half, and shares."""
_ENDS = 2048 + 512
"""Tokens and logits whose edges to and from candidates are measured."""
_SCORED_ROWS = 64
_SHARE = 1 / 2
"""Of the ablated passes: they end where the highest target reads, half way up in the mean."""
_RUNS = 2
"""Held at once: a clean one, and one with a source ablated."""
_FLOAT = 4


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
    ) -> tuple[ModelInfo, GraphSet, Cost, CheckedGlobalCircuit]:
        """Check a request as far as the work itself would before its first pass, and predict its cost.

        Raises:
            OverBudgetError: If it would be refused.
            TrephineError: As `check` does, or naming the text, feature or token that cannot be used.
        """
        info, spanned = await self.check(request)
        cost = await self._models.predict_command(request.model, request.command)
        engine = self._models.engine(request.model)
        return info, spanned, cost, await engine.run(CheckGlobalCircuit(command=request.command))

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


@predict_beside.register
def _(command: DiscoverGlobalCircuit, info: ModelInfo, sets: Sets) -> Cost:
    """Count passes over the texts, and products between features as the passes that would take as long."""
    counts = feature_counts(command.replacement, info, sets, command.layers)
    features, n = sum(counts.values()), min(command.bounds.candidates, sum(counts.values()))
    readouts = _READOUTS if command.replacement == NEURONS else 1
    training, held_out = (
        sum(min(tokens_of(text), command.context_tokens) for text in split)
        for split in (command.training, command.held_out)
    )
    encoded = 0 if command.replacement == NEURONS else features * info.d_model
    pairs = readouts * n * (n // 2 + _ENDS)
    scored = n * info.d_vocab * info.d_model
    ablated = min(held_out, ABLATED_TOKENS + _PACK_TOKENS) * command.verify_edges * _SHARE
    weights = info.n_parameters
    passes = training * (_PASSES * (weights + encoded) + pairs) + ablated * (weights + encoded) + 2 * scored
    pack = max(_PACK_TOKENS, command.context_tokens)
    kept = (2 * readouts + readouts + _MATRICES) * n * n + (4 + 2 * readouts) * n * _ENDS
    return Cost(
        tokens=int(passes / weights) + 1,
        memory_bytes=_FLOAT * (kept + _SCORED_ROWS * 2 * info.d_vocab + 8 * features)
        + _RUNS * _operators(pack, info)
        + sum(layer.memory_bytes for layer in sets.get(command.replacement, ()))
        + forward_bytes(pack, 1, info)
        + _FLOAT * pack * 4 * max(counts.values(), default=0),
    )


def _operators(tokens: int, info: ModelInfo) -> int:
    block = 6 * info.d_model + 3 * info.d_mlp + info.n_heads * tokens
    return tokens * info.n_layers * block * _FLOAT
