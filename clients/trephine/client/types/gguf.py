"""GGUF files of an export, and how the edit survived in them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue


class GgufType(StrEnum):
    """How the matrices of a file are quantised, in blocks of 32 weights."""

    UNSPECIFIED = "unspecified"
    Q8_0 = "q8_0"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedCopy(WireValue):
    """A file, held against the parent quantised in the same way, in which the runtime intervenes.

    Nats per token.
    """

    kind: GgufType
    file: str
    """Relative to the folder: `gguf/q8_0.gguf`."""
    size: int
    kl: float
    """KL(quantised parent, intervened in || this file)."""
    edit_kl: float
    """KL(quantised parent, intervened in || quantised parent)."""
    recovery: float | None
    """1 - kl / edit_kl; None: the edit moves nothing on the text."""
    kl_firing: float | None
    """On tokens on which an edited feature fires; None: there are none."""
    edit_kl_firing: float | None
    recovery_firing: float | None
    quantisation_kl: float
    """KL(parent || quantised parent): what quantising alone does."""
    perplexity_ratio: float
    """Of this file over the quantised parent that is intervened in."""
    top1_agreement: float
