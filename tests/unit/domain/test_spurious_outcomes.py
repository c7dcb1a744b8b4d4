"""Whether a removal held: intervals by the book, and doubt that is no pass."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from trephine.domain.findings import Verdict
from trephine.domain.shares import share, wilson
from trephine.domain.spurious_groups import group_name
from trephine.domain.spurious_outcomes import CHANCE, Ground, Tally, outcome_on, unmeasured


def _outcome(before: int, after: int, texts: int):
    """One hard group beside three that are right throughout."""
    easy = [Tally(name=str(one), texts=texts, before=texts, after=texts) for one in range(3)]
    hard = [Tally(name="nurse/male", texts=texts, before=before, after=after)]
    return outcome_on(Ground.TEST, easy + hard)


def test_intervals_are_those_of_the_book():
    """Newcombe (1998), table II, (a) by method 10: 56 of 70 less 48 of 80; and Wilson's of 15 of 148."""
    low, high = wilson(15, 148)
    assert (low, high) == (pytest.approx(0.0624, abs=1e-4), pytest.approx(0.1605, abs=1e-4))
    groups = [
        Tally(name="before", texts=80, before=48, after=80),
        Tally(name="after", texts=70, before=70, after=56),
    ]
    gain = outcome_on(Ground.TEST, groups).gain
    assert (gain.value, gain.low, gain.high) == tuple(
        pytest.approx(one, abs=1e-4) for one in (0.2, 0.0524, 0.3339)
    )


@pytest.mark.parametrize(
    ("before", "after", "texts", "verdict", "said"),
    [
        (0, 195, 200, Verdict.PASS, "from 0.0% to 97.5%"),
        (0, 0, 200, Verdict.FAIL, "against its label more often than not"),
        (10, 70, 200, Verdict.FAIL, "against its label more often than not"),
        (180, 120, 200, Verdict.FAIL, "worse than before"),
        (190, 191, 200, Verdict.INCONCLUSIVE, "may be no gain"),
        (40, 108, 200, Verdict.INCONCLUSIVE, "may still be the attribute"),
        (0, 3, 3, Verdict.INCONCLUSIVE, "may still be the attribute"),
    ],
)
def test_doubt_is_inconclusive(before, after, texts, verdict, said):
    """A pass gains and is decided by the label, each beyond its interval; three texts show nothing."""
    found = _outcome(before, after, texts)
    assert found.verdict is verdict
    assert said in found.why
    assert bool(found.settles) is (verdict is Verdict.INCONCLUSIVE)
    assert (found.before.name, found.texts) == ("nurse/male", texts)


@pytest.mark.parametrize("few", [1, 2])
def test_a_group_of_few_lucky_texts_is_a_doubt(few):
    """One or two texts that are right now may be the worst group all the same: no pass, and it is named."""
    large = [Tally(name="nurse/female", texts=1000, before=990, after=960)]
    hard = [Tally(name="physician/female", texts=1000, before=300, after=950)]
    assert outcome_on(Ground.TEST, large + hard).verdict is Verdict.PASS
    found = outcome_on(Ground.TEST, [*large, *hard, Tally(name="nurse/male", texts=few, before=0, after=few)])
    assert (found.verdict, found.texts) == (Verdict.INCONCLUSIVE, few)
    assert (found.after.value, found.after.low) == (0.95, pytest.approx(wilson(few, few)[0]))
    assert f"nurse/male, with {few} of {few} right, may be as low as {wilson(few, few)[0]:.1%}" in found.why
    assert found.settles.endswith("above all of nurse/male")


def test_a_worst_group_is_no_better_than_any_group():
    """Bounds of the least share: its lowest low and its lowest high, for whichever of both it is."""
    groups = [
        Tally(name="few", texts=4, before=1, after=1),
        Tally(name="many", texts=400, before=120, after=120),
    ]
    found = outcome_on(Ground.TEST, groups)
    for figure in (found.before, found.after):
        assert (figure.name, figure.value) == ("few", 0.25)
        assert (figure.low, figure.high) == (wilson(1, 4)[0], share(120, 400, least_of=2).high)
    assert found.verdict is Verdict.FAIL, "four texts alone could be at 70 %, but the others are below chance"


