"""Features of a model: looked at, searched for, labelled; and the indexes that know them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trephine.client import feature_requests as build
from trephine.client.aio.artifacts import AsyncArtifacts
from trephine.client.aio.blocking import run_blocking
from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.wire import AsyncWire
from trephine.client.decoding import decode
from trephine.client.descriptions import described
from trephine.client.downloads import write_file
from trephine.client.feature_requests import Address
from trephine.client.interventions import Handle
from trephine.client.interventions import feature as handle
from trephine.client.requests import resource
from trephine.client.set_ids import AnySet, set_id
from trephine.client.types.common import FeatureRef
from trephine.client.types.features import (
    Activations,
    Contrast,
    FeatureDescription,
    FeatureIndex,
    FeatureLabel,
    FoundFeatures,
    TopFeatures,
)
from trephine.client.types.models import ModelInfo
from trephine.client.watches import OnProgress
from trephine.v1 import feature_service_pb2 as pb


class AsyncModelFeatures:
    """The features of one set beside a model, or the model's own neurons. Made by `model.features()`."""

    def __init__(self, wire: AsyncWire, model: str, replacement: AnySet = "") -> None:
        self._wire = wire
        self.model = model
        self.replacement = set_id(replacement, model)

    def __repr__(self) -> str:
        return described(self, f"{self.replacement or 'neurons'} of {self.model}")

    async def activations(self, text: str, features: Sequence[Address]) -> Activations:
        """What chosen features do at every token of a text; a feature is `(layer, index)`."""
        request = build.activations(self.model, self.replacement, text, features)
        return decode(Activations, await self._wire.call(self._wire.features.GetActivations, request))

    async def top(
        self,
        text: str,
        *,
        per_token: bool = False,
        layers: Sequence[int] | None = None,
        count: int | None = None,
    ) -> TopFeatures:
        """The strongest features, by |activation| x decoder norm; position 0 is left out.

        Args:
            text: At least two tokens.
            per_token: Rank at every token apart; unset: over the whole text.
            layers: Only these, per token; unset: all.
            count: Unset 20 over the text, 5 per token.
        """
        request = build.top(self.model, self.replacement, text, per_token, layers=layers, count=count)
        return decode(TopFeatures, await self._wire.call(self._wire.features.TopFeatures, request))

    async def describe(
        self,
        feature: Address,
        *,
        index: str | None = None,
        tokens: int | None = None,
        neighbours: int | None = None,
    ) -> FeatureDescription:
        """Everything that is known of a feature.

        Args:
            feature: `(layer, index)`.
            index: Name of the index to use; unset: the newest that covers the feature.
            tokens: Promoted and suppressed tokens; unset 10.
            neighbours: Nearest decoders; unset 10.
        """
        request = build.describe(
            self.model, self.replacement, feature, index, tokens=tokens, neighbours=neighbours
        )
        return decode(FeatureDescription, await self._wire.call(self._wire.features.DescribeFeature, request))

    async def search(
        self,
        *,
        token: str | None = None,
        text: str | None = None,
        label: str | None = None,
        index: str | None = None,
        count: int = 20,
    ) -> FoundFeatures:
        """Features by exactly one of three, best first.

        Args:
            token: Features whose activation is mostly on this token; needs an index.
            text: The strongest features of this text, each once.
            label: Features whose label holds every word of this.
            index: Name of the index to use; unset: the newest.
            count: At most this many, up to 500.
        """
        request = build.search(self.model, self.replacement, index, count, token, text, label)
        found = await self._wire.call(self._wire.features.SearchFeatures, request)
        return decode(FoundFeatures, found)

    async def contrast(
        self,
        first: Sequence[str],
        second: Sequence[str],
        *,
        layers: Sequence[int] | None = None,
        count: int | None = None,
        permutations: int | None = None,
        seed: int | None = None,
    ) -> Contrast:
        """Features that tell two sets of texts apart: mean difference, AUROC, permutation p, q.

        Args:
            first: At least two texts of at least two tokens.
            second: The same.
            layers: Unset: all.
            count: Unset 20.
            permutations: Unset 999.
            seed: Unset 0.
        """
        request = build.contrast(
            self.model,
            self.replacement,
            first,
            second,
            layers=layers,
            count=count,
            permutations=permutations,
            seed=seed,
        )
        return decode(Contrast, await self._wire.call(self._wire.features.ContrastFeatures, request))

    async def index(
        self,
        corpus: str | os.PathLike[str] | None = None,
        *,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> FeatureIndex:
        """Run a corpus and index what every feature does; wait for it.

        Args:
            corpus: A text file (documents apart by blank lines) or JSONL with a `text` each; unset: the
                built-in text.
            on_progress: Called with every step.
            options: Those of `start_index`.
        """
        started = await self.start_index(corpus, **options)
        return await started.result(on_progress=on_progress)

    async def start_index(
        self,
        corpus: str | os.PathLike[str] | None = None,
        *,
        layers: Sequence[int] | None = None,
        context_tokens: int | None = None,
        max_tokens: int | None = None,
        contexts_per_feature: int | None = None,
        window: int | None = None,
        request_id: str | None = None,
    ) -> AsyncOperation[FeatureIndex]:
        """Start building an index; one that exists is no work, one that was begun is gone on with.

        Args:
            corpus: A text or JSONL file; unset: the built-in text.
            layers: Unset: all that the set covers.
            context_tokens: Longest context; unset 128.
            max_tokens: Where to stop; unset 1,048,576.
            contexts_per_feature: Unset 12.
            window: Tokens kept on either side of a peak; unset 12.
            request_id: The same id again returns the same operation.
        """
        path = None if corpus is None else Path(corpus).expanduser()
        sent = None
        if path is not None:
            sent = await AsyncArtifacts(self._wire).upload(path, media_type=build.media_type(path))
        request = build.build_index(
            self.model,
            self.replacement,
            sent,
            request_id,
            corpus_name=None if path is None else path.name[:100],
            layers=layers,
            context_tokens=context_tokens,
            max_tokens=max_tokens,
            contexts_per_feature=contexts_per_feature,
            window=window,
        )
        message = await self._wire.call(self._wire.features.BuildFeatureIndex, request)
        return AsyncOperation(self._wire, message, lambda result: decode(FeatureIndex, result))

    async def predict_index(
        self,
        corpus: str | os.PathLike[str] | None = None,
        *,
        layers: Sequence[int] | None = None,
        max_tokens: int | None = None,
        context_tokens: int | None = None,
    ) -> FeatureIndex:
        """Say what building an index would take: time, memory, disk. Nothing is built.

        The corpus is sent all the same, unless it is there already.
        """
        path = None if corpus is None else Path(corpus).expanduser()
        sent = None
        if path is not None:
            sent = await AsyncArtifacts(self._wire).upload(path, media_type=build.media_type(path))
        request = build.build_index(
            self.model,
            self.replacement,
            sent,
            None,
            corpus_name=None if path is None else path.name[:100],
            layers=layers,
            max_tokens=max_tokens,
            context_tokens=context_tokens,
        )
        request.validate_only = True
        message = await self._wire.call(self._wire.features.BuildFeatureIndex, request)
        predicted = AsyncOperation(self._wire, message, lambda result: decode(FeatureIndex, result))
        return await predicted.result()

    async def labels(self, *, layer: int | None = None) -> tuple[FeatureLabel, ...]:
        """The set's labels, by layer and index."""
        request = pb.ListFeatureLabelsRequest(
            model=self.model, replacement=self.replacement, layer=layer, page_size=1000
        )
        found = self._wire.pages(self._wire.features.ListFeatureLabels, request)
        return tuple([decode(FeatureLabel, label) async for page in found for label in page.labels])

    async def set_label(self, feature: Address, text: str, *, author: str = "") -> FeatureLabel:
        """Label a feature; the last write wins."""
        request = build.set_label(self.model, self.replacement, feature, text, author)
        return decode(FeatureLabel, await self._wire.call(self._wire.features.SetFeatureLabel, request))

    async def delete_label(self, feature: Address) -> None:
        """Forget a label."""
        request = pb.DeleteFeatureLabelRequest(
            model=self.model, feature=build.feature_ref(feature, self.replacement)
        )
        await self._wire.call(self._wire.features.DeleteFeatureLabel, request)

    async def import_labels(self, source: Path | bytes, *, author: str = "") -> int:
        """Store the labels of a JSONL file; return how many.

        A line is `{"layer": 12, "index": 345, "label": "...", "author": "..."}`.

        Raises:
            InvalidRequestError: Naming the first line that is no label.
        """
        stored = 0
        for request in build.imports(self.model, self.replacement, source, author):
            answer = await self._wire.call(self._wire.features.ImportFeatureLabels, request)
            stored += answer.stored
        return stored

    async def export_labels(self) -> bytes:
        """The set's labels as JSONL, as `import_labels` reads them."""
        request = pb.ExportFeatureLabelsRequest(model=self.model, replacement=self.replacement)
        written = await self._wire.call(self._wire.features.ExportFeatureLabels, request)
        return await AsyncArtifacts(self._wire).read(written.artifact)

    async def html(
        self, feature: Address, *, beside: Sequence[Address] = (), index: str | None = None
    ) -> str:
        """One self-contained page; features that lie beside it in the same folder become links."""
        request = build.render(self.model, self.replacement, feature, beside, index)
        rendered = await self._wire.call(self._wire.features.RenderFeature, request)
        page = await AsyncArtifacts(self._wire).read(rendered.artifact)
        return page.decode()

    async def save_pages(
        self, features: Sequence[Address], folder: str | Path, *, index: str | None = None
    ) -> tuple[Path, ...]:
        """Write a page per feature into a folder; they link to one another."""
        written = []
        for feature in features:
            request = build.render(self.model, self.replacement, feature, features, index)
            rendered = await self._wire.call(self._wire.features.RenderFeature, request)
            data = await AsyncArtifacts(self._wire).read(rendered.artifact)
            path = Path(folder) / Path(rendered.file_name).name
            written.append(await run_blocking(write_file, path, data))
        return tuple(written)


class AsyncFeature:
    """One feature of a model. Made by `model.feature(layer, index)`."""

    def __init__(self, features: AsyncModelFeatures, layer: int, index: int) -> None:
        self._features = features
        self.ref = FeatureRef(layer=layer, index=index, replacement=features.replacement)

    def __repr__(self) -> str:
        return described(self, f"{self.ref} of {self._features.model}")

    async def describe(
        self, *, index: str | None = None, tokens: int | None = None, neighbours: int | None = None
    ) -> FeatureDescription:
        """Everything that is known of it."""
        return await self._features.describe(self.ref, index=index, tokens=tokens, neighbours=neighbours)

    async def activations(self, text: str) -> tuple[float, ...]:
        """What it does at every token of a text."""
        measured = await self._features.activations(text, [self.ref])
        return measured.features[0].values

    async def label(self, text: str, *, author: str = "") -> FeatureLabel:
        """Call it something."""
        return await self._features.set_label(self.ref, text, author=author)

    async def html(self, *, index: str | None = None) -> str:
        """One self-contained page."""
        return await self._features.html(self.ref, index=index)

    def change(self) -> Handle:
        """Begin an intervention: `.change().ablate()`, `.change().scale(0.5)`."""
        return handle(self.ref.layer, self.ref.index, replacement=self.ref.replacement)


class AsyncFeatureIndexes:
    """Every finished index. Made as `trephine.features`."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    def of(self, model: str, replacement: AnySet = "") -> AsyncModelFeatures:
        """The features of a loaded model's set, by names."""
        return AsyncModelFeatures(self._wire, resource("models", model), replacement)

    async def indexes(self) -> tuple[FeatureIndex, ...]:
        """All indexes, newest first."""
        request = pb.ListFeatureIndexesRequest(page_size=500)
        found = self._wire.pages(self._wire.features.ListFeatureIndexes, request)
        return tuple([decode(FeatureIndex, index) async for page in found for index in page.indexes])

    async def get_index(self, name: str) -> FeatureIndex:
        """One index by name."""
        request = pb.GetFeatureIndexRequest(name=build.index_name(name) or "")
        return decode(FeatureIndex, await self._wire.call(self._wire.features.GetFeatureIndex, request))

    async def delete_index(self, name: str) -> None:
        """Forget an index."""
        request = pb.DeleteFeatureIndexRequest(name=build.index_name(name) or "")
        await self._wire.call(self._wire.features.DeleteFeatureIndex, request)


class AsyncExplorableModel:
    """What a model can be asked about its features; a part of `AsyncModel`."""

    _wire: AsyncWire
    info: ModelInfo

    def features(self, replacement: AnySet = "") -> AsyncModelFeatures:
        """The features of a set beside it; unset: its own neurons."""
        return AsyncModelFeatures(self._wire, self.info.name, replacement)

    def feature(self, layer: int, index: int, *, replacement: AnySet = "") -> AsyncFeature:
        """One feature; without `replacement` one of its own neurons."""
        return AsyncFeature(self.features(replacement), layer, index)
