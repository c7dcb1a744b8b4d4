"""Items and their resamples: one span changes at a time, its length never."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import pytest

from trephine.auditors.unfaithful_reasoning import items as making
from trephine.auditors.unfaithful_reasoning.items import Item
from trephine.auditors.unfaithful_reasoning.wording import Reader, Settings
from trephine.domain.errors import InvalidRequestError

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


@pytest.mark.parametrize("modulus", range(3, 121))
def test_hints_are_wrong_answers_at_every_modulus(modulus: int):
    """Where no number of the answer's length is left another answer is taken, never the right one."""
    settings = replace(DIGITS, modulus=modulus)
    answers, rng = range(modulus), making.seeded("test")
    for item in making.make_items(200, seed=modulus, settings=settings):
        again = making.resampled_hint(item, rng)
        assert {item.answer, item.hint, again.hint, item.inert} <= {*answers}
        assert len({item.answer, item.hint, again.hint}) == 3
        assert making.resampled_inert(item, rng).inert in {*answers} - {item.inert}
        assert making.resampled_step(item, item.step, rng) in {*answers} - {item.step}


@pytest.mark.parametrize("largest", [2, 3, 4, 9, 10, 33, 34, 100, 999])
def test_operands_and_hints_of_plain_sums_stay_in_range(largest: int):
    """An operand that is the only one of its length is exchanged for a smaller one, not for one too large."""
    settings, rng = replace(WORDS, largest_operand=largest), making.seeded("test")
    for item in making.make_items(200, seed=largest, settings=settings):
        assert {item.hint, making.resampled_hint(item, rng).hint} <= {*range(3, 3 * largest + 1)} - {
            item.answer
        }
        assert making.resampled_addend(item, rng, first=True).a in {*range(1, largest + 1)} - {item.a}
        assert making.resampled_last(item, rng).d in {*range(1, largest + 1)} - {item.d}


def test_where_nothing_else_is_allowed_it_is_said():
    """No excluded number is drawn, nor any beyond the range; a step of nine digits needs no list."""
    rng = making.seeded("test")
    with pytest.raises(InvalidRequestError, match="of 0 to 1 nothing is left"):
        making.another(rng, 0, range(2), but=1)
    assert making.another(rng, 10, range(11)) < 10
    (item,) = making.make_items(1, seed=0, settings=WORDS)
    assert len(str(making.resampled_step(item, 123_456_789, rng))) == 9


def test_a_seed_draws_what_it_always_drew():
    """Reports name a seed: the same one has to ask the same questions in every version."""
    for settings, drawn in ((WORDS, "27f7b0421a4d3078"), (DIGITS, "d4972739f3487eb8")):
        rng, seen = making.seeded("test"), []
        for item in making.make_items(200, seed=3, settings=settings):
            hint, inert = making.resampled_hint(item, rng), making.resampled_inert(item, rng)
            addend, last = making.resampled_addend(item, rng, first=False), making.resampled_last(item, rng)
            seen += [_values(one) for one in (item, hint, inert, addend, last)]
            seen.append({"step": making.resampled_step(item, item.step, rng)})
        told = json.dumps(seen) + making.demonstrations(3, settings)
        assert hashlib.sha256(told.encode()).hexdigest()[:16] == drawn


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
    assert work.step[slice(*work.value_range)] == "14"
    assert work.answer[slice(*work.answer_range)] == "16"


def test_copies_follow_what_they_copy_and_nothing_else_does():
    """With another step or operand the recital agrees; a miscopied number stays; places move along."""
    work = Reader(WORDS).read(" 7 + 8 = 14, 14 + 1 = 16.\nAdd")
    assert work is not None
    restepped = work.retold({"c": 14}, {"c": 3})
    assert restepped.text == " 7 + 8 = 3, 3 + 1 = 16."
    assert restepped.answer[slice(*restepped.answer_range)] == "16"
    other = work.retold({"a": 7, "b": 9, "d": 1}, {"a": 100, "b": 5, "d": 22})
    assert (other.step, other.answer) == (" 100 + 8 = 14,", " 14 + 22 = 16.")
    assert other.step[slice(*other.value_range)] == "14"
    assert other.answer[slice(*other.answer_range)] == "16"
    assert other.retold({"d": 22}, {"d": 1}).retold({"a": 100}, {"a": 7}) == work


@pytest.mark.parametrize(
    "text", ["", "I think it is 7.", " 7 + 8 = 14", " 7 + 8 = , 14 + 1 = 16.", " 7 + 8 = १, 1 + 1 = 2."]
)
def test_other_forms_are_not_guessed_at(text: str):
    """What is not of the form is unreadable, rather than read wrongly."""
    assert Reader(WORDS).read(text) is None


def _values(item: Item) -> dict[str, int]:
    return {name: value for name, value in asdict(item).items() if name != "settings"}
