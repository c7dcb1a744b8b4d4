"""What an export cannot be certified for, known before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.engine.certificates.edit_floor import EditFloor
from trephine.engine.certificates.export_texts import ExportTexts
from trephine.engine.certificates.firing_floor import FeatureFloor, FiringFloor
from trephine.engine.certificates.noise import NoiseFloor
from trephine.engine.certificates.part_floors import parts_doubt
from trephine.engine.weights.compiling import WeightProgram


def doubt_of(
    program: WeightProgram,
    texts: ExportTexts,
    firing: FiringFloor | None,
    whole: EditFloor | None = None,
    parts: Sequence[FeatureFloor] = (),
) -> str:
    """Say what nothing is certified about, and what to do; empty if all of it can be told.

    Args:
        program: What is written.
        texts: What is calibrated on and measured.
        firing: Of features, what was measured where they fire; None: there are none.
        parts: Of neurons, heads and directions beside grafts and fits, what each does alone.
        whole: Of exact edits, what was measured over all tokens; None: another, or one that changes nothing.
    """
    floors = [one.doubt for one in (firing, whole) if one is not None]
    doubts = (
        *(_unchanged(program), _uncarried(program), *floors),
        *(parts_doubt(parts), _fitted_on_itself(program, texts)),
    )
    return "; ".join(one for one in doubts if one)


def calibration_caveats(program: WeightProgram, texts: ExportTexts) -> tuple[str, ...]:
    """Say that gains were chosen on what is measured; of a fit that is a doubt, and said there."""
    if not program.calibrated or program.fitted or texts.apart:
        return ()
    advice = "give a text of your own (--text), of which what is measured is kept apart"
    if texts.calibration is texts.measured:
        return (
            "The gains of grafted neurons were chosen on the very text that is measured here, the built-in "
            f"one; {advice}",
        )
    return (f"The gains of grafted neurons were chosen on {_again(texts)}; give one that does not (--text)",)


def stored_caveats(program: WeightProgram, floor: NoiseFloor) -> tuple[str, ...]:
    """Say of a fit in narrower files that how it runs as stored is no gate of its own."""
    if not program.fitted or floor.stored is None:
        return ()
    return (
        "How the folder runs in the type of its files is measured and not judged: a part is fitted, and the "
        "share that is promised of it is of the type that the runtime computes in",
    )


def _fitted_on_itself(program: WeightProgram, texts: ExportTexts) -> str:
    """A fit's share of an edit, on the text that it was fitted on, is no share of it on any other."""
    if not program.fitted or texts.apart:
        return ""
    if texts.calibration is texts.measured:
        return (
            "a part is fitted on the very text that is measured, for the built-in one is too short for both: "
            "nothing is certified about other texts; give one of your own, some thousands of tokens (--text)"
        )
    return (
        f"a part is fitted on {_again(texts)}: nothing is certified about other texts; give one that does "
        "not (--text)"
    )


def _again(texts: ExportTexts) -> str:
    return f"what is measured again, for the text repeats itself ({texts.repeated:.0%} of the measured part)"


def _unchanged(program: WeightProgram) -> str:
    """A copy of the parent is as near to the runtime as anything can be, and shows nothing."""
    if program.changes:
        return ""
    return (
        "the edit changes no tensor, and the folder is a copy of its parent: nothing is certified about the "
        "edit; the steps of the plan say why each changes nothing"
    )


def _uncarried(program: WeightProgram) -> str:
    """Say which interventions the weights do not carry, for want of a text on which they act."""
    numbers = [str(number) for number, note in sorted(program.notes.items()) if not note.carried]
    if not numbers:
        return ""
    return (
        "what changes nothing on the calibration text is not carried (interventions "
        f"{', '.join(numbers)} of the edit, from 0): nothing is certified about it; give a text on which it "
        "acts (--text)"
    )
