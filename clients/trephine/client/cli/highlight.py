"""Tokens of a text, highlighted by what a feature does on them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.color import Color
from rich.style import Style
from rich.text import Text

from trephine.client.cli.output import Output
from trephine.client.terminal import printable
from trephine.client.types import Token

_RAISED, _LOWERED = (31, 119, 214), (222, 110, 20)
_FAINT = 0.08
"""Below this share of the peak a token is left plain."""
_STRONG = 0.5


def show_tokens(
    output: Output, head: str, tokens: Sequence[Token], values: Sequence[float], *, peak: float | None = None
) -> None:
    """Print a line of tokens, each the more coloured the larger its activation.

    Off a terminal the strongest token is marked by «».

    Args:
        output: Where to.
        head: What stands in front.
        tokens: The text.
        values: One activation per token.
        peak: The magnitude of full colour; None: the largest of these.
    """
    largest = max((abs(value) for value in values), default=0.0) if peak is None else abs(peak)
    if not output.terminal:
        output.line(head + _marked(tokens, values))
        return
    text = Text(head)
    for token, value in zip(tokens, values, strict=True):
        text.append(printable(token.display), _style(value / largest if largest else 0.0))
    output.styled(text)


def _style(share: float) -> Style:
    strength = min(1.0, abs(share))
    if strength < _FAINT:
        return Style.null()
    full = _RAISED if share > 0 else _LOWERED
    ground = tuple(round(255 + (channel - 255) * (0.25 + 0.75 * strength)) for channel in full)
    bright = strength < _STRONG
    return Style(
        bgcolor=Color.from_rgb(*ground),
        color=Color.from_rgb(0, 0, 0) if bright else Color.from_rgb(255, 255, 255),
        bold=strength > _STRONG,
        underline=strength == 1.0,
    )


def _marked(tokens: Sequence[Token], values: Sequence[float]) -> str:
    sizes = [abs(value) for value in values]
    best = sizes.index(max(sizes)) if any(sizes) else -1
    shown = (printable(token.display) for token in tokens)
    return "".join(f"«{text}»" if place == best else text for place, text in enumerate(shown))
