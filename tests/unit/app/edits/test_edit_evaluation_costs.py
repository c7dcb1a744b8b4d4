"""What an evaluation is predicted to cost: controls weigh most, on targets and on retain sets alike."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.app.house import model_info
from trephine.app.jobs.costs import predict, tokens_of
from trephine.domain.edit_evaluation import (
    ChoiceItem,
    EvaluateEdit,
    EvaluationSet,
    FeatureControls,
    SetRole,
)
from trephine.domain.edits import Edit

EDIT = Edit(
    name="quiet", version=1, content_hash="c", interventions=(), reason="", author="", evidence=(),
    model="tiny", weight_hash="w", create_time="",
)  # fmt: skip
ITEM = ChoiceItem(prompt="When Mary and John went", choices=(" Mary", " John"), answer=0)
TARGET = EvaluationSet(name="target", role=SetRole.TARGET, items=(ITEM,) * 20)
LONG = EvaluationSet(name="long", role=SetRole.RETAIN, texts=("a word " * 500,) * 20)
QUIZ = EvaluationSet(name="quiz", role=SetRole.RETAIN, items=(ITEM,) * 20)
ARMS = 1 + 99 + 19


def tokens(*sets: EvaluationSet, of_target: int = 256, of_retain: int | None = None) -> int:
    """Tokens that an evaluation is predicted to take."""
    controls = FeatureControls(tokens=of_target, retain_tokens=of_retain)
    command = EvaluateEdit(edit=EDIT, sets=sets, controls=controls, prompting=None)
    return predict(command, model_info()).tokens


def test_controls_on_retain_sets_are_counted_and_bounded():
    """Of long texts as many tokens as are asked for, however long they are; none if none is."""
    for sets in ((TARGET, LONG), (TARGET,)):  # without a retain set the built-in text is one
        without = tokens(*sets, of_retain=0)
        assert tokens(*sets, of_retain=256) - without == ARMS * 256
        assert tokens(*sets, of_retain=64) - without == ARMS * 128  # eight texts of at least 16
        assert tokens(*sets) == tokens(*sets, of_retain=256)


def test_items_are_not_cut():
    """Eight of them run with every control, whatever is asked for."""
    one = tokens_of(ITEM.prompt) + sum(map(tokens_of, ITEM.choices))
    assert tokens(TARGET, QUIZ, of_retain=1) - tokens(TARGET, QUIZ, of_retain=0) == ARMS * 8 * one


def test_every_retain_set_has_controls_of_its_own():
    """Two sets take twice the passes of one."""
    one = tokens(TARGET, LONG) - tokens(TARGET, LONG, of_retain=0)
    twice = (TARGET, LONG, replace(LONG, name="again"))
    assert tokens(*twice) - tokens(*twice, of_retain=0) == 2 * one
