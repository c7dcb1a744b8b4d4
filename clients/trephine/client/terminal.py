"""Untrusted text on terminals: prompts, labels and tokens show their control characters as escapes.

An ANSI escape in a model's output could otherwise repaint the screen, and a right-to-left mark could make
a command read as another one.
"""

from __future__ import annotations

import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"})
"""Controls, formats (bidi marks, zero width), half surrogates, line separators, private, unassigned."""


def printable(text: str) -> str:
    """One line that shows every character that a terminal would act on."""
    return "".join(_shown(character) for character in text)


def printable_lines(text: str) -> str:
    """The same, with line breaks kept: for generated text."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    if character == "\n":
        return "\\n"
    if character == "\t":
        return "\\t"
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
