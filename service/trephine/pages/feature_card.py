"""What a circuit's side panel shows of a feature: the short form of its page."""

from __future__ import annotations

from typing import Any

from trephine.domain.features import FeatureContext, FeatureDescription
from trephine.pages.embed import printable

_CONTEXTS, _TOKENS, _AROUND = 4, 8, 10


def feature_card(description: FeatureDescription) -> dict[str, Any]:
    """Return label, figures, what it fires on and strongest contexts; without an index the label alone."""
    statistics, label = description.statistics, description.label
    card: dict[str, Any] = {"label": "" if label is None else printable(label.text)}
    if statistics is None:
        return card
    return card | {
        "density": statistics.density,
        "mean": statistics.mean,
        "largest": statistics.largest,
        "tokens": [[printable(one.token.display), one.share] for one in statistics.tokens[:_TOKENS]],
        "contexts": [_context(one) for one in statistics.contexts[:_CONTEXTS]],
    }


def _context(context: FeatureContext) -> dict[str, Any]:
    """Tokens around the peak, each with its share of the peak's activation, -1 to 1."""
    begin = max(0, context.peak - _AROUND)
    peak = context.activations[context.peak]
    shown = slice(begin, context.peak + _AROUND + 1)
    return {
        "peak": peak,
        "at": context.peak - begin,
        "tokens": [printable(token.display) for token in context.tokens[shown]],
        "shares": [round(value / abs(peak), 3) if peak else 0.0 for value in context.activations[shown]],
    }
