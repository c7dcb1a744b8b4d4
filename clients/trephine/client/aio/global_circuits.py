"""Circuits that no single prompt decides: what a model can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trephine.client.aio.circuit import AsyncCircuit
from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.wire import AsyncWire
from trephine.client.decoding import decode
from trephine.client.global_requests import discover_global
from trephine.client.types import CircuitInfo, ModelInfo
from trephine.client.watches import OnProgress


class AsyncGloballyDiscoverableModel:
    """Circuits over many texts; a part of `AsyncModel`."""

    _wire: AsyncWire
    info: ModelInfo

    async def discover_global(
        self,
        training: Sequence[str],
        held_out: Sequence[str],
        *,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> AsyncCircuit:
        """Find edges between features that hold over some texts, and check them on others.

        Args:
            training: At least two texts.
            held_out: At least two, none of them a training text.
            on_progress: Called with every step.
            options: Those of `start_discover_global`.
        """
        started = await self.start_discover_global(training, held_out, **options)
        return await started.result(on_progress=on_progress)

    async def start_discover_global(
        self, training: Sequence[str], held_out: Sequence[str], **options: Any
    ) -> AsyncOperation[AsyncCircuit]:
        """Start finding a circuit over many texts.

        Args:
            training: At least two texts.
            held_out: At least two, none of them a training text.
            options: Each may be left unset. `replacement`: a loaded set instead of neurons. `layers`.
                `start_features` (addresses, or `(layer, index)`), `start_tokens`, `start_direction`: what it
                is grown from; without any the strongest edges. `weighting`: `twera` or `era`. `max_nodes`,
                `max_edges_per_node`, `max_tokens`, `max_logits`: its size. `candidates`, `min_active`: the
                features between which edges are measured. `context_tokens`. `verify_edges`, `bootstrap`: how
                it is checked. `seed`. `request_id`: the same id again returns the same operation.
        """
        request = discover_global(self.info.name, training, held_out, **options)
        message = await self._wire.call(self._wire.circuits.DiscoverGlobalCircuit, request)
        return AsyncOperation(self._wire, message, self._global_circuit)

    async def predict_discover_global(
        self, training: Sequence[str], held_out: Sequence[str], **options: Any
    ) -> CircuitInfo:
        """Check a request and predict its `seconds` and `peak_extra_bytes`; nothing is found."""
        started = await self.start_discover_global(training, held_out, validate_only=True, **options)
        return (await started.result()).info

    def _global_circuit(self, message: Any) -> AsyncCircuit:
        return AsyncCircuit(self._wire, decode(CircuitInfo, message))
