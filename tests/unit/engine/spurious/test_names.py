"""What labels, attributes and environments are called decides nothing: the same data, the same report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous, attribute_texts, balanced, labelled, paired
from trephine.domain.findings import Figure
from trephine.domain.spurious_arms import ArmOutcome
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import RemovalBudget, RemoveSpuriousFeatures, SpuriousRemoval
from trephine.domain.spurious_texts import AttributeText, LabelledText
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.spurious.examples import attribute_order, read_data
from trephine.engine.spurious.folds import folds_of
from trephine.engine.spurious.removal import remove_spurious_features

LABELS = {"Q": "zz", "W": "aa"}
ATTRIBUTES = {"X": "zz", "Z": "aa"}
ENVIRONMENTS = {name: chr(ord("a") + ord("f") - ord(name)) for name in "abcdef"}
BUDGET = RemovalBudget(
    candidates=96, exact=0, counts=(1, 5, 20), effect_texts=48, fit_texts=64, random_sets=1
)
SIZES = [(0, 0, 33), (1, 1, 33), (0, 1, 17), (1, 0, 17)]
SOURCES = tuple(
    replace(one, environment="abcdef"[place % 6])
    for place, one in enumerate(labelled(SIZES, 0, attribute=False))
)
PROBE = ProbeHead(layer=1, pooling=Pooling.MEAN)
REQUESTS: dict[str, dict[str, Any]] = {
    "examples": {"training": ambiguous(), "attribute_texts": attribute_texts()},
    "twins": {"training": ambiguous(seed=28, twins=True), "seed": 4},
    "groups": {"training": labelled(SIZES, 0)},
    "environments": {"training": SOURCES},
    "pairs": {
        "training": paired(ambiguous()),
        "test": paired(balanced(), "test pair"),
        "attribute_texts": attribute_texts(),
        "decision": replace(PROBE, pairs=True),
    },
}


@pytest.fixture(scope="module")
def session() -> Session:
    """A tiny Llama."""
    return Session(hosted=tiny_hosted("llama"))


def otherwise_called(text: LabelledText | AttributeText) -> LabelledText | AttributeText:
    """Return a text under names whose order is the other way round."""
    attribute = None if text.attribute is None else ATTRIBUTES[text.attribute]
    if isinstance(text, AttributeText):
        return replace(text, attribute=str(attribute))
    environment = None if text.environment is None else ENVIRONMENTS[text.environment]
    return replace(text, label=LABELS[text.label], attribute=attribute, environment=environment)


def request(name: str) -> RemoveSpuriousFeatures:
    """Build one of the requests."""
    given = {"test": balanced(), "decision": PROBE, "budget": BUDGET, "resamples": 50, **REQUESTS[name]}
    return RemoveSpuriousFeatures(**given)


def renamed(command: RemoveSpuriousFeatures) -> RemoveSpuriousFeatures:
    """Return the same request under other names."""
    return replace(
        command,
        training=tuple(map(otherwise_called, command.training)),
        test=tuple(map(otherwise_called, command.test)),
        attribute_texts=tuple(map(otherwise_called, command.attribute_texts)),
    )


def bounds(figure: Figure | None) -> tuple[float | None, ...]:
    """Return what a figure says."""
    return () if figure is None else (figure.value, figure.low, figure.high)


def figures(arm: ArmOutcome) -> dict[str, float | None]:
    """Return an arm's values and bounds by name, those of groups in the first request's words."""
    groups = {f"group {LABELS[y]}/{ATTRIBUTES[a]}": f"group {y}/{a}" for y in LABELS for a in ATTRIBUTES}
    return {
        f"{groups.get(one.name, one.name)}, {which}": value
        for one in arm.figures
        for which, value in zip(("value", "low", "high"), bounds(one), strict=True)
    }


def choices(report: SpuriousRemoval) -> list[tuple[int, bool, bool, float, float]]:
    """Return what was tried and what was taken."""
    return [
        (one.count, one.erased, one.taken, round(one.criterion, 6), round(one.ambiguous_accuracy, 6))
        for one in report.choices
    ]


@pytest.mark.parametrize("name", REQUESTS)
def test_names_in_the_other_order_give_the_same_report(session: Session, name: str):
    """Features, their standing, the choice, every arm's figures with their intervals, and the outcome."""
    command = request(name)
    first, second = (finish(remove_spurious_features(session, one)) for one in (command, renamed(command)))
    assert second.labels == tuple(LABELS[one] for one in reversed(first.labels))
    assert second.attributes == tuple(ATTRIBUTES[one] for one in reversed(first.attributes))
    assert choices(first) == choices(second)
    standings = [
        {one.feature: (one.standing, one.removed) for one in report.features} for report in (first, second)
    ]
    assert standings[0] == standings[1]
    assert [one.arm for one in first.arms] == [one.arm for one in second.arms]
    for one, other in zip(first.arms, second.arms, strict=True):
        assert figures(one) == pytest.approx(figures(other))
    assert (first.outcome.verdict, first.outcome.ground) == (second.outcome.verdict, second.outcome.ground)
    assert (first.scores.scr, first.scores.tpp) == pytest.approx((second.scores.scr, second.scores.tpp))
    for part in ("before", "after", "gain"):
        one, other = (bounds(getattr(report.outcome, part)) for report in (first, second))
        assert one == pytest.approx(other)


@pytest.mark.parametrize("name", REQUESTS)
def test_names_hold_out_and_deal_the_same_texts(session: Session, name: str):
    """A fifth that chooses, and parts that heads are trained without."""
    command = request(name)
    found = [read_data(session.require_model(), one) for one in (command, renamed(command))]
    assert [one.text for one in found[0].held_out] == [one.text for one in found[1].held_out]
    assert folds_of(found[0].training, 4) == folds_of(found[1].training, 4)


def test_an_attribute_that_nothing_orders_goes_with_labels_as_they_appear():
    """What appears first with what appears first, whatever the alphabet says."""
    command = RemoveSpuriousFeatures(
        training=ambiguous(attribute=False), attribute_texts=attribute_texts(), decision=PROBE
    )
    assert attribute_order(command) == (("X", "Z"), "")
    assert attribute_order(renamed(command)) == (("aa", "zz"), "")
