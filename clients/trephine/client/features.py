"""Features of a model: looked at, searched for, labelled; and the indexes that know them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trephine.client import feature_requests as build
from trephine.client.artifacts import Artifacts
from trephine.client.decoding import decode
from trephine.client.descriptions import described
from trephine.client.downloads import write_file
from trephine.client.feature_requests import Address
from trephine.client.interventions import Handle
from trephine.client.interventions import feature as handle
from trephine.client.operations import OnProgress, Operation
from trephine.client.paging import pages
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
from trephine.client.wire import Wire
from trephine.v1 import feature_service_pb2 as pb


class ModelFeatures:
    """The features of one set beside a model, or the model's own neurons. Made by `model.features()`."""

    def __init__(self, wire: Wire, model: str, replacement: AnySet = "") -> None:
        self._wire = wire
        self.model = model
        self.replacement = set_id(replacement, model)

    def __repr__(self) -> str:
        return described(self, f"{self.replacement or 'neurons'} of {self.model}")

    def activations(self, text: str, features: Sequence[Address]) -> Activations:
        """What chosen features do at every token of a text; a feature is `(layer, index)`."""
        request = build.activations(self.model, self.replacement, text, features)
        return decode(Activations, self._wire.call(self._wire.features.GetActivations, request))

    def top(
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
        return decode(TopFeatures, self._wire.call(self._wire.features.TopFeatures, request))

    def describe(
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
        return decode(FeatureDescription, self._wire.call(self._wire.features.DescribeFeature, request))

    def search(
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
        found = self._wire.call(self._wire.features.SearchFeatures, request)
        return decode(FoundFeatures, found)

    def contrast(
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
        return decode(Contrast, self._wire.call(self._wire.features.ContrastFeatures, request))

    def index(
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
        return self.start_index(corpus, **options).result(on_progress=on_progress)

    def start_index(
        self,
        corpus: str | os.PathLike[str] | None = None,
        *,
        layers: Sequence[int] | None = None,
        context_tokens: int | None = None,
        max_tokens: int | None = None,
        contexts_per_feature: int | None = None,
        window: int | None = None,
        request_id: str | None = None,
    ) -> Operation[FeatureIndex]:
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
            sent = Artifacts(self._wire).upload(path, media_type=build.media_type(path))
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
        message = self._wire.call(self._wire.features.BuildFeatureIndex, request)
        return Operation(self._wire, message, lambda result: decode(FeatureIndex, result))

    def predict_index(
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
            sent = Artifacts(self._wire).upload(path, media_type=build.media_type(path))
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
        message = self._wire.call(self._wire.features.BuildFeatureIndex, request)
        predicted = Operation(self._wire, message, lambda result: decode(FeatureIndex, result))
        return predicted.result()

    def labels(self, *, layer: int | None = None) -> tuple[FeatureLabel, ...]:
        """The set's labels, by layer and index."""
        request = pb.ListFeatureLabelsRequest(
            model=self.model, replacement=self.replacement, layer=layer, page_size=1000
        )
        found = pages(self._wire, self._wire.features.ListFeatureLabels, request)
        return tuple(decode(FeatureLabel, label) for page in found for label in page.labels)

    def set_label(self, feature: Address, text: str, *, author: str = "") -> FeatureLabel:
        """Label a feature; the last write wins."""
        request = build.set_label(self.model, self.replacement, feature, text, author)
        return decode(FeatureLabel, self._wire.call(self._wire.features.SetFeatureLabel, request))

    def delete_label(self, feature: Address) -> None:
        """Forget a label."""
        request = pb.DeleteFeatureLabelRequest(
            model=self.model, feature=build.feature_ref(feature, self.replacement)
        )
        self._wire.call(self._wire.features.DeleteFeatureLabel, request)

    def import_labels(self, source: Path | bytes, *, author: str = "") -> int:
        """Store the labels of a JSONL file; return how many.

        A line is `{"layer": 12, "index": 345, "label": "...", "author": "..."}`.

        Raises:
            InvalidRequestError: Naming the first line that is no label.
        """
        stored = 0
        for request in build.imports(self.model, self.replacement, source, author):
            stored += self._wire.call(self._wire.features.ImportFeatureLabels, request).stored
        return stored

    def export_labels(self) -> bytes:
        """The set's labels as JSONL, as `import_labels` reads them."""
        request = pb.ExportFeatureLabelsRequest(model=self.model, replacement=self.replacement)
        written = self._wire.call(self._wire.features.ExportFeatureLabels, request)
        return Artifacts(self._wire).read(written.artifact)

    def html(self, feature: Address, *, beside: Sequence[Address] = (), index: str | None = None) -> str:
        """One self-contained page; features that lie beside it in the same folder become links."""
        request = build.render(self.model, self.replacement, feature, beside, index)
        rendered = self._wire.call(self._wire.features.RenderFeature, request)
        return Artifacts(self._wire).read(rendered.artifact).decode()

    def save_pages(
        self, features: Sequence[Address], folder: str | Path, *, index: str | None = None
    ) -> tuple[Path, ...]:
        """Write a page per feature into a folder; they link to one another."""
        written = []
        for feature in features:
            request = build.render(self.model, self.replacement, feature, features, index)
            rendered = self._wire.call(self._wire.features.RenderFeature, request)
            data = Artifacts(self._wire).read(rendered.artifact)
            written.append(write_file(Path(folder) / Path(rendered.file_name).name, data))
        return tuple(written)


class Feature:
    """One feature of a model. Made by `model.feature(layer, index)`."""

    def __init__(self, features: ModelFeatures, layer: int, index: int) -> None:
        self._features = features
        self.ref = FeatureRef(layer=layer, index=index, replacement=features.replacement)

    def __repr__(self) -> str:
        return described(self, f"{self.ref} of {self._features.model}")

    def describe(
        self, *, index: str | None = None, tokens: int | None = None, neighbours: int | None = None
    ) -> FeatureDescription:
        """Everything that is known of it."""
        return self._features.describe(self.ref, index=index, tokens=tokens, neighbours=neighbours)

    def activations(self, text: str) -> tuple[float, ...]:
        """What it does at every token of a text."""
        return self._features.activations(text, [self.ref]).features[0].values

    def label(self, text: str, *, author: str = "") -> FeatureLabel:
        """Call it something."""
        return self._features.set_label(self.ref, text, author=author)

    def html(self, *, index: str | None = None) -> str:
        """One self-contained page."""
        return self._features.html(self.ref, index=index)

    def change(self) -> Handle:
        """Begin an intervention: `.change().ablate()`, `.change().scale(0.5)`."""
        return handle(self.ref.layer, self.ref.index, replacement=self.ref.replacement)


class FeatureIndexes:
    """Every finished index. Made as `trephine.features`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def of(self, model: str, replacement: AnySet = "") -> ModelFeatures:
        """The features of a loaded model's set, by names."""
        return ModelFeatures(self._wire, resource("models", model), replacement)

    def indexes(self) -> tuple[FeatureIndex, ...]:
        """All indexes, newest first."""
        request = pb.ListFeatureIndexesRequest(page_size=500)
        found = pages(self._wire, self._wire.features.ListFeatureIndexes, request)
        return tuple(decode(FeatureIndex, index) for page in found for index in page.indexes)

    def get_index(self, name: str) -> FeatureIndex:
        """One index by name."""
        request = pb.GetFeatureIndexRequest(name=build.index_name(name) or "")
        return decode(FeatureIndex, self._wire.call(self._wire.features.GetFeatureIndex, request))

    def delete_index(self, name: str) -> None:
        """Forget an index."""
        request = pb.DeleteFeatureIndexRequest(name=build.index_name(name) or "")
        self._wire.call(self._wire.features.DeleteFeatureIndex, request)


class ExplorableModel:
    """What a model can be asked about its features; a part of `Model`."""

    _wire: Wire
    info: ModelInfo

    def features(self, replacement: AnySet = "") -> ModelFeatures:
        """The features of a set beside it; unset: its own neurons."""
        return ModelFeatures(self._wire, self.info.name, replacement)

    def feature(self, layer: int, index: int, *, replacement: AnySet = "") -> Feature:
        """One feature; without `replacement` one of its own neurons."""
        return Feature(self.features(replacement), layer, index)
