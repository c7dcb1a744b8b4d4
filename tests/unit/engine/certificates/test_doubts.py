"""What an export cannot be certified for is said beforehand, all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trephine.engine.certificates.doubts import calibration_caveats, doubt_of, stored_caveats
from trephine.engine.certificates.edit_floor import EditFloor
from trephine.engine.certificates.export_texts import ExportTexts
from trephine.engine.certificates.firing_floor import FiringFloor
from trephine.engine.certificates.noise import NoiseFloor, Spread
from trephine.engine.runs.retain import RetainText
from trephine.engine.weights.compiling import WeightProgram
from trephine.engine.weights.notes import Note
from trephine.engine.weights.tensors import TensorChange

OWN, OTHER = (RetainText(name=name, sha256=name, windows=((1, 2),)) for name in ("own", "other"))
SAME, APART = ExportTexts(calibration=OWN, measured=OWN), ExportTexts(calibration=OTHER, measured=OWN)
CHANGE = TensorChange(name="a", file="f", dtype="F32", layer=0, entry=None)
NOTHING = WeightProgram(changes=(), config={})
EXACT = WeightProgram(changes=(CHANGE,), config={})
GRAFT = WeightProgram(changes=(CHANGE,), config={}, grafted=True, calibrated=True)
FIT = WeightProgram(changes=(CHANGE,), config={}, fitted=True, calibrated=True)
NONE = Spread(mean=0.0, p99=0.0)


@pytest.mark.parametrize(
    ("program", "texts", "doubted", "caveats"),
    [
        (EXACT, SAME, False, 0),
        (GRAFT, SAME, False, 1),
        (GRAFT, APART, False, 0),
        (FIT, SAME, True, 0),
        (FIT, APART, False, 0),
    ],
)
def test_what_was_chosen_on_the_text_that_is_measured_is_said(program, texts, doubted, caveats):
    """Of gains in a caveat; of a fit, whose share is all that is promised, in a doubt."""
    assert ("fitted on the very text that is measured" in doubt_of(program, texts, None)) == doubted
    assert len(calibration_caveats(program, texts)) == caveats


def test_no_doubt_hides_another():
    """What is not carried, what never fires, and what was fitted on itself, in one line."""
    note = Note(tier="ridge", tensors=(), description="", carried=False)
    program = WeightProgram(changes=(CHANGE,), config={}, fitted=True, calibrated=True, notes={2: note})
    firing = FiringFloor(tokens=9, floor=0.0, edit=1.0, silent=("set:1:7",))
    said = doubt_of(program, SAME, firing)
    for part in ("interventions 2 of the edit", "about set:1:7", "fitted on the very text"):
        assert part in said
    assert doubt_of(EXACT, SAME, None) == ""
    drowned = EditFloor(tokens=1024, floor=1e-3, edit=2e-3)
    assert "it moves 2.00e-03 nats" in doubt_of(EXACT, SAME, None, drowned)


def test_a_fit_in_narrower_files_says_that_how_it_runs_as_stored_is_not_judged():
    """A figure without a gate is no pass of one."""
    floor = NoiseFloor(attention=NONE, dtype=NONE)
    narrow = NoiseFloor(attention=NONE, dtype=NONE, stored=NONE)
    assert [len(stored_caveats(each, narrow)) for each in (EXACT, GRAFT, FIT)] == [0, 0, 1]
    assert stored_caveats(FIT, floor) == ()


def test_an_edit_that_changes_no_tensor_is_doubted_beside_all_else():
    """Exact or not: a copy of the parent is certified for nothing, whatever its distance."""
    assert doubt_of(NOTHING, SAME, None).startswith("the edit changes no tensor")
    note = Note(tier="ridge", tensors=(), description="", carried=False)
    said = doubt_of(replace(NOTHING, fitted=True, notes={0: note}), SAME, None)
    for part in ("changes no tensor", "interventions 0 of the edit", "fitted on the very text"):
        assert part in said


@pytest.mark.parametrize(("shared", "apart"), [(0, True), (40, True), (100, False), (128, False)])
def test_a_text_that_repeats_itself_is_not_kept_apart(shared, apart):
    """What is measured stands in what was fitted on: of a fit a doubt, of gains a caveat."""
    first, second = tuple(range(128)), tuple(range(500, 628))
    measured = replace(OWN, windows=(first[:shared] + second[shared:],))
    texts = ExportTexts(calibration=replace(OTHER, windows=(second[::-1], first)), measured=measured)
    assert texts.apart == apart
    assert ("for the text repeats itself" in doubt_of(FIT, texts, None)) != apart
    assert bool(calibration_caveats(GRAFT, texts)) != apart
    assert calibration_caveats(FIT, texts) == ()
    assert doubt_of(GRAFT, texts, None) == doubt_of(EXACT, texts, None) == ""
