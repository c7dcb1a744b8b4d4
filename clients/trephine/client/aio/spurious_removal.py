"""Spurious features of decisions: what a model can be asked, and what is stored."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trephine.client.aio.folder_downloads import download_folder
from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.source_sharing import shared
from trephine.client.aio.wire import AsyncWire
from trephine.client.downloads import OnBytes
from trephine.client.requests import resource
from trephine.client.results import classifier_of, removal_of
from trephine.client.sources import source_of
from trephine.client.spurious_requests import export_classifier, remove_spurious
from trephine.client.types import (
    ClassifierExport,
    LabelledText,
    ModelInfo,
    RewardModel,
    SpuriousRemoval,
    StockClassifier,
)
from trephine.client.watches import OnProgress
from trephine.v1 import spurious_removal_pb2 as pb


class AsyncCleanableModel:
    """Removal of spurious features; a part of `AsyncModel`."""

    _wire: AsyncWire
    info: ModelInfo

    async def remove_spurious(
        self, training: Sequence[LabelledText], *, on_progress: OnProgress | None = None, **options: Any
    ) -> SpuriousRemoval:
        """Find what a decision rests on, judge it, remove what is spurious, measure what that does.

        Args:
            training: The ambiguous set, of two labels.
            on_progress: Called with every step.
            options: Those of `start_remove_spurious`.
        """
        started = await self.start_remove_spurious(training, **options)
        return await started.result(on_progress=on_progress)

    async def start_remove_spurious(
        self, training: Sequence[LabelledText], **options: Any
    ) -> AsyncOperation[SpuriousRemoval]:
        """Start a removal.

        Args:
            training: The ambiguous set, of two labels.
            options: Each may be left unset. `validation`, `test`: further labelled texts.
                `attribute_texts`: examples of the spurious attribute; `attribute_name`: `gender` has a
                built-in lexicon; `swaps`: pairs of words of one's own. `decision`: a `Probe` (with
                `pairs=True` trained on pairs), `LabelTokens`, `StockClassifier` or `RewardModel`.
                `replacement`, `layers`, `estimator`, `steps` (of integrated gradients alone).
                `spurious_above`, `task_below`, `false_discoveries`, `clusters`. `candidates`, `exact`,
                `counts`, `effect_texts`, `fit_texts`, `random_sets`. `refit=False` keeps the head (unset: so
                with label tokens and rewards, which are not trained);
                `erase=False` trains it again with nothing forbidden. `overrides`: a person's words.
                `edit_id`, `author`: make an edit of it if it is shown to hold (`outcome`), with
                `unproven=True` in any case. `resamples`, `seed`, `request_id`.
        """
        request = remove_spurious(self.info.name, training, **await self._readable(options))
        message = await self._wire.call(self._wire.edits.RemoveSpuriousFeatures, request)
        return AsyncOperation(self._wire, message, removal_of)

    async def predict_remove_spurious(
        self, training: Sequence[LabelledText], **options: Any
    ) -> SpuriousRemoval:
        """Check a request and predict its `seconds` and `peak_extra_bytes`; nothing is removed."""
        given = await self._readable(options)
        request = remove_spurious(self.info.name, training, validate_only=True, **given)
        message = await self._wire.call(self._wire.edits.RemoveSpuriousFeatures, request)
        return await AsyncOperation(self._wire, message, removal_of).result()

    async def _readable(self, options: dict[str, Any]) -> dict[str, Any]:
        """Let a local server read the folder of a head that is given as one."""
        decision = options.get("decision")
        if not isinstance(decision, StockClassifier | RewardModel):
            return options
        source = await shared(source_of(decision.source), self._wire.lease)
        return options | {"decision": replace(decision, source=source)}


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
        """Render the decision list; the artifact's name, to be read with `trephine.artifacts`."""
        name = removal if isinstance(removal, str) else removal.name
        request = pb.RenderSpuriousRemovalRequest(name=resource("spuriousRemovals", name))
        rendered = await self._wire.call(self._wire.edits.RenderSpuriousRemoval, request)
        return str(rendered.artifact)

    async def start_export_classifier(
        self,
        removal: SpuriousRemoval | str,
        name: str,
        texts: Sequence[str],
        *,
        export: str | None = None,
        request_id: str | None = None,
    ) -> AsyncOperation[ClassifierExport]:
        """Publish a report's head on an export of its edit as a stock sequence classifier.

        Args:
            removal: The report.
            name: Of the folder in the export root; must not exist.
            texts: On 95 % of 64 of them, evenly over all, the reloaded folder must decide as was measured.
            export: Name of a published export of the report's edit; unset where nothing was removed.
            request_id: The same id again returns the same operation.
        """
        report = removal if isinstance(removal, str) else removal.name
        request = export_classifier(report, name, texts, export=export, request_id=request_id)
        message = await self._wire.call(self._wire.edits.ExportClassifier, request)
        return AsyncOperation(self._wire, message, classifier_of)

    async def download_classifier(
        self, classifier: ClassifierExport, folder: str | Path, *, on_bytes: OnBytes | None = None
    ) -> Path:
        """Fetch every file into a temporary sibling of `folder`, check it, and rename once.

        Raises:
            ExportTargetExistsError: If the folder exists.
            HashMismatchError: If the bytes are not the announced ones; nothing is kept.
        """

        def read(path: str, offset: int) -> AsyncGenerator[pb.ReadClassifierFileResponse, None]:
            request = pb.ReadClassifierFileRequest(name=classifier.name, path=path, offset=offset)
            return self._wire.stream(self._wire.edits.ReadClassifierFile, request)

        return await download_folder(classifier.listed, folder, read, on_bytes=on_bytes)
