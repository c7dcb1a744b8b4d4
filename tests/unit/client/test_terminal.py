from __future__ import annotations

import unicodedata

import pytest

from trephine.client.terminal import printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\x00b", "a\\x00b"),
        ("a\u2028b", "a\\u2028b"),
        ("\u202egnorw", "\\u202egnorw"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("half \ud83d emoji", "half \\ud83d emoji"),
        ("line\nbreak\ttab\rreturn", "line\\nbreak\\ttab\\x0dreturn"),
        ("\x9b2J", "\\x9b2J"),
        ("\U000e0041", "\\U000e0041"),
        ("naïve 東京 🙂 [bold]", "naïve 東京 🙂 [bold]"),
    ],
)
def test_what_a_terminal_would_act_on_is_shown(text: str, shown: str):
    """Escapes, separators, bidi marks and half characters appear as text; letters stay letters."""
    assert printable(text) == shown


def test_no_control_or_format_character_survives():
    """Over the whole of Unicode's first plane."""
    everything = "".join(map(chr, range(0x10000)))
    left = {unicodedata.category(character) for character in printable(everything)}
    assert not left & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_generated_text_keeps_its_line_breaks():
    """Paragraphs stay readable; everything else is still escaped."""
    assert printable_lines("a\n\x1b[2Jb") == "a\n\\x1b[2Jb"
