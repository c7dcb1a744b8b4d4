"""Spurious features of decisions: what a model can be asked, and what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trephine.client.decoding import decode
from trephine.client.downloads import OnBytes
from trephine.client.folder_downloads import download_folder
from trephine.client.operations import OnProgress, Operation
from trephine.client.paging import pages
from trephine.client.requests import resource
from trephine.client.spurious_requests import export_classifier, remove_spurious
from trephine.client.types import ClassifierExport, LabelledText, ModelInfo, SpuriousRemoval
from trephine.client.wire import Wire
from trephine.v1 import spurious_removal_pb2 as pb


class CleanableModel:
    """Removal of spurious features; a part of `Model`."""

    _wire: Wire
    info: ModelInfo

    def remove_spurious(
        self, training: Sequence[LabelledText], *, on_progress: OnProgress | None = None, **options: Any
    ) -> SpuriousRemoval:
        """Find what a decision rests on, judge it, remove what is spurious, measure what that does.

        Args:
            training: The ambiguous set, of two labels.
            on_progress: Called with every step.
            options: Those of `start_remove_spurious`.
        """
        return self.start_remove_spurious(training, **options).result(on_progress=on_progress)

    def start_remove_spurious(
        self, training: Sequence[LabelledText], **options: Any
    ) -> Operation[SpuriousRemoval]:
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
        message = self._wire.call(
            self._wire.edits.RemoveSpuriousFeatures, remove_spurious(self.info.name, training, **options)
        )
        return Operation(self._wire, message, removal_of)

    def predict_remove_spurious(self, training: Sequence[LabelledText], **options: Any) -> SpuriousRemoval:
        """Check a request and predict its `seconds` and `peak_extra_bytes`; nothing is removed."""
        request = remove_spurious(self.info.name, training, validate_only=True, **options)
        message = self._wire.call(self._wire.edits.RemoveSpuriousFeatures, request)
        return Operation(self._wire, message, removal_of).result()


def removal_of(message: Any) -> SpuriousRemoval:
    """Decode what a removal ended in."""
    return decode(SpuriousRemoval, message)


def classifier_of(message: Any) -> ClassifierExport:
    """Decode a published classifier."""
    return decode(ClassifierExport, message)


class SpuriousRemovals:
    """Reports on decisions."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def get(self, name: str) -> SpuriousRemoval:
        """One by name, whole."""
        request = pb.GetSpuriousRemovalRequest(name=resource("spuriousRemovals", name))
        return removal_of(self._wire.call(self._wire.edits.GetSpuriousRemoval, request))

    def list(self) -> tuple[SpuriousRemoval, ...]:
        """All, newest first, without features."""
        found = pages(self._wire, self._wire.edits.ListSpuriousRemovals, pb.ListSpuriousRemovalsRequest())
        return tuple(removal_of(one) for page in found for one in page.spurious_removals)

    def page(self, removal: SpuriousRemoval | str) -> str:
        """Render the decision list; the artifact's name, to be read with `trephine.artifacts`."""
        name = removal if isinstance(removal, str) else removal.name
        request = pb.RenderSpuriousRemovalRequest(name=resource("spuriousRemovals", name))
        return str(self._wire.call(self._wire.edits.RenderSpuriousRemoval, request).artifact)

    def start_export_classifier(
        self,
        removal: SpuriousRemoval | str,
        name: str,
        texts: Sequence[str],
        *,
        export: str | None = None,
        request_id: str | None = None,
    ) -> Operation[ClassifierExport]:
        """Publish a report's head on an export of its edit as a stock sequence classifier.

        Args:
            removal: The report.
            name: Of the folder in the export root; must not exist.
            texts: On 95 % of the first 64 the reloaded folder must decide as was measured.
            export: Name of a published export of the report's edit; unset where nothing was removed.
            request_id: The same id again returns the same operation.
        """
        report = removal if isinstance(removal, str) else removal.name
        request = export_classifier(report, name, texts, export=export, request_id=request_id)
        return Operation(
            self._wire, self._wire.call(self._wire.edits.ExportClassifier, request), classifier_of
        )

    def download_classifier(
        self, classifier: ClassifierExport, folder: str | Path, *, on_bytes: OnBytes | None = None
    ) -> Path:
        """Fetch every file into a temporary sibling of `folder`, check it, and rename once.

        Raises:
            ExportTargetExistsError: If the folder exists.
            HashMismatchError: If the bytes are not the announced ones; nothing is kept.
        """

        def read(path: str, offset: int) -> Iterator[pb.ReadClassifierFileResponse]:
            request = pb.ReadClassifierFileRequest(name=classifier.name, path=path, offset=offset)
            return self._wire.stream(self._wire.edits.ReadClassifierFile, request)

        return download_folder(classifier.listed, folder, read, on_bytes=on_bytes)
