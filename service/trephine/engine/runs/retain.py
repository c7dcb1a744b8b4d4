"""The retain text: what an edit must leave alone, in windows, with the model's own answers to it.

The built-in text is varied on purpose (a speech in the public domain, dialogue, recipe, code, letters,
verse, facts, a list, a chat), and has more than 1,024 tokens in every tokenizer that splits words; its
first 1,024 are used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from trephine.domain.errors import InvalidRequestError
from trephine.domain.interventions import FeatureTarget, Intervention
from trephine.domain.sites import NEURONS, Site
from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.divergence import joined, kl_divergence
from trephine.engine.runs.rows import RowInput, RowsOutput, run_rows

WINDOW_TOKENS = 128
WINDOWS_AT_ONCE = 4
"""Windows of one forward pass: weights are read once for all of them, and a quantum stays under a second."""
BUILT_IN_TOKENS = 1024
"""Of the built-in text, as many in every tokenizer: the cost of an edit's curve is proportional to it."""
MAX_TOKENS = 2048
"""A caller's longer text is cut here."""
BUILT_IN = "retain-1"
_KEPT_BYTES = 1 << 30
"""Logits of the plain model are kept between commands up to this size, otherwise computed again."""

_KEPT: WeakKeyDictionary[Any, dict[tuple[str, str], list[Tensor]]] = WeakKeyDictionary()
"""Per loaded model: (weight hash, text hash) -> plain logits. Ends with the model."""
_KEPT_DAMAGES = 256
_KEPT_DAMAGE: WeakKeyDictionary[Any, dict[tuple[str, str, tuple[Intervention, ...]], RetainKl]] = (
    WeakKeyDictionary()
)


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
    built_in = content == built_in_text()
    most = BUILT_IN_TOKENS if built_in else MAX_TOKENS
    ids = list(hosted.tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"])[:most]
    if len(ids) < 2:
        raise InvalidRequestError(
            "the retain text has fewer than two tokens; give some ordinary prose", field="retain_text"
        )
    size = min(WINDOW_TOKENS, hosted.info.context_length)
    windows = [tuple(ids[start : start + size]) for start in range(0, len(ids), size)]
    return RetainText(
        name=BUILT_IN if built_in else "given by the caller",
        sha256=hashlib.sha256(content.encode()).hexdigest(),
        windows=tuple(w for w in windows if len(w) > 1),
    )


def plain_logits(hosted: HostedModel, retain: RetainText) -> Generator[None, None, list[Tensor]]:
    """Return the model's own logits per window, float32 `(n_pos, d_vocab)`; one batch a quantum.

    They are kept for the next command on the same weights and text while they fit.
    """
    kept = _kept(hosted, retain)
    if kept is not None:
        return kept
    logits: list[Tensor] = []
    for output in plain_runs(hosted, retain):
        logits += _on_cpu(output)
        yield
    return _kept(hosted, retain) or logits


def plain_runs(hosted: HostedModel, retain: RetainText, reads: Sequence[Site] = ()) -> Iterator[RowsOutput]:
    """Run the plain model on the text, batch by batch, reading sites.

    The logits of a complete run are kept for `plain_logits`; where they are known already, none is computed.
    """
    known = _kept(hosted, retain) is not None
    logits: list[Tensor] = []
    for part in window_batches(retain.windows):
        rows = [RowInput(ids=retain.windows[number]) for number in part]
        output = run_rows(hosted, rows, reads=reads, keep_last=0 if known else None)
        if not known:
            logits += _on_cpu(output)
        yield output
    if not known and sum(t.numel() * t.element_size() for t in logits) <= _KEPT_BYTES:
        _KEPT[hosted.model] = {(hosted.info.weight_hash, retain.sha256): logits}


def _kept(hosted: HostedModel, retain: RetainText) -> list[Tensor] | None:
    return _KEPT.get(hosted.model, {}).get((hosted.info.weight_hash, retain.sha256))


def window_batches(windows: Sequence[Sequence[int]]) -> Iterator[range]:
    """Split windows, in order, into batches of equal length: none is padded."""
    start = 0
    for end in range(1, len(windows) + 1):
        if end == len(windows) or end - start == WINDOWS_AT_ONCE or len(windows[end]) != len(windows[start]):
            yield range(start, end)
            start = end


def windows_logits(
    hosted: HostedModel, windows: Sequence[Sequence[int]], interventions: tuple[Intervention, ...] = ()
) -> list[Tensor]:
    """Run windows of equal length together; return each one's logits, float32 `(n_pos, d_vocab)`, CPU."""
    rows = [RowInput(ids=window, interventions=interventions) for window in windows]
    return _on_cpu(run_rows(hosted, rows, allow_unmatched=True))


def window_logits(
    hosted: HostedModel, window: Sequence[int], interventions: tuple[Intervention, ...] = ()
) -> Tensor:
    """Run one window alone, unpadded; return its logits, float32 on the CPU `(n_pos, d_vocab)`."""
    return windows_logits(hosted, [window], interventions)[0]


def _on_cpu(output: RowsOutput) -> list[Tensor]:
    return [logits.float().cpu() for logits in output.logits]


def retain_kl(
    hosted: HostedModel, retain: RetainText, interventions: tuple[Intervention, ...]
) -> Generator[None, None, RetainKl]:
    """Measure KL(plain || intervened) on the retain text; one batch of windows a quantum.

    An intervention that selects tokens or positions which a window lacks leaves that window alone. What
    changes neurons only is kept for the next command on the same weights and text.
    """
    kept = _KEPT_DAMAGE.setdefault(hosted.model, {})
    key = (hosted.info.weight_hash, retain.sha256, interventions)
    if key not in kept:
        damage = yield from _measure_kl(hosted, retain, interventions)
        if len(kept) == _KEPT_DAMAGES or not _on_neurons(interventions):
            return damage
        kept[key] = damage
    return kept[key]


def _on_neurons(interventions: tuple[Intervention, ...]) -> bool:
    """Say that nothing but the weights decides what they do: sets may be loaded anew under their names."""
    features = [i.condition.feature for i in interventions if i.condition is not None]
    features += [i.target.feature for i in interventions if isinstance(i.target, FeatureTarget)]
    return all(feature.replacement == NEURONS for feature in features)


def _measure_kl(
    hosted: HostedModel, retain: RetainText, interventions: tuple[Intervention, ...]
) -> Generator[None, None, RetainKl]:
    plain = yield from plain_logits(hosted, retain)
    parts: list[Tensor] = []
    for part in window_batches(retain.windows):
        after = windows_logits(hosted, [retain.windows[number] for number in part], interventions)
        parts += [kl_divergence(plain[number], logits) for number, logits in zip(part, after, strict=True)]
        yield
    return RetainKl(
        everywhere=float(joined(parts).mean()), after_first=float(joined(parts, after_first=True).mean())
    )
