"""Circuits of behaviours: what a model can be asked, and what is stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from trephine.client import requests
from trephine.client.aio.circuit import AsyncCircuit, AsyncCircuits
from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.wire import AsyncWire
from trephine.client.dataset_graphs import graph_document
from trephine.client.dataset_requests import discover_dataset
from trephine.client.decoding import decode
from trephine.client.results import dataset_circuit_of
from trephine.client.types import DatasetCircuit, DatasetExample, ModelInfo
from trephine.client.watches import OnProgress
from trephine.v1 import dataset_circuits_pb2 as pb


class AsyncDatasetDiscoverableModel:
    """Circuits over datasets; a part of `AsyncModel`."""

    _wire: AsyncWire
    info: ModelInfo

    async def discover_dataset(
        self,
        training: Sequence[DatasetExample],
        held_out: Sequence[DatasetExample],
        *,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> DatasetCircuit:
        """Find the circuit of a behaviour on some contexts and measure it on others.

        Args:
            training: At least two.
            held_out: At least two, none of them a training context.
            on_progress: Called with every step.
            options: Those of `start_discover_dataset`.
        """
        started = await self.start_discover_dataset(training, held_out, **options)
        return await started.result(on_progress=on_progress)

    async def start_discover_dataset(
        self, training: Sequence[DatasetExample], held_out: Sequence[DatasetExample], **options: Any
    ) -> AsyncOperation[DatasetCircuit]:
        """Start finding the circuit of a behaviour.

        Args:
            training: At least two.
            held_out: At least two, none of them a training context.
            options: Each may be left unset. `replacement`: a loaded set or `heads`, instead of neurons.
                `beside`: what are nodes too, as in `("heads", "errors")`, further sets included. `layers`.
                `estimator`: `attribution_patching`, `integrated_gradients` (with `steps`), `relp` or `exact`
                (with `exact_nodes`). `positions`: `summed` or `kept`. `patch` and `ablations`: `mean`,
                `zero`, `resample`. `error_term`: `live`, `frozen`, `drop`. `nodes`, `threshold`: size of
                the circuit. `edge_nodes`, `edge_examples`, `random_circuits`, `curve`, `bootstrap`.
                `stability_draws`, `stability_share`, `stability_keep`. `clusters`: 0 for automatic.
                `seed`. `request_id`: the same id again returns the same operation.
        """
        request = discover_dataset(self.info.name, training, held_out, **options)
        message = await self._wire.call(self._wire.circuits.DiscoverDatasetCircuit, request)
        return AsyncOperation(self._wire, message, dataset_circuit_of)

    async def predict_discover_dataset(
        self, training: Sequence[DatasetExample], held_out: Sequence[DatasetExample], **options: Any
    ) -> DatasetCircuit:
        """Check a request and predict its `seconds` and `peak_extra_bytes`; nothing is found."""
        request = discover_dataset(self.info.name, training, held_out, validate_only=True, **options)
        message = await self._wire.call(self._wire.circuits.DiscoverDatasetCircuit, request)
        return await AsyncOperation(self._wire, message, dataset_circuit_of).result()


class AsyncDatasetCircuits:
    """What was found over datasets."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def get(self, name: str) -> DatasetCircuit:
        """One by name, whole."""
        request = pb.GetDatasetCircuitRequest(name=requests.resource("datasetCircuits", name))
        return decode(DatasetCircuit, await self._wire.call(self._wire.circuits.GetDatasetCircuit, request))

    async def list(self) -> tuple[DatasetCircuit, ...]:
        """All, newest first, without nodes, edges and figures."""
        request = pb.ListDatasetCircuitsRequest(page_size=500)
        pages = self._wire.pages(self._wire.circuits.ListDatasetCircuits, request)
        return tuple([decode(DatasetCircuit, one) async for page in pages for one in page.dataset_circuits])

    async def graph(self, name: str, circuit: str = "all") -> AsyncCircuit:
        """Store one of its circuits as a graph: what serves graphs of prompts serves it, too.

        It is queried, pinned, labelled, grouped, pruned, compared and exported as they are; the same again is
        the same graph. What needs a prompt, verification for one, refuses it.

        Args:
            name: Resource name.
            circuit: `all`, or a cluster, `cluster 1`.

        Raises:
            InvalidRequestError: If there is no such circuit, or it has no edges.
        """
        document = graph_document(await self.get(name), circuit)
        return await AsyncCircuits(self._wire).import_graph(json.dumps(document).encode())
