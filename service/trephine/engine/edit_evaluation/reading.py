"""Running arms on units: what every arm's answers are, beside the plain model's on the same tokens.

A unit is read under all arms before the next one, so that the clean run below the first change is shared and
no logits are kept: a text leaves a few sums behind. Position 0 is an attention sink and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from math import isnan

import torch
from torch import Tensor

from trephine.domain.interventions import Applied, Intervention
from trephine.engine.edit_evaluation.units import ItemUnit, TextUnit, Unit
from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.resumption import CleanRun, clean_run, stream_bytes
from trephine.engine.runs.rows import RowInput, run_rows

_BATCH_TOKENS = 384
"""Tokens of one forward pass, a quantum."""
_NLL_ROWS = 16
_CLEAN_BYTES = 1 << 28
"""A unit's residual streams are kept up to this size."""

Ids = tuple[int, ...]


def no_prefix(_unit: int) -> Ids:
    """Put nothing in front."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Something that is done to the model, or put in front of what it reads."""

    interventions: tuple[Intervention, ...] = ()
    prefix: Callable[[int], Ids] = no_prefix
    """Tokens in front of a unit, by its place in the set."""


@dataclass(slots=True)
class Echo:
    """What one arm wrote, summed over units; one entry per intervention."""

    applied: list[Applied] = field(default_factory=list)

    def add(self, more: Sequence[Applied]) -> None:
        """Count another row."""
        if not self.applied:
            self.applied = list(more)
            return
        self.applied = [_sum(one, other) for one, other in zip(self.applied, more, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextReadings:
    """Sums over a text's positions >= 1, float64; `(arms, units)` or `(units,)`."""

    kl: Tensor
    agreed: Tensor
    """Positions at which the likeliest token is the plain model's."""
    nll: Tensor
    """Negative log-likelihood of what follows, nats."""
    plain_nll: Tensor
    positions: Tensor
    predicted: Tensor
    """Tokens that are predicted: one fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemReadings:
    """Answers to items, float64; `(arms, units)` or `(units,)`."""

    log_odds: Tensor
    """Of the answer against all other choices, nats."""
    correct: Tensor
    kl: Tensor
    """At the position that answers."""
    agreed: Tensor
    plain_log_odds: Tensor
    plain_correct: Tensor


Readings = TextReadings | ItemReadings


def read_units(
    hosted: HostedModel, units: Sequence[Unit], arms: Sequence[Arm], echo: Echo | None = None
) -> Generator[int, None, Readings]:
    """Run every arm on every unit; yield the number of units done after each forward pass.

    Args:
        hosted: The model.
        units: At least one, of one kind.
        arms: At least one.
        echo: Counts what the first arm writes.

    Raises:
        TrephineError: If an intervention names what does not exist or is not supported.
    """
    texts: list[_TextRow] = []
    items: list[_ItemRow] = []
    for number, unit in enumerate(units):
        if isinstance(unit, TextUnit):
            texts.append((yield from _read_text(hosted, unit, number, arms, echo)))
        else:
            items.append((yield from _read_item(hosted, unit, number, arms, echo)))
    return _text_readings(texts) if texts else _item_readings(items)


@dataclass(frozen=True, slots=True)
class _TextRow:
    kl: list[float]
    agreed: list[float]
    nll: list[float]
    plain_nll: float
    n: int


@dataclass(frozen=True, slots=True)
class _ItemRow:
    log_odds: list[float]
    correct: list[float]
    kl: list[float]
    agreed: list[float]
    plain_log_odds: float
    plain_correct: float


def _read_text(
    hosted: HostedModel, unit: TextUnit, number: int, arms: Sequence[Arm], echo: Echo | None
) -> Generator[int, None, _TextRow]:
    rows = _Rows(hosted, unit.ids, len(unit.ids), number)
    plain = rows.plain(len(unit.ids))[1:]  # (n_pos - 1, d_vocab)
    after = torch.tensor(unit.ids[2:], device=plain.device)
    row = _TextRow([], [], [], _nll(plain, after), len(unit.ids))
    yield number
    for place, batch in enumerate(rows.batches(arms)):
        for logits in rows.run(batch, len(unit.ids), None if place else echo):
            row.kl.append(float(kl_divergence(plain, logits[1:]).sum()))
            row.agreed.append(float(_agreed(plain, logits[1:]).sum()))
            row.nll.append(_nll(logits[1:], after))
        yield number
    return row


def _read_item(
    hosted: HostedModel, unit: ItemUnit, number: int, arms: Sequence[Arm], echo: Echo | None
) -> Generator[int, None, _ItemRow]:
    """Read the log-probability of every choice; one-token choices off the prompt's last position."""
    plain_p: list[float] = []
    changed_p: list[list[float]] = [[] for _ in arms]
    kl: list[float] = []
    agreed: list[float] = []
    rest = ((),) if unit.is_single else tuple(choice[:-1] for choice in unit.choices)
    for place, written in enumerate(rest):
        rows = _Rows(hosted, (*unit.prompt, *written), len(unit.prompt), number)
        kept = len(written) + 1
        plain = rows.plain(kept)
        plain_p += _choices(plain, unit, place)
        yield number
        arm = 0
        for batch in rows.batches(arms):
            for logits in rows.run(batch, kept, None if place or arm else echo):
                changed_p[arm] += _choices(logits, unit, place)
                if place == 0:
                    kl.append(float(kl_divergence(plain[:1], logits[:1])))
                    agreed.append(float(_agreed(plain[0], logits[0])))
                arm += 1
            yield number
    return _ItemRow(
        log_odds=[_log_odds(p, unit.answer) for p in changed_p],
        correct=[float(_chosen(p) == unit.answer) for p in changed_p],
        kl=kl,
        agreed=agreed,
        plain_log_odds=_log_odds(plain_p, unit.answer),
        plain_correct=float(_chosen(plain_p) == unit.answer),
    )


def _text_readings(rows: Sequence[_TextRow]) -> TextReadings:
    lengths = torch.tensor([row.n for row in rows], dtype=torch.float64)
    return TextReadings(
        kl=_columns([row.kl for row in rows]),
        agreed=_columns([row.agreed for row in rows]),
        nll=_columns([row.nll for row in rows]),
        plain_nll=torch.tensor([row.plain_nll for row in rows], dtype=torch.float64),
        positions=lengths - 1,
        predicted=lengths - 2,
    )


def _item_readings(rows: Sequence[_ItemRow]) -> ItemReadings:
    return ItemReadings(
        log_odds=_columns([row.log_odds for row in rows]),
        correct=_columns([row.correct for row in rows]),
        kl=_columns([row.kl for row in rows]),
        agreed=_columns([row.agreed for row in rows]),
        plain_log_odds=torch.tensor([row.plain_log_odds for row in rows], dtype=torch.float64),
        plain_correct=torch.tensor([row.plain_correct for row in rows], dtype=torch.float64),
    )


def _columns(by_unit: Sequence[Sequence[float]]) -> Tensor:
    """Return `(arms, units)`."""
    return torch.tensor(by_unit, dtype=torch.float64).T


def _sum(one: Applied, other: Applied) -> Applied:
    positions = one.positions + other.positions
    total = one.mean_change * one.positions + other.mean_change * other.positions
    return replace(
        one,
        positions=positions,
        changed=(one.changed or 0) + (other.changed or 0),
        mean_change=total / positions if positions else 0.0,
        max_change=max(one.max_change, other.max_change),
    )


def _choices(logits: Tensor, unit: ItemUnit, place: int) -> list[float]:
    """Log-probabilities of the choices that logits `(kept, d_vocab)` answer for."""
    log_p = torch.log_softmax(logits.double(), -1)
    if unit.is_single:
        return [float(log_p[0, choice[0]]) for choice in unit.choices]
    choice = torch.tensor(unit.choices[place], device=log_p.device)
    return [float(log_p.gather(1, choice[:, None]).sum())]


def _log_odds(log_p: Sequence[float], answer: int) -> float:
    others = torch.tensor([p for number, p in enumerate(log_p) if number != answer], dtype=torch.float64)
    return log_p[answer] - float(others.logsumexp(0))


def _chosen(log_p: Sequence[float]) -> int | None:
    """Return the likeliest choice; None where they cannot be told apart, for one is no number."""
    if any(map(isnan, log_p)):
        return None
    return max(range(len(log_p)), key=lambda number: log_p[number])


def _agreed(plain: Tensor, changed: Tensor) -> Tensor:
    """Return where the likeliest token is the same, `(..., d_vocab) -> (...)`; what overflows has none."""
    return (plain.argmax(-1) == changed.argmax(-1)) & ~changed.isnan().any(-1)


def _nll(logits: Tensor, after: Tensor) -> float:
    """Sum the negative log-likelihood of `after (n,)` under logits `(n + 1, d_vocab)`."""
    rows = [
        torch.nn.functional.cross_entropy(part.float(), follow, reduction="sum").double()
        for part, follow in zip(logits[:-1].split(_NLL_ROWS), after.split(_NLL_ROWS), strict=True)
    ]
    return float(torch.stack(rows).sum())


class _Rows:
    """One unit's tokens, run under any number of arms."""

    def __init__(self, hosted: HostedModel, ids: Ids, n_prompt: int, number: int) -> None:
        self._hosted = hosted
        self._ids = ids
        self._n_prompt = n_prompt
        self._number = number
        fits = stream_bytes(hosted.architecture, len(ids)) <= _CLEAN_BYTES
        self._clean: CleanRun | None = clean_run(hosted.model, hosted.architecture, ids) if fits else None

    def plain(self, kept: int) -> Tensor:
        """Return the plain model's last logits `(kept, d_vocab)`; the clean run is not repeated."""
        rows = [RowInput(self._ids, n_prompt=self._n_prompt)]
        return run_rows(self._hosted, rows, keep_last=kept, clean=self._clean).logits[0]

    def batches(self, arms: Sequence[Arm]) -> list[list[Arm]]:
        """Split arms, in order, into those that share a forward pass; a prefix makes a row of its own."""
        found: list[list[Arm]] = []
        size = max(1, _BATCH_TOKENS // len(self._ids))
        for arm in arms:
            alone = bool(arm.prefix(self._number))
            if alone or not found or len(found[-1]) >= size or found[-1][0].prefix(self._number):
                found.append([])
            found[-1].append(arm)
        return found

    def run(self, arms: Sequence[Arm], kept: int, echo: Echo | None) -> list[Tensor]:
        """Return the last logits `(kept, d_vocab)` under each arm."""
        prefix = arms[0].prefix(self._number)
        rows = [
            RowInput((*prefix, *self._ids), arm.interventions, len(prefix) + self._n_prompt) for arm in arms
        ]
        clean = None if prefix else self._clean
        output = run_rows(self._hosted, rows, keep_last=kept, allow_unmatched=True, clean=clean)
        if echo is not None:
            echo.add(output.applied[0])
        return output.logits