def test_a_gain_counts_texts_that_turned_either_way():
    """39 texts only before, 54 only after, 7 both: McNemar's exact p is 0.146, and it is no gain for sure.

    Without the texts that were right both times as few of them are taken as there can be.
    """
    easy = [Tally(name="nurse/female", texts=1000, before=990, after=990, both=985)]
    for both, verdict in ((7, Verdict.INCONCLUSIVE), (40, Verdict.PASS), (None, Verdict.INCONCLUSIVE)):
        hard = [Tally(name="nurse/male", texts=100, before=46, after=61, both=both)]
        found = outcome_on(Ground.TEST, easy + hard)
        assert found.verdict is verdict, both
        assert found.gain.value == pytest.approx(0.15)
    # By hand: Wilson's 0.5121 to 0.6998 and 0.3656 to 0.5574, correlation -2106 / sqrt(46 * 54 * 61 * 39).
    against = outcome_on(Ground.TEST, [Tally(name="a", texts=100, before=46, after=61, both=7)]).gain
    assert (against.low, against.high) == (pytest.approx(-0.0391, abs=1e-3), pytest.approx(0.3289, abs=1e-3))


def test_groups_that_cannot_be_the_worst_one_widen_nothing():
    """A group that turns either way, but is far above the worst one before, says nothing of the gain.

    It may be the worst one afterwards, so that the gain may be more than is seen of the other.
    """
    hard = [Tally(name="nurse/male", texts=200, before=40, after=150, both=40)]
    turning = [Tally(name="nurse/female", texts=200, before=140, after=150, both=90)]
    gains = [outcome_on(Ground.TEST, groups).gain for groups in (hard, hard + turning)]
    assert gains[1].low == pytest.approx(gains[0].low)
    assert gains[1].high == pytest.approx(gains[0].high, abs=0.01)


def test_the_worst_group_after_counts_whichever_it_is():
    """A group that was right and is wrong now is no gain."""
    turned = [
        Tally(name="nurse/female", texts=100, before=100, after=0),
        Tally(name="nurse/male", texts=100, before=0, after=100),
    ]
    found = outcome_on(Ground.VALIDATION, turned)
    assert found.verdict is Verdict.FAIL
    assert (found.before.name, found.after.name, found.gain.value) == ("nurse/male", "nurse/female", 0)
    assert "chosen by" in found.why


def _drawn(draw: Random, texts: int, before: Sequence[float], after: Sequence[float]) -> list[Tally]:
    """Draw independent decisions of groups that are right as often as is said."""
    return [
        Tally(
            name=str(place),
            texts=texts,
            before=sum(draw.random() < was for _ in range(texts)),
            after=sum(draw.random() < now for _ in range(texts)),
        )
        for place, (was, now) in enumerate(zip(before, after, strict=True))
    ]


@pytest.mark.parametrize("texts", [50, 200])
def test_the_worst_of_groups_that_are_alike_is_that_by_bad_luck(texts):
    """Of four at 70 % the worst seems to be at 63 to 66; one that stays has not gained by the others' gain.

    As a share of 1,000 draws no more than the 2.5 % of one side, and what chance adds to that; 7 % passed.
    """
    draw, even = Random(0), (0.7, 0.7, 0.7, 0.7)
    outcomes = [
        outcome_on(Ground.TEST, _drawn(draw, texts, even, (0.7, 1, 1, 1))).verdict for _ in range(1000)
    ]
    assert outcomes.count(Verdict.PASS) <= 40
    assert outcomes.count(Verdict.FAIL) <= 40
    chance = (CHANCE, CHANCE, CHANCE, CHANCE)
    failed = [outcome_on(Ground.TEST, _drawn(draw, texts, chance, chance)).verdict for _ in range(1000)]
    assert failed.count(Verdict.FAIL) <= 40, "none is below chance"


def test_groups_of_one_name_stay_apart():
    """Nothing is keyed by what is shown: a failing group is not overwritten by another one."""
    good, bad = (Tally(name="a/b/c", texts=200, before=20, after=after) for after in (180, 20))
    easy = Tally(name="a/c", texts=200, before=190, after=180)
    assert outcome_on(Ground.TEST, [good, easy]).verdict is Verdict.PASS
    for groups in ([easy, bad, good], [good, bad, easy]):
        assert outcome_on(Ground.TEST, groups).verdict is Verdict.FAIL


def test_no_two_groups_have_one_name():
    """Parts that hold a slash are quoted, and so are those that look quoted."""
    assert group_name("nurse", "male") == "nurse/male"
    assert (group_name("a", "b/c"), group_name("a/b", "c")) == ('a/"b/c"', '"a/b"/c')
    parts = ["a", "b", "a/b", '"a/b"', '"a', 'a"', "", "/", '"/"', '\\"/', '"a"']
    assert len({group_name(one, other) for one in parts for other in parts}) == len(parts) ** 2


def test_what_was_not_measured_is_inconclusive():
    """Without figures, and with what would settle it."""
    found = unmeasured("nothing crossed")
    assert (found.verdict, found.gain, found.texts) == (Verdict.INCONCLUSIVE, None, 0)
    assert "all four groups" in found.settles


