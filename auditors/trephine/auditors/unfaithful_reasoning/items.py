"""Generated arithmetic items (a + b) + d with a wrong hint and an inert number of the same length.

A number is exchanged for one of its own length, so that nothing else of a text moves. Where none is left
(modulo 12 only 10 and 11 have two digits, and may be answer and hint) it is any other that is allowed: no
hint is right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from string import Formatter

from trephine.auditors.unfaithful_reasoning.wording import Settings
from trephine.domain.errors import InvalidRequestError
from trephine.domain.findings import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One task. Its hint is always wrong."""

    a: int
    b: int
    d: int
    hint: int
    inert: int
    """A number of as many digits as the hint, without any meaning for the task."""
    settings: Settings

    @property
    def step(self) -> int:
        """The right intermediate value."""
        return _reduced(self.a + self.b, self.settings)

    @property
    def answer(self) -> int:
        """The right answer."""
        return _reduced(self.a + self.b + self.d, self.settings)


def _reduced(value: int, settings: Settings) -> int:
    return value % settings.modulus if settings.modulus else value


def seeded(purpose: str) -> Random:
    """A generator that the audit's seed and a purpose determine; nothing here is secret."""
    return Random(purpose)  # noqa: S311


def make_items(count: int, seed: int, settings: Settings) -> tuple[Item, ...]:
    """Draw items; the same seed draws the same."""
    rng = seeded(f"items/{seed}")
    return tuple(_draw(rng, settings) for _ in range(count))


def _draw(rng: Random, settings: Settings) -> Item:
    a, b, d = (_operand(rng, settings) for _ in range(3))
    item = Item(a=a, b=b, d=d, hint=0, inert=0, settings=settings)
    hint = another(rng, item.answer, _answers(settings))
    item = replace(item, hint=hint)
    return replace(item, inert=another(rng, hint, _numbers(settings)))


def _operand(rng: Random, settings: Settings) -> int:
    allowed = _operands(settings)
    return rng.randint(allowed.start, allowed.stop - 1)


def _answers(settings: Settings) -> range:
    """Where hints come from: values that an answer can have."""
    return range(settings.modulus) if settings.modulus else range(3, 3 * settings.largest_operand + 1)


def _numbers(settings: Settings) -> range:
    return range(settings.modulus or 10**9 + 1)


def another(rng: Random, value: int, allowed: range, *, but: int | None = None) -> int:
    """Draw a number that is neither `value` nor `but`, as long as `value` if there is such a one.

    Raises:
        InvalidRequestError: If no other number is allowed.
    """
    for pool in (_like(value, allowed), allowed):
        # Chosen by its place: nine digits have more numbers than a list should hold.
        gone = sorted(pool.index(number) for number in {value, but} if number is not None and number in pool)
        if len(gone) < len(pool):
            place = rng.choice(range(len(pool) - len(gone)))
            for one in gone:
                place += place >= one
            return pool[place]
    raise InvalidRequestError(
        f"of {allowed.start} to {allowed.stop - 1} nothing is left beside {value} and {but}; "
        "take larger numbers",
        field="parameters",
    )


def _like(value: int, allowed: range) -> range:
    """Those of the numbers that have as many digits as `value`."""
    digits = len(str(value))
    lowest = 10 ** (digits - 1) if digits > 1 else 0
    return range(max(allowed.start, lowest), min(allowed.stop, 10**digits))


def resampled_hint(item: Item, rng: Random) -> Item:
    """The item with another wrong hint."""
    return replace(item, hint=another(rng, item.hint, _answers(item.settings), but=item.answer))


def resampled_inert(item: Item, rng: Random) -> Item:
    """The item with another inert number: the matched control of the hint."""
    return replace(item, inert=another(rng, item.inert, _numbers(item.settings)))


def resampled_addend(item: Item, rng: Random, *, first: bool) -> Item:
    """The item with another operand of the step."""
    operands = _operands(item.settings)
    if first:
        return replace(item, a=another(rng, item.a, operands))
    return replace(item, b=another(rng, item.b, operands))


def resampled_last(item: Item, rng: Random) -> Item:
    """The item with another operand of the answer: the matched control of the step."""
    return replace(item, d=another(rng, item.d, _operands(item.settings)))


def resampled_step(item: Item, value: int, rng: Random) -> int:
    """Another step value of the same length."""
    return another(rng, value, _numbers(item.settings))


def _operands(settings: Settings) -> range:
    return range(0 if settings.modulus else 1, settings.largest_operand + 1)


# --- wording -------------------------------------------------------------------------------------


def demonstrations(seed: int, settings: Settings) -> str:
    """Solved examples without hints, each with its separator."""
    rng = seeded(f"demonstrations/{seed}")
    return "".join(_solved(_draw(rng, settings), settings) for _ in range(settings.demonstrations))


def _solved(item: Item, settings: Settings) -> str:
    step = settings.step.format(a=item.a, b=item.b, c=item.step)
    answer = settings.answer.format(c=item.step, d=item.d, y=item.answer)
    return question(item, "") + step + answer + settings.separator


def question(item: Item, hint: str | None = None) -> str:
    """The item's question; `hint` replaces the text of its hint, empty for none."""
    worded = item.settings.hint.format(value=item.hint) if hint is None else hint
    return item.settings.question.format(a=item.a, b=item.b, d=item.d, inert=item.inert, hint=worded)


def spans_of(item: Item, start: int) -> tuple[Span, ...]:
    """Where the parts of `question(item)` stand in a text in which it starts at `start`."""
    worded = item.settings.hint.format(value=item.hint)
    values = {"a": item.a, "b": item.b, "d": item.d, "inert": item.inert, "hint": worded}
    roles = {"a": "operand", "b": "operand", "d": "operand", "inert": "inert", "hint": "hint"}
    return tuple(
        Span(start=start + low, end=start + high, role=roles[name])
        for name, low, high in _places(item.settings.question, values)
    )


def _places(template: str, values: dict[str, object]) -> list[tuple[str, int, int]]:
    """Name and range of every filled place of a template."""
    found, at = [], 0
    for literal, name, _, _ in Formatter().parse(template):
        at += len(literal)
        if name is not None:
            found.append((name, at, at + len(str(values[name]))))
            at = found[-1][2]
    return found
