"""Activations over a text as one self-contained page: tokens are the more coloured the larger theirs is."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isfinite
from typing import TYPE_CHECKING

from trephine.client.terminal import printable

if TYPE_CHECKING:
    from trephine.client.types.common import Token
    from trephine.client.types.features import Activations, FeatureActivations

_RAISED, _LOWERED = "31,119,214", "222,110,20"
_FAINT = 0.02
"""Below this share of the peak a token is left plain."""
_HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Activations</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"></head>
<body style="font:15px/1.7 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em">
"""


def activations_page(found: Activations) -> str:
    """Return the page: a block per feature, with the value of every token on hover."""
    return f"{_HEAD}{activations_html(found)}</body></html>\n"


def activations_html(found: Activations) -> str:
    """Return the blocks alone, as notebooks show them. Whatever stands in tokens and labels stays text."""
    notes = "".join(f"<p>{escape(printable(caveat))}</p>\n" for caveat in found.caveats)
    return notes + "".join(_block(one, found.tokens) for one in found.features)


def _block(one: FeatureActivations, tokens: Sequence[Token]) -> str:
    largest = max((abs(value) for value in one.values if isfinite(value)), default=0.0)
    head = f"{one.feature} {printable(one.label)}".strip()
    degraded = "; degraded: its set failed admission and was accepted all the same" if one.degraded else ""
    spans = "".join(
        _span(printable(token.display), value, largest)
        for token, value in zip(tokens, one.values, strict=True)
    )
    return (
        f"<section><h3>{escape(head)}</h3><p>largest magnitude {largest:.4g}{degraded}</p>"
        f'<p style="white-space:pre-wrap;overflow-wrap:anywhere">{spans}</p></section>\n'
    )


def _span(text: str, value: float, largest: float) -> str:
    share = abs(value) / largest if largest and isfinite(value) else 0.0
    colour = _RAISED if value > 0 else _LOWERED
    style = f' style="background:rgba({colour},{share:.2f})"' if share >= _FAINT else ""
    return f'<span title="{value:.4g}"{style}>{escape(text)}</span>'