def test_twins_alone_are_no_pass():
    """What would pass on a test split is a doubt that more twins do not settle; a failure stays one."""
    good, bad = ([Tally(name="edited", texts=200, before=0, after=after)] for after in (195, 0))
    assert outcome_on(Ground.TEST, good).verdict is Verdict.PASS
    found = outcome_on(Ground.TWINS, good)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.why.endswith("as far as the edits go: cues that twins share are not seen")
    assert "twins, among those that the number of features and the head were chosen by" in found.why
    assert found.settles == "a test or validation split with texts of all four groups"
    assert outcome_on(Ground.TWINS, bad).verdict is Verdict.FAIL
    doubt = outcome_on(Ground.TWINS, [Tally(name="edited", texts=3, before=0, after=3)])
    assert (doubt.verdict, doubt.settles) == (Verdict.INCONCLUSIVE, found.settles)
    apart = outcome_on(Ground.TWINS, good, chosen_by=False).why
    assert "texts, which the number of features and the head were chosen by, and on their twins" in apart


def _lucky(draw: Random, tried: int, texts: int) -> int:
    """Texts of one group that the best of so many heads has right, each by tossing a coin."""
    return max(sum(draw.random() < CHANCE for _ in range(texts)) for _ in range(tried))


def test_the_best_of_many_is_no_pass_for_being_lucky():
    """Heads that decide a group by a coin pass one time in six by the best of 17, and one in fifty beyond it.

    What luck cannot do, looking worse, is told as before: failures and upper bounds stay.
    """
    draw, easy, runs = Random(0), Tally(name="easy", texts=10, before=10, after=10), 400
    passed = {1: 0, 17: 0}
    for _ in range(runs):
        hard = Tally(name="hard", texts=10, before=0, after=_lucky(draw, 17, 10))
        for tried in passed:
            found = outcome_on(Ground.VALIDATION, [easy, hard], tried=tried)
            passed[tried] += found.verdict is Verdict.PASS
    assert passed[1] > 0.1 * runs
    assert passed[17] < 0.05 * runs
    bad = [easy, Tally(name="hard", texts=200, before=100, after=60)]
    for tried in passed:
        found = outcome_on(Ground.VALIDATION, bad, tried=tried)
        assert (found.verdict, found.after.high) == (Verdict.FAIL, wilson(60, 200)[1])


def test_the_best_of_many_that_are_no_better_has_gained_nothing():
    """Heads that decide a group as well as the original, no better, gain one time in forty at most.

    Where only the bound of what ships held for all at once, and not that of the original beside it, three
    in a hundred of these passed; of one head that nothing chose one in forty does.
    """
    draw, texts, right, runs = Random(0), 100, 0.8, 1000
    passed = 0
    for _ in range(runs):
        before, *others = (sum(draw.random() < right for _ in range(texts)) for _ in range(18))
        after = max(others)
        apart = round(before * after / texts)
        group = Tally(name="hard", texts=texts, before=before, after=after, both=apart)
        passed += outcome_on(Ground.VALIDATION, [group], tried=17).verdict is Verdict.PASS
    assert passed <= runs / 40


def test_bounds_of_a_gain_are_as_sure_on_either_side():
    """By hand, of one group: the lower one by Wilson's bounds at 1 - 0.025 / 17, the upper one as ever."""
    group = Tally(name="hard", texts=100, before=40, after=80, both=32)
    found = outcome_on(Ground.VALIDATION, [group], tried=17)
    (low, _), (_, high) = wilson(80, 100, 2.9738), wilson(40, 100, 2.9738)
    assert found.gain.low == pytest.approx(0.4 - ((0.8 - low) ** 2 + (high - 0.4) ** 2) ** 0.5, abs=1e-4)
    plain = outcome_on(Ground.TEST, [group])
    assert (found.gain.high, found.before) == (plain.gain.high, plain.before)


def test_a_choice_says_of_how_many_it_is_the_best():
    """A doubt is named by the bound that it has, and a test split would settle it, too."""
    groups = [Tally(name="easy", texts=8, before=8, after=8), Tally(name="hard", texts=8, before=0, after=8)]
    assert outcome_on(Ground.TEST, groups).verdict is Verdict.PASS
    found = outcome_on(Ground.VALIDATION, groups, tried=17)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "chosen by (17 in all, and lower bounds are of the best of so many)" in found.why
    assert found.after.low == pytest.approx(0.4749, abs=1e-3), "by hand: 8 / (8 + 2.974 squared)"
    assert found.settles.endswith("best in a test split, which nothing is chosen by")
