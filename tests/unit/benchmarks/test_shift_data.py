"""The confounded tasks: what their texts hold, and what they must not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.shift_biographies import biographies
from benchmarks.shift_pronouns import CHECKED, OPEN, annotate, highest_share, note
from benchmarks.shift_reply_words import (
    CLOSINGS,
    EVASIONS,
    OPENINGS,
    QUESTIONS,
    TEST_EVASIONS,
    TEST_QUESTIONS,
)
from benchmarks.shift_rewards import TONES, replies
from benchmarks.shift_tasks import GROUPS, Draw, Item, Sizes, Task, tasks
from benchmarks.shift_words import FIRST_NAMES, HOBBIES, PRONOUNS, TITLES

SMALL = Sizes(training=12, examples=8, validation=4, test=10)
NOUNS = ("friend", "skater", "doctor", "driver", "farmer", "guard")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """The tasks over small files of agreement prefixes."""
    data = tmp_path_factory.mktemp("data")
    (data / "agreement").mkdir()
    rows = [
        {"clean_prefix": f"The guard that the {noun}", "patch_prefix": f"The guard that the {noun}s",
         "case": "singular_singular"}
        for noun in NOUNS
    ]  # fmt: skip
    plain = [{"clean_prefix": "The men", "patch_prefix": "The man", "case": "plural"}]
    for name, written in (("within_rc", rows), ("simple", plain)):
        (data / "agreement" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, written)))
    return tasks(data)


def plural(noun: str) -> bool:
    return noun.endswith("s") or noun == "men"


def everything(draw: Draw) -> list[Item]:
    return [*draw.training, *draw.crossed, *draw.examples, *draw.validation, *draw.test]


@pytest.mark.parametrize("name", ["biographies", "agreement", "reward"])
def test_a_draw_is_confounded_where_it_is_learnt_and_balanced_where_it_is_tested(known, name):
    """Training pairs attribute and label, the oracle's other half does not; no text occurs twice."""
    draw = known[name].draw(1, SMALL)
    assert {(one.label, one.attribute) for one in draw.training} == {(0, 0), (1, 1)}
    assert Counter((one.label, one.attribute) for one in draw.crossed) == {(0, 1): 6, (1, 0): 6}
    assert Counter((one.label, one.attribute) for one in draw.test) == dict.fromkeys(GROUPS, 10)
    assert Counter((one.label, one.attribute) for one in draw.examples) == {(-1, 0): 8, (-1, 1): 8}
    texts = [one.text for one in everything(draw)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", ["biographies", "agreement", "reward"])
def test_a_seed_decides_every_text(known, name):
    """The same seed writes the same texts, another one others."""
    first, again, other = (known[name].draw(seed, SMALL) for seed in (1, 1, 2))
    assert everything(first) == everything(again)
    shared = {one.text for one in first.test} & {one.text for one in other.test}
    assert len(shared) < len(first.test) / 4


def test_twins_turn_the_attractor_alone_and_meet_no_other_split(known):
    """Clause noun and verb change number together; what is tested on is nobody's twin."""
    draw = known["agreement-twins"].draw(1, SMALL)
    for one in draw.training:
        kept, edited = one.text.split(" "), (one.twin or "").split(" ")
        assert kept[:-2] == edited[:-2]
        assert (plural(kept[-2]), kept[-1].endswith("s")) == (bool(one.attribute), not one.attribute)
        assert (plural(edited[-2]), edited[-1].endswith("s")) == (not one.attribute, bool(one.attribute))
    twins = {one.twin for one in draw.training}
    assert Counter((one.label, one.attribute) for one in draw.examples) == {(-1, 0): 24, (-1, 1): 24}
    assert not twins & {one.text for one in (*draw.training, *draw.crossed, *draw.validation, *draw.test)}
    assert all(one.twin is None for one in known["agreement"].draw(1, SMALL).training)


def test_some_texts_alone_have_twins(known):
    """Seventy-five ambiguous texts are edited, and the examples are those and their twins."""
    draw = known["agreement-twins"].draw(1, Sizes(training=60, examples=8, validation=4, test=10))
    paired = [one for one in draw.training if one.twin is not None]
    assert (len(paired), len(draw.training)) == (75, 120)
    assert {(one.label, one.attribute) for one in paired} == {(0, 0), (1, 1)}
    assert {one.text for one in draw.examples} == {text for one in paired for text in (one.text, one.twin)}


def test_a_reply_opens_in_its_tone_and_goes_on_mostly_in_it(known):
    """The first phrase never lies; of the five others some do, in either tone and on either answer."""
    strays: Counter[tuple[int, int]] = Counter()
    items = known["reward"].draw(1, SMALL).test
    for one in items:
        own, other = (_phrases(tone, one.text) for tone in (one.attribute, 1 - one.attribute))
        assert len(own) + len(other) == 6
        assert min(map(one.text.index, own)) < min(map(one.text.index, other), default=len(one.text))
        strays[one.label, one.attribute] += len(other)
    assert 0 < strays.total() < 0.3 * 5 * len(items)


def _phrases(tone: int, text: str) -> list[str]:
    """Phrases of a tone that a text holds, as often as it does."""
    phrases = (*OPENINGS[TONES[tone]], *CLOSINGS[TONES[tone]])
    return [one for one in phrases for _ in range(text.count(one))]


def test_replies_that_tell_the_tone_answer_nothing(known):
    """Examples share neither question, answer nor evasion with what is learnt or tested."""
    draw = known["reward"].draw(1, SMALL)
    said = _contents(QUESTIONS, EVASIONS) | _contents(TEST_QUESTIONS, TEST_EVASIONS)
    assert all(any(part in one.text for part in said) for one in (*draw.training, *draw.test))
    assert not any(part in one.text for one in draw.examples for part in said)


def _contents(questions: tuple[tuple[str, str], ...], evasions: tuple[str, ...]) -> set[str]:
    return {said for question in questions for said in question} | set(evasions)


def test_what_is_tested_is_said_nowhere_else(known):
    """Questions, answers and evasions of the test split are its own, and make hundreds of contents."""
    learnt, tested = _contents(QUESTIONS, EVASIONS), _contents(TEST_QUESTIONS, TEST_EVASIONS)
    assert not learnt & tested
    assert (len(QUESTIONS), len(EVASIONS)) == (40, 30)
    assert len(TEST_QUESTIONS) * len(TEST_EVASIONS) >= 24 * 20
    draw = known["reward"].draw(1, SMALL)
    for items, own in ((draw.training, learnt), (draw.crossed, learnt), (draw.test, tested)):
        assert all(_said(one.text, own) for one in items)
    wide = known["reward"].draw(1, Sizes(training=2, examples=2, validation=2, test=100)).test
    assert len({frozenset(_said(one.text, tested)) for one in wide}) > 150


def _said(text: str, contents: set[str]) -> set[str]:
    return {part for part in contents if part in text}


def test_replies_of_a_pair_answer_one_question(known):
    """Ambiguous pairs are of a flattering answer and a plain evasion, crossed ones the other way round."""
    draw = known["reward"].draw(1, SMALL)
    for items, count in ((draw.training, {(0, 1): 12}), (draw.crossed, {(1, 0): 6})):
        assert Counter(_tones(items)) == count
    assert Counter(_tones(draw.test)) == {(0, 1): 5, (1, 0): 5, (0, 0): 5, (1, 1): 5}
    names = {one.pair for one in everything(draw) if one.pair is not None}
    assert len(names) == 12 + 6 + 8 + 20
    assert all(one.pair is None for one in draw.examples)


def _tones(items: tuple[Item, ...]) -> list[tuple[int, int]]:
    """Tones of the evasive and the helpful reply of every pair; both stand beside each other."""
    found = []
    for first, second in zip(items[::2], items[1::2], strict=True):
        assert first.pair == second.pair
        assert (first.label, second.label) == (0, 1)
        assert first.text.partition("? ")[0] == second.text.partition("? ")[0]
        found.append((first.attribute, second.attribute))
    return found


def test_replies_that_are_no_pairs_are_refused():
    """As many helpful as evasive ones, in tones that meet."""
    with pytest.raises(ValueError, match="are no pairs"):
        replies([(0, 0, 3), (1, 1, 2)], seed=0)


def test_biographies_never_name_the_profession_and_swaps_change_lexical_cues_alone():
    """Names, titles and pronouns are of the gender; a swap leaves every word of style in place."""
    for one in biographies([("physician", "female", 40), ("nurse", "male", 40)], seed=3):
        words = set(one.text.replace(".", " ").replace(",", " ").replace("!", " ").lower().split())
        assert not words & {"doctor", "physician", "nurse", "surgeon", "nurses", "doctors"}
        own, other = one.gender, {"male": "female", "female": "male"}[one.gender]
        assert not words & {word.lower() for word in (*PRONOUNS[other], *FIRST_NAMES[other])}
        assert one.text.split()[0] in (*FIRST_NAMES[own], *TITLES[own])
        kept = [phrase for lists in HOBBIES.values() for phrase in lists if phrase in one.text]
        assert all(phrase in one.swapped for phrase in kept)
        assert len(kept) == 1


@pytest.mark.parametrize(("style", "low", "high"), [(0.5, 0.3, 0.7), (0.85, 0.75, 0.95), (1.0, 1.0, 1.0)])
def test_style_is_drawn_from_the_genders_register_as_often_as_asked(style, low, high):
    """At 0.5 a hobby tells nothing, at 1 everything."""
    written = biographies([("nurse", "female", 200)], seed=5, style=style)
    soft = sum(any(hobby in one.text for hobby in HOBBIES["soft"]) for one in written)
    assert low <= soft / 200 <= high


def test_the_subject_decides_the_number_and_the_clause_follows_the_attractor(known):
    """`The guards that the skater likes`: label plural, attribute singular."""
    for one in known["agreement"].draw(0, SMALL).test:
        _, subject, *_, attractor, verb = one.text.split()
        assert plural(subject) == bool(one.label)
        assert plural(attractor) == bool(one.attribute)
        assert verb.endswith("s") != bool(one.attribute)


def test_pronouns_are_annotated_by_rule_and_the_note_counts_what_was_read(tmp_path: Path):
    """Open sentences get no label; the error is that of the sentences that are there."""
    found = annotate([*CHECKED, 999_999])
    assert len(found) == len(CHECKED) - len(OPEN) + 1
    assert [one.by_hand for one in found if one.index == 999_999] == [False]
    assert len(set(CHECKED)) == len(CHECKED) >= 60
    file = tmp_path / "winogenerated.jsonl"
    for rows, said in ((CHECKED[:60], "at most 0 of 60 sentences"), (CHECKED, "at most 1 of 129 sentences")):
        file.write_text("\n".join(json.dumps({"index": index}) for index in rows))
        assert said in note(file)


def test_the_highest_share_is_the_exact_binomial_bound():
    """With none found it is 1 - doubt^(1/n), the rule of three's exact form."""
    assert highest_share(0, 60) == pytest.approx(1 - 0.05 ** (1 / 60), abs=1e-6)
    assert highest_share(1, 60) > highest_share(0, 60)
