"""Putting data and scripts into one HTML file so that the data can never run.

Data goes into `<script type="application/json">` with every character escaped that could end the
element or the line; the only script that may run is ours, named by its hash in the page's policy.
"""

from __future__ import annotations

import json
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from math import isfinite

from markupsafe import Markup

_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&'\u2028\u2029\u007f"}


@cache
def asset(name: str) -> str:
    """Return a file of `trephine/pages/assets` as text."""
    return (files("trephine.pages") / "assets" / name).read_text(encoding="utf-8")


def json_island(value: object) -> Markup:
    """Encode a value as JSON that is safe between script tags; lone surrogates stay escapes.

    JSON knows no NaN and no infinity: they become null, which the pages show as a dash.
    """
    return Markup(json.dumps(_finite(value), allow_nan=False, ensure_ascii=True).translate(_ESCAPES))  # noqa: S704


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def printable(text: str) -> str:
    """Make a text safe to encode and to read: lone surrogates, controls and bidi marks become escapes."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    code = ord(character)
    hidden = (
        (code < 0x20 and character not in "\n\t")
        or 0x7F <= code <= 0x9F
        or 0xD800 <= code <= 0xDFFF
        or code in _FORMATTING
    )
    return f"\\u{code:04x}" if hidden else character


_FORMATTING = frozenset(
    [0x061C, 0xFEFF, *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
)


def content_policy(*scripts: str) -> str:
    """Return a Content-Security-Policy that lets only these inline scripts run and loads nothing."""
    digests = (b64encode(sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}"
