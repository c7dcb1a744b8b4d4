"""Looking at features: described, searched for, rendered. What is computed comes from the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from trephine.app.features.feature_indexes import FeatureIndexes, StoredIndex
from trephine.app.features.feature_sets import FeatureSet, FeatureSets
from trephine.app.features.index_reading import IndexReader
from trephine.app.features.labels import Labels
from trephine.app.models.models import Models
from trephine.app.storage.artifacts import ArtifactStore
from trephine.domain.activations import RankActivity
from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.errors import FeatureIndexNotFoundError, ParentChangedError
from trephine.domain.feature_index import TOP_TOKENS
from trephine.domain.features import (
    DecoderView,
    FeatureDescription,
    FeatureStatistics,
    FoundFeature,
    ViewDecoder,
)
from trephine.domain.sites import FeatureRef
from trephine.domain.tokens import ResolveTarget, Token
from trephine.pages.feature_page import feature_html

_FEW_POSITIONS = 10_000
_FOUND = 1000
"""Hits of a search at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which features of which model are looked at."""

    model: str
    replacement: str
    index: str = ""
    """Name of the index to use; empty: the newest one that fits."""
    content_hash: str = ""
    """Of the set, or the weights, whose features are meant; empty: whatever has the name."""
    deadline_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """What a search found, best first."""

    features: tuple[FoundFeature, ...]
    caveats: tuple[str, ...] = ()


class Features:
    """Use cases about features."""

    def __init__(
        self,
        *,
        models: Models,
        sets: FeatureSets,
        indexes: FeatureIndexes,
        labels: Labels,
        artifacts: ArtifactStore,
    ) -> None:
        self._models = models
        self._sets = sets
        self._indexes = indexes
        self._labels = labels
        self._artifacts = artifacts

    async def describe(
        self, question: Question, layer: int, index: int, *, tokens: int = 10, neighbours: int = 10
    ) -> FeatureDescription:
        """Say everything that is known of a feature.

        Raises:
            ReplacementNotFoundError: If the set is not loaded.
            FeatureOutOfRangeError: If there is no such feature.
            FeatureIndexNotFoundError: If the named index does not cover it.
            ParentChangedError: If what is loaded under the name has another content than is meant.
        """
        features = await self._sets.get(question.model, question.replacement)
        if question.content_hash not in ("", features.content_hash):
            raise ParentChangedError(
                f"the {features.name} that are loaded beside {features.model.name} have content "
                f"{features.content_hash[:12]}, not {question.content_hash[:12]}: their features are others; "
                "load what is meant",
                loaded_set=features.content_hash,
            )
        feature = FeatureRef(replacement=features.name, layer=layer, index=index)
        features.require(feature, field="feature")
        command = ViewDecoder(feature=feature, tokens=tokens, neighbours=neighbours)
        engine = self._models.engine(question.model)
        view = await engine.run(command, deadline_seconds=question.deadline_seconds)
        covering = await self._indexes.covering(features, layer, question.index)
        statistics, stored = None, None
        if covering is not None:
            stored, reader = covering
            statistics = _renamed(await asyncio.to_thread(reader.statistics, feature), features.name)
        labels = await self._labels.get(features, [feature, *_mentioned(view, statistics)])
        return FeatureDescription(
            view=view,
            statistics=statistics,
            label=labels.pop(feature, None),
            labels=tuple(labels.values()),
            index=None if stored is None else stored.info,
            index_name="" if stored is None else stored.name,
            caveats=tuple(_caveats(features, view, statistics, stored)),
        )

    async def on_token(self, question: Question, text: str) -> Hits:
        """Find the features whose activation is mostly on one token; where there is none, say why.

        Raises:
            TargetNotOneTokenError: If the text is not exactly one token.
            FeatureIndexNotFoundError: If the set has no index.
        """
        features = await self._sets.get(question.model, question.replacement)
        token = await self._models.engine(question.model).run(
            ResolveTarget(text=text), deadline_seconds=question.deadline_seconds
        )
        stored, reader = await self._index(features, question.index)
        hits = (await asyncio.to_thread(reader.on_token, token.id))[:_FOUND]
        found = [
            FoundFeature(
                feature=replace(hit.feature, replacement=features.name),
                score=hit.share,
                why=f"{hit.share:.0%} of its activation is on {token.display!r}; fires {hit.count} times",
                label="",
                degraded=bool(features.degraded),
            )
            for hit in hits
        ]
        caveats = () if hits else (await _nowhere(stored, reader, token),)
        return Hits(features=await self._labelled(features, found), caveats=caveats)

    async def in_text(self, question: Question, text: str) -> Hits:
        """Find the features that contribute most somewhere in a text, each once.

        Raises:
            InvalidRequestError: If the text has a single token.
        """
        features = await self._sets.get(question.model, question.replacement)
        ranked = await self._models.engine(question.model).run(
            RankActivity(text=text, replacement=features.name, count=_FOUND),
            deadline_seconds=question.deadline_seconds,
        )
        found: dict[FeatureRef, FoundFeature] = {}
        for one in ranked.features:
            where = f"{ranked.tokens[one.position].display!r} at position {one.position}"
            hit = FoundFeature(
                feature=one.feature,
                score=one.contribution,
                why=f"{one.activation:+.3g} on {where}",
                label="",
                degraded=bool(features.degraded),
            )
            found.setdefault(one.feature, hit)
        hits = await self._labelled(features, list(found.values()))
        return Hits(features=hits, caveats=ranked.caveats)

    async def labelled(self, question: Question, query: str) -> tuple[FoundFeature, ...]:
        """Find the features whose label holds every word of a query.

        Raises:
            InvalidRequestError: If the query has no word.
        """
        features = await self._sets.get(question.model, question.replacement)
        return tuple(
            FoundFeature(
                feature=label.feature,
                score=score,
                why=f"labelled by {label.author or 'somebody'}",
                label=label.text,
                degraded=bool(features.degraded),
            )
            for label, score in (await self._labels.find(features, query))[:_FOUND]
        )

    async def render(
        self, question: Question, layer: int, index: int, beside: Sequence[tuple[int, int]]
    ) -> ArtifactInfo:
        """Store a feature's description as one self-contained page.

        Args:
            question: Whose feature.
            layer: Its layer.
            index: Its index.
            beside: Features whose pages will lie in the same folder, `(layer, index)`: they become links.

        Raises:
            TrephineError: As `describe` does.
        """
        description = await self.describe(question, layer, index, tokens=15, neighbours=12)
        html = await asyncio.to_thread(feature_html, description, beside=frozenset(beside))
        return await self._artifacts.put(html.encode(), media_type="text/html; charset=utf-8")

    async def _index(self, features: FeatureSet, name: str) -> tuple[StoredIndex, IndexReader]:
        covering = await self._indexes.covering(features, name=name)
        if covering is None:
            raise FeatureIndexNotFoundError(
                f"{features.name} has no feature index yet; build one over a corpus first",
                replacement=features.name,
            )
        return covering

    async def _labelled(self, features: FeatureSet, found: list[FoundFeature]) -> tuple[FoundFeature, ...]:
        labels = await self._labels.get(features, [one.feature for one in found])
        return tuple(
            replace(one, label=labels[one.feature].text) if one.feature in labels else one for one in found
        )


async def _nowhere(index: StoredIndex, reader: IndexReader, token: Token) -> str:
    """Say why no feature is listed for a token, and what to do."""
    info = index.info
    corpus = f"{info.corpus} ({info.tokens} positions indexed)"
    if not await asyncio.to_thread(reader.occurs, token.id):
        return (
            f"{token.display!r} occurs nowhere in {corpus}: index a longer text, or one that has it, or "
            "search by text"
        )
    return (
        f"{token.display!r} occurs in {corpus}, but no feature has it among the {TOP_TOKENS} tokens "
        "that carry most of its activation: search by text for what fires on it all the same"
    )


def _renamed(statistics: FeatureStatistics, replacement: str) -> FeatureStatistics:
    """Address partners by the name that the set has now; an index outlives it."""
    cofiring = tuple(
        replace(one, feature=replace(one.feature, replacement=replacement)) for one in statistics.cofiring
    )
    return replace(statistics, cofiring=cofiring)


def _mentioned(view: DecoderView, statistics: FeatureStatistics | None) -> Iterator[FeatureRef]:
    yield from (feature for feature, _ in view.neighbours)
    if statistics is not None:
        yield from (one.feature for one in statistics.cofiring)


def _caveats(
    features: FeatureSet, view: DecoderView, statistics: FeatureStatistics | None, index: StoredIndex | None
) -> Iterator[str]:
    if features.degraded:
        yield f"The set failed admission and was accepted all the same: {features.degraded}"
    yield from view.caveats
    if statistics is None or index is None:
        yield "No index covers this feature: density, contexts and partners are unknown."
        return
    info = index.info
    if info.degraded and not features.degraded:
        yield "The index was built while the set counted as degraded."
    if info.weight_hash != features.model.weight_hash:
        yield "The index was built on other weights of the model than those that are loaded."
    if statistics.count == 0:
        yield f"It fired at none of the {info.tokens} positions of the index."
    elif info.tokens < _FEW_POSITIONS:
        yield f"The index saw {info.tokens} positions only: rare contexts are missing."
