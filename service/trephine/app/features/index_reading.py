"""Answers out of a feature index's SQLite file, read-only."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trephine.domain.errors import CorruptRecordError, FeatureIndexNotFoundError
from trephine.domain.feature_index import EDGES, SAMPLED_FIRINGS, ArrayForm, array_forms
from trephine.domain.features import (
    CoFiring,
    FeatureContext,
    FeatureIndexInfo,
    FeatureStatistics,
    Histogram,
    TokenShare,
)
from trephine.domain.sites import FeatureRef
from trephine.domain.tokens import Token

_FEWEST_FIRINGS = 5
"""A feature that fires less often is listed behind all others: its share of a token says little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenHit:
    """A feature that fires on a token."""

    feature: FeatureRef
    share: float
    """Of its activation mass that is on the token."""
    count: int
    """Positions at which it fires at all."""


class IndexReader:
    """One finished index. Every method reads what it needs and holds nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def info(self) -> FeatureIndexInfo:
        """Describe the index.

        Raises:
            CorruptRecordError: If the file is no finished index.
        """
        with self._opened() as database:
            return _info(database)

    def statistics(self, feature: FeatureRef) -> FeatureStatistics:
        """Return what the index knows of a feature.

        Raises:
            FeatureIndexNotFoundError: If the index does not cover its layer.
            CorruptRecordError: If the file is damaged.
        """
        with self._opened() as database:
            info, forms = _info(database), _forms(database)
            if feature.layer not in info.layers:
                raise FeatureIndexNotFoundError(
                    f"the index does not cover layer {feature.layer}; it has "
                    f"{', '.join(map(str, info.layers))}",
                    layer=feature.layer,
                )
            arrays = {name: _array(database, feature.layer, name, form) for name, form in forms.items()}
            own = {name: array[feature.index] for name, array in arrays.items()}
            count = int(own["counts"])
            return FeatureStatistics(
                feature=feature,
                density=count / info.tokens if info.tokens else 0.0,
                count=count,
                mean=float(own["sums"]) / count if count else 0.0,
                largest=float(own["largest"]),
                histogram=_histogram(own["histogram"]),
                contexts=tuple(_contexts(database, own)),
                cofiring=_cofiring(feature, own, arrays["counts"]),
                tokens=tuple(_tokens(database, own)),
            )

    def on_token(self, token: int) -> tuple[TokenHit, ...]:
        """Return the features whose mass is on a token, largest share first, rare features last.

        Raises:
            CorruptRecordError: If the file is damaged.
        """
        hits = []
        with self._opened() as database:
            info, forms = _info(database), _forms(database)
            for layer in info.layers:
                names = ("token_ids", "token_masses", "masses", "counts")
                ids, held, masses, counts = (_array(database, layer, name, forms[name]) for name in names)
                rows, slots = np.nonzero(ids == token)
                shares = held[rows, slots] / np.maximum(masses[rows], np.finfo(np.float64).tiny)
                for row, share, count in zip(
                    rows.tolist(), shares.tolist(), counts[rows].tolist(), strict=True
                ):
                    feature = FeatureRef(replacement=info.replacement, layer=layer, index=row)
                    hits.append(TokenHit(feature=feature, share=min(1.0, share), count=count))
        return tuple(
            sorted(hits, key=lambda hit: (hit.count < _FEWEST_FIRINGS, -hit.share, -hit.count, hit.feature))
        )

    def occurs(self, token: int) -> bool:
        """True if a token is anywhere in the index's contexts.

        Raises:
            CorruptRecordError: If the file is damaged.
        """
        with self._opened() as database:
            return database.execute("SELECT 1 FROM tokens WHERE id = ?", (token,)).fetchone() is not None

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
                yield database
        except (sqlite3.Error, zlib.error, ValueError, KeyError, TypeError) as error:
            raise CorruptRecordError(
                f"the feature index {self._path.stem} cannot be read; delete it and build it again",
                record=self._path.name,
            ) from error


def _fact(database: sqlite3.Connection, name: str) -> Any:
    row = database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise ValueError(f"no fact {name}")
    return json.loads(row[0])


def _info(database: sqlite3.Connection) -> FeatureIndexInfo:
    fields = _fact(database, "info")
    return FeatureIndexInfo(**{**fields, "layers": tuple(fields["layers"])})


def _forms(database: sqlite3.Connection) -> dict[str, ArrayForm]:
    request = _fact(database, "request")
    return array_forms(kept=request["contexts_per_feature"], window=request["window"])


def _array(database: sqlite3.Connection, layer: int, name: str, form: ArrayForm) -> NDArray[Any]:
    """Read one array of a layer, `(d_sae, ...)`."""
    query = "SELECT data FROM arrays WHERE layer = ? AND name = ?"
    (data,) = database.execute(query, (layer, name)).fetchone()
    return np.frombuffer(zlib.decompress(data), form.dtype).reshape(-1, *form.shape)


def _histogram(cells: NDArray[Any]) -> Histogram:
    """Cut empty bins off both ends; the open bins get the next edge of the same ratio."""
    filled = np.flatnonzero(cells)
    if not len(filled):
        return Histogram(edges=(), counts=())
    edges = (0.0, *EDGES, EDGES[-1] * EDGES[1] / EDGES[0])
    first, last = int(filled[0]), int(filled[-1])
    return Histogram(edges=edges[first : last + 2], counts=tuple(cells[first : last + 1].tolist()))


def _contexts(database: sqlite3.Connection, own: dict[str, NDArray[Any]]) -> Iterator[FeatureContext]:
    seen = set()
    window = own["top_windows"].shape[1] // 2
    for value, number, place, values in zip(
        own["top_values"].tolist(),
        own["top_contexts"].tolist(),
        own["top_places"].tolist(),
        own["top_windows"],
        strict=True,
    ):
        if number < 0:
            continue
        query = "SELECT document, tokens FROM contexts WHERE number = ?"
        document, data = database.execute(query, (number,)).fetchone()
        ids = np.frombuffer(data, "<i4").tolist()
        start, stop = max(0, place - window), min(len(ids), place + window + 1)
        shown = tuple(ids[start:stop])
        if shown in seen:
            continue
        seen.add(shown)
        scale = abs(value) / 127
        cut = values[start - place + window : stop - place + window]
        yield FeatureContext(
            tokens=tuple(_token(database, one) for one in shown),
            activations=tuple(float(step) * scale for step in cut.tolist()),
            peak=place - start,
            document=document,
            position=place,
        )


def _cofiring(
    feature: FeatureRef, own: dict[str, NDArray[Any]], counts: NDArray[Any]
) -> tuple[CoFiring, ...]:
    """Return partners by Jaccard index: a feature that fires everywhere fires with every other one."""
    partners = _partners(feature, own, counts)
    return tuple(sorted(partners, key=lambda one: (-one.jaccard, -one.count, one.feature)))


def _partners(feature: FeatureRef, own: dict[str, NDArray[Any]], counts: NDArray[Any]) -> Iterator[CoFiring]:
    fired = int(own["counts"])
    of = min(fired, SAMPLED_FIRINGS)
    for index, together in zip(own["partner_ids"].tolist(), own["partner_counts"].tolist(), strict=True):
        if index < 0:
            continue
        both = min(together / of * fired, fired, int(counts[index]))  # a sample's share may say more
        yield CoFiring(
            feature=FeatureRef(replacement=feature.replacement, layer=feature.layer, index=index),
            count=together,
            of=of,
            jaccard=both / max(fired + int(counts[index]) - both, 1.0),
        )


def _tokens(database: sqlite3.Connection, own: dict[str, NDArray[Any]]) -> Iterator[TokenShare]:
    mass = float(own["masses"])
    for token, held in zip(own["token_ids"].tolist(), own["token_masses"].tolist(), strict=True):
        if token >= 0 and mass > 0:
            yield TokenShare(token=_token(database, token), share=min(1.0, held / mass))


def _token(database: sqlite3.Connection, token: int) -> Token:
    raw, display = database.execute("SELECT raw, display FROM tokens WHERE id = ?", (token,)).fetchone()
    return Token(id=token, raw=raw, display=display)
