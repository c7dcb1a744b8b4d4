"""Models: what there is."""

from __future__ import annotations

from trephine.client import requests
from trephine.client.aio.wire import AsyncWire
from trephine.client.decoding import decode
from trephine.client.types import ModelInfo
from trephine.v1 import model_service_pb2


class AsyncModels:
    """Models of the server, loaded or not."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def list(self) -> tuple[ModelInfo, ...]:
        """Every model in the model roots."""
        request = model_service_pb2.ListModelsRequest(page_size=500)
        pages = self._wire.pages(self._wire.models.ListModels, request)
        return tuple([decode(ModelInfo, model) async for page in pages for model in page.models])

    async def get(self, name: str) -> ModelInfo:
        """One model by name."""
        request = model_service_pb2.GetModelRequest(name=requests.resource("models", name))
        return decode(ModelInfo, await self._wire.call(self._wire.models.GetModel, request))
