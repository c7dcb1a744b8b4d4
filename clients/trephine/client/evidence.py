"""Warnings about what an edit rests on: references that the server does not know are kept, and told."""

from __future__ import annotations

import warnings

from trephine.client.types import Edit


class EvidenceWarning(UserWarning):
    """A reference of an edit's evidence is not on the server; the message says what to do."""


def told(edit: Edit) -> Edit:
    """Warn whoever called the caller of every such reference; return the edit."""
    for warning in edit.evidence_warnings:
        warnings.warn(warning, EvidenceWarning, stacklevel=3)
    return edit
