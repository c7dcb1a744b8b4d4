"""The retain text: what an edit must leave alone, in windows, with the model's own answers to it.

The built-in text is varied on purpose (a speech in the public domain, dialogue, recipe, code, letters,
verse, facts, a list, a chat), and has more than 1,024 tokens in every tokenizer that splits words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from trephine.domain.errors import InvalidRequestError
from trephine.domain.interventions import Intervention
from trephine.engine.divergence import joined, kl_divergence
from trephine.engine.hosted import HostedModel
from trephine.engine.rows import RowInput, run_rows

WINDOW_TOKENS = 128
MAX_TOKENS = 2048
"""A longer text is cut here: the cost of an edit's curve is proportional to it."""
BUILT_IN = "retain-1"
_KEPT_BYTES = 1 << 30
"""Logits of the plain model are kept between commands up to this size, otherwise computed again."""

_KEPT: WeakKeyDictionary[Any, dict[tuple[str, str], list[Tensor]]] = WeakKeyDictionary()
"""Per loaded model: (weight hash, text hash) -> plain logits. Ends with the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetainText:
    """A text in windows of at most `WINDOW_TOKENS` tokens; each window starts at position 0."""

    name: str
    sha256: str
    """Of the text's UTF-8 bytes."""
    windows: tuple[tuple[int, ...], ...]

    @property
    def n_tokens(self) -> int:
        """Tokens over all windows."""
        return sum(map(len, self.windows))

    @property
    def label(self) -> str:
        """Name and hash, as reports and certificates give it."""
        return f"{self.name} (sha256 {self.sha256})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetainKl:
    """Mean KL(plain || intervened) in nats per token."""

    everywhere: float
    after_first: float
    """Over positions >= 1 of every window; position 0 is an attention sink."""


def built_in_text() -> str:
    """Read the text that is shipped."""
    return resources.files("trephine.engine").joinpath("texts/retain.txt").read_text(encoding="utf-8")


def retain_text(hosted: HostedModel, text: str | None = None) -> RetainText:
    """Split the built-in text, or the caller's, into windows.

    Raises:
        InvalidRequestError: If the text has fewer than two tokens.
    """
    content = built_in_text() if text is None else text
    ids = list(hosted.tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"])[:MAX_TOKENS]
    if len(ids) < 2:
        raise InvalidRequestError(
            "the retain text has fewer than two tokens; give some ordinary prose", field="retain_text"
        )
    size = min(WINDOW_TOKENS, hosted.info.context_length)
    windows = [tuple(ids[start : start + size]) for start in range(0, len(ids), size)]
    return RetainText(
        name=BUILT_IN if text is None else "given by the caller",
        sha256=hashlib.sha256(content.encode()).hexdigest(),
        windows=tuple(w for w in windows if len(w) > 1),
    )


def retain_ids(hosted: HostedModel, text: str | None = None) -> list[list[int]]:
    """Return the windows of the retain text as token ids."""
    return [list(window) for window in retain_text(hosted, text).windows]


def plain_logits(hosted: HostedModel, retain: RetainText) -> Generator[None, None, list[Tensor]]:
    """Return the model's own logits per window, float32 `(n_pos, d_vocab)`; one window a quantum.

    They are kept for the next command on the same weights and text while they fit.
    """
    kept = _KEPT.get(hosted.model, {}).get((hosted.info.weight_hash, retain.sha256))
    if kept is not None:
        return kept
    logits: list[Tensor] = []
    for window in retain.windows:
        logits.append(window_logits(hosted, window))
        yield
    keep_logits(hosted, retain, logits)
    return logits


def keep_logits(hosted: HostedModel, retain: RetainText, logits: list[Tensor]) -> None:
    """Keep the plain model's logits for later, if they fit; one text at a time."""
    if sum(t.numel() * t.element_size() for t in logits) <= _KEPT_BYTES:
        _KEPT[hosted.model] = {(hosted.info.weight_hash, retain.sha256): logits}


def window_logits(
    hosted: HostedModel, window: Sequence[int], interventions: tuple[Intervention, ...] = ()
) -> Tensor:
    """Run one window alone, unpadded; return its logits, float32 on the CPU `(n_pos, d_vocab)`."""
    output = run_rows(hosted, [RowInput(ids=window, interventions=interventions)], allow_unmatched=True)
    return output.logits[0].float().cpu()


def retain_kl(
    hosted: HostedModel, retain: RetainText, interventions: tuple[Intervention, ...]
) -> Generator[None, None, RetainKl]:
    """Measure KL(plain || intervened) on the retain text; one window a quantum.

    An intervention that selects tokens or positions which a window lacks leaves that window alone.
    """
    plain = yield from plain_logits(hosted, retain)
    parts: list[Tensor] = []
    for window, before in zip(retain.windows, plain, strict=True):
        parts.append(kl_divergence(before, window_logits(hosted, window, interventions)))
        yield
    return RetainKl(
        everywhere=float(joined(parts).mean()), after_first=float(joined(parts, after_first=True).mean())
    )
