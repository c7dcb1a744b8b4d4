"""Spurious features of decisions, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.wire import AsyncWire
from trephine.client.downloads import OnBytes
from trephine.client.folder_downloads import download_folder_async
from trephine.client.operations import OnProgress
from trephine.client.requests import resource
from trephine.client.spurious_removal import classifier_of, removal_of
from trephine.client.spurious_requests import export_classifier, remove_spurious
from trephine.client.types import ClassifierExport, LabelledText, ModelInfo, SpuriousRemoval
from trephine.v1 import spurious_removal_pb2 as pb


class AsyncCleanableModel:
    """Removal of spurious features; a part of `AsyncModel`."""

    _wire: AsyncWire
    info: ModelInfo

    async def remove_spurious(
        self, training: Sequence[LabelledText], *, on_progress: OnProgress | None = None, **options: Any
    ) -> SpuriousRemoval:
        """Judge, remove and measure; `options` are those of the sync client."""
        started = await self.start_remove_spurious(training, **options)
        return await started.result(on_progress=on_progress)

    async def start_remove_spurious(
        self, training: Sequence[LabelledText], **options: Any
    ) -> AsyncOperation[SpuriousRemoval]:
        """Start a removal; `options` are those of the sync client."""
        request = remove_spurious(self.info.name, training, **options)
        message = await self._wire.call(self._wire.edits.RemoveSpuriousFeatures, request)
        return AsyncOperation(self._wire, message, removal_of)

    async def predict_remove_spurious(
        self, training: Sequence[LabelledText], **options: Any
    ) -> SpuriousRemoval:
        """Check a request and predict its `seconds` and `peak_extra_bytes`; nothing is removed."""
        request = remove_spurious(self.info.name, training, validate_only=True, **options)
        message = await self._wire.call(self._wire.edits.RemoveSpuriousFeatures, request)
        return await AsyncOperation(self._wire, message, removal_of).result()


class AsyncSpuriousRemovals:
    """Reports on decisions."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def get(self, name: str) -> SpuriousRemoval:
        """One by name, whole."""
        request = pb.GetSpuriousRemovalRequest(name=resource("spuriousRemovals", name))
        return removal_of(await self._wire.call(self._wire.edits.GetSpuriousRemoval, request))

    async def list(self) -> tuple[SpuriousRemoval, ...]:
        """All, newest first, without features."""
        pages = self._wire.pages(self._wire.edits.ListSpuriousRemovals, pb.ListSpuriousRemovalsRequest())
        return tuple([removal_of(one) async for page in pages for one in page.spurious_removals])

    async def page(self, removal: SpuriousRemoval | str) -> str:
        """Render the decision list; the artifact's name."""
        name = removal if isinstance(removal, str) else removal.name
        request = pb.RenderSpuriousRemovalRequest(name=resource("spuriousRemovals", name))
        return str((await self._wire.call(self._wire.edits.RenderSpuriousRemoval, request)).artifact)

    async def start_export_classifier(
        self,
        removal: SpuriousRemoval | str,
        name: str,
        texts: Sequence[str],
        *,
        export: str | None = None,
        request_id: str | None = None,
    ) -> AsyncOperation[ClassifierExport]:
        """Publish a report's head as a stock classifier; the arguments are those of the sync client."""
        report = removal if isinstance(removal, str) else removal.name
        request = export_classifier(report, name, texts, export=export, request_id=request_id)
        message = await self._wire.call(self._wire.edits.ExportClassifier, request)
        return AsyncOperation(self._wire, message, classifier_of)

    async def download_classifier(
        self, classifier: ClassifierExport, folder: str | Path, *, on_bytes: OnBytes | None = None
    ) -> Path:
        """Fetch a published classifier; what is checked and refused is as in the sync client."""

        def read(path: str, offset: int) -> AsyncIterator[pb.ReadClassifierFileResponse]:
            request = pb.ReadClassifierFileRequest(name=classifier.name, path=path, offset=offset)
            return self._wire.stream(self._wire.edits.ReadClassifierFile, request)

        return await download_folder_async(classifier.listed, folder, read, on_bytes=on_bytes)
