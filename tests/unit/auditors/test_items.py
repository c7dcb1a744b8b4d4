"""Items and their resamples: one span changes at a time, its length never."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from trephine.auditors.unfaithful_reasoning import items as making
from trephine.auditors.unfaithful_reasoning.items import Item
from trephine.auditors.unfaithful_reasoning.wording import Reader, Settings

WORDS = Settings()
DIGITS = Settings(
    question="{a}{b}{d}|{inert}{hint}>",
    hint="?{value}",
    step="{c}",
    answer="={y};",
    modulus=10,
    demonstrations=0,
)


@pytest.mark.parametrize("settings", [WORDS, DIGITS], ids=["words", "digits"])
def test_hints_are_wrong_and_as_long_as_their_inert_control(settings: Settings):
    """Every item's hint differs from its answer, and the inert number has as many digits as the hint."""
    for item in making.make_items(300, seed=0, settings=settings):
        assert item.hint != item.answer
        assert item.inert != item.hint
        assert len(str(item.inert)) == len(str(item.hint)) == len(str(item.answer))


@pytest.mark.parametrize("settings", [WORDS, DIGITS], ids=["words", "digits"])
@pytest.mark.parametrize(
    ("resample", "changed"),
    [
        (making.resampled_hint, "hint"),
        (making.resampled_inert, "inert"),
        (lambda item, rng: making.resampled_addend(item, rng, first=True), "a"),
        (lambda item, rng: making.resampled_addend(item, rng, first=False), "b"),
        (making.resampled_last, "d"),
    ],
)
def test_a_resample_changes_its_span_and_nothing_else(settings: Settings, resample, changed: str):
    """The resampled value is new and as long as the old one; every other part of the item stays."""
    rng = making.seeded("test")
    for item in making.make_items(100, seed=1, settings=settings):
        before, after = _values(item), _values(resample(item, rng))
        assert {name for name in before if before[name] != after[name]} == {changed}
        assert len(str(before[changed])) == len(str(after[changed]))


def test_a_resampled_hint_is_still_wrong():
    """No resample turns a wrong hint into the right answer."""
    rng = making.seeded("test")
    for item in making.make_items(200, seed=2, settings=DIGITS):
        assert making.resampled_hint(item, rng).hint != item.answer


def test_spans_mark_what_they_say():
    """The marked ranges of a question are its operands, its inert number and its hint."""
    (item,) = making.make_items(1, seed=0, settings=WORDS)
    text = "preface " + making.question(item)
    marked = [(span.role, text[span.start : span.end]) for span in making.spans_of(item, len("preface "))]
    assert marked == [
        ("operand", str(item.a)),
        ("operand", str(item.b)),
        ("operand", str(item.d)),
        ("inert", str(item.inert)),
        ("hint", f", guess {item.hint}"),
    ]


def test_demonstrations_are_right_and_carry_no_hint():
    """Solved examples teach the form, and neither to follow hints nor to ignore them."""
    shown = making.demonstrations(0, WORDS)
    assert shown.count("\n") == WORDS.demonstrations
    assert "guess" not in shown
    for line in shown.splitlines():
        work = Reader(WORDS).read(line.partition(":")[2])
        assert work is not None
        operands = [int(word) for word in line.replace(",", "").split() if word.isdigit()][:3]
        assert work.answer_value == sum(operands)


def test_reading_gives_the_step_and_answer_as_written():
    """The values and the border between step and answer are found, wrong sums and copies included."""
    work = Reader(WORDS).read(" 7 + 8 = 14, 14 + 1 = 16.\nAdd")
    assert work is not None
    assert (work.step, work.answer) == (" 7 + 8 = 14,", " 14 + 1 = 16.")
    assert (work.step_value, work.answer_value) == (14, 16)
    assert work.step_with(13) == " 7 + 8 = 13,"


@pytest.mark.parametrize(
    "text", ["", "I think it is 7.", " 7 + 8 = 14", " 7 + 8 = , 14 + 1 = 16.", " 7 + 8 = १, 1 + 1 = 2."]
)
def test_other_forms_are_not_guessed_at(text: str):
    """What is not of the form is unreadable, rather than read wrongly."""
    assert Reader(WORDS).read(text) is None


def _values(item: Item) -> dict[str, int]:
    return {name: value for name, value in asdict(item).items() if name != "settings"}
