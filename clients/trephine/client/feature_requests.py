"""Requests about features, built from plain arguments. Shared by the sync and the async surface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.requests import fresh_id, resource
from trephine.client.sendable import listed, sendable
from trephine.client.types.common import FeatureRef
from trephine.v1 import common_pb2
from trephine.v1 import feature_service_pb2 as pb

Address = FeatureRef | tuple[int, int]
"""A feature: its address, or `(layer, index)` of the set that is looked at."""

_IMPORT_BYTES = 4 << 20
"""Labels travel in messages of this size."""


def feature_ref(feature: Address, replacement: str) -> common_pb2.FeatureRef:
    """The contract's address of a feature."""
    if isinstance(feature, tuple):
        return common_pb2.FeatureRef(replacement=replacement, layer=feature[0], index=feature[1])
    return common_pb2.FeatureRef(
        replacement=feature.replacement or replacement, layer=feature.layer, index=feature.index
    )


@sendable
def activations(
    model: str, replacement: str, text: str, features: Sequence[Address]
) -> pb.GetActivationsRequest:
    """Read chosen features."""
    return pb.GetActivationsRequest(
        model=model, text=text, features=[feature_ref(feature, replacement) for feature in features]
    )


@sendable
def top(model: str, replacement: str, text: str, per_token: bool, **options: Any) -> pb.TopFeaturesRequest:
    """Rank features."""
    scope = pb.TOP_SCOPE_TOKEN if per_token else pb.TOP_SCOPE_TEXT
    return pb.TopFeaturesRequest(
        model=model, replacement=replacement, text=text, scope=scope, **_given(options)
    )


@sendable
def describe(
    model: str, replacement: str, feature: Address, index: str | None, **options: Any
) -> pb.DescribeFeatureRequest:
    """Describe a feature."""
    return pb.DescribeFeatureRequest(
        model=model, feature=feature_ref(feature, replacement), index=index_name(index), **_given(options)
    )


@sendable
def search(
    model: str,
    replacement: str,
    index: str | None,
    count: int,
    token: str | None,
    text: str | None,
    label: str | None,
) -> pb.SearchFeaturesRequest:
    """Search by one thing.

    Raises:
        InvalidRequestError: If none or several were given.
    """
    query = {
        name: value
        for name, value in (("token", token), ("text", text), ("label", label))
        if value is not None
    }
    if len(query) != 1:
        raise InvalidRequestError("search by a token, by a text or by a label: exactly one", field="query")
    chosen: Any = query
    return pb.SearchFeaturesRequest(
        model=model, replacement=replacement, index=index_name(index), page_size=count, **chosen
    )


@sendable
def contrast(
    model: str, replacement: str, first: Sequence[str], second: Sequence[str], **options: Any
) -> pb.ContrastFeaturesRequest:
    """Compare two sets of texts."""
    return pb.ContrastFeaturesRequest(
        model=model,
        replacement=replacement,
        first=listed(first, "first"),
        second=listed(second, "second"),
        **_given(options),
    )


@sendable
def render(
    model: str, replacement: str, feature: Address, beside: Sequence[Address], index: str | None
) -> pb.RenderFeatureRequest:
    """Render a feature's page."""
    return pb.RenderFeatureRequest(
        model=model,
        feature=feature_ref(feature, replacement),
        index=index_name(index),
        beside=[feature_ref(one, replacement) for one in beside],
    )


@sendable
def build_index(
    model: str, replacement: str, corpus: str | None, request_id: str | None, **options: Any
) -> pb.BuildFeatureIndexRequest:
    """Build an index; `corpus` is an artifact's resource name."""
    return pb.BuildFeatureIndexRequest(
        model=model,
        replacement=replacement,
        corpus=corpus,
        request_id=fresh_id(request_id),
        **_given(options),
    )


@sendable
def set_label(
    model: str, replacement: str, feature: Address, text: str, author: str
) -> pb.SetFeatureLabelRequest:
    """Label a feature."""
    return pb.SetFeatureLabelRequest(
        model=model, feature=feature_ref(feature, replacement), text=text, author=author
    )


def imports(
    model: str, replacement: str, source: Path | bytes, author: str
) -> Iterator[pb.ImportFeatureLabelsRequest]:
    """Store the labels of a JSONL file, in messages of whole lines.

    Raises:
        LocalFileError: If the file cannot be read.
        InvalidRequestError: If a line is longer than a message.
    """
    for lines in _batches(_lines(source)):
        yield pb.ImportFeatureLabelsRequest(model=model, replacement=replacement, lines=lines, author=author)


def index_name(name: str | None) -> str | None:
    """The resource name of an index; None stays None."""
    return None if name is None else resource("featureIndexes", name)


def media_type(path: Path) -> str:
    """What a corpus is sent as."""
    return "application/jsonl" if path.suffix in {".jsonl", ".ndjson"} else "text/plain; charset=utf-8"


def _lines(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield from source.splitlines(keepends=True)
        return
    try:
        with source.open("rb") as file:
            yield from file
    except OSError as failure:
        raise LocalFileError(f"cannot read {source}: {failure.strerror}") from failure


def _batches(lines: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for number, line in enumerate(lines, 1):
        if len(line) > _IMPORT_BYTES:
            raise InvalidRequestError(f"line {number} is longer than any label", field="lines")
        if len(held) + len(line) > _IMPORT_BYTES:
            yield held
            held = b""
        held += line
    yield held


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
