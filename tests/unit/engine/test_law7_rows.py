"""Law 7: a row's logits do not depend on its batch."""

from __future__ import annotations

import pytest

from tests.builders import FAMILIES, tiny_hosted
from tests.unit.engine.interventions import at, direction, neuron, whole
from trephine.domain.interventions import (
    Ablate,
    Add,
    AddNormScaled,
    MeanAblate,
    Mode,
    PatternMode,
    ProjectOut,
    Resample,
    Scale,
    SetTo,
)
from trephine.domain.sites import SiteKind
from trephine.engine.runs.rows import RowInput, run_rows

FROZEN = Mode(patterns=PatternMode.FROZEN)
DONOR = " Paris is the capital of France and a store"


def ragged(hosted):
    """Rows of different lengths, each with other interventions."""
    ramp = [float(i % 5 - 2) for i in range(hosted.info.d_model)]
    return [
        RowInput(hosted.encode("When Mary and John went to the store")),
        RowInput(hosted.encode(" the cat"), (neuron(0, 3, Ablate()), neuron(2, 5, Scale(factor=-2.0)))),
        RowInput(
            hosted.encode("The dog gave a drink"),
            (
                direction(SiteKind.RESID_POST, 1, ramp, AddNormScaled(fraction=0.7)),
                direction(SiteKind.MLP_OUT, 0, ramp, ProjectOut(), selector=at(-1)),
            ),
        ),
        RowInput(
            hosted.encode(" a cat🙂"),
            (whole(SiteKind.ATTN_OUT, 1, Resample(donor=DONOR), selector=at(0, 2)),),
        ),
        RowInput(
            hosted.encode("Mary is of"),
            (
                neuron(0, 3, SetTo(value=4.0), mode=FROZEN),
                direction(SiteKind.RESID_PRE, 1, ramp, Add(amount=1.0), mode=FROZEN),
            ),
        ),
        RowInput(hosted.encode(" Mary"), (whole(SiteKind.MLP_OUT, 1, MeanAblate(text=DONOR)),)),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_the_same_alone_and_in_a_batch(family):
    """Six ragged rows with different plans give together what each gives alone."""
    hosted = tiny_hosted(family)
    rows = ragged(hosted)
    together = run_rows(hosted, rows)
    plain = [RowInput(row.ids) for row in rows]
    plain_together = run_rows(hosted, plain)
    for i, row in enumerate(rows):
        alone, plain_alone = run_rows(hosted, [row]), run_rows(hosted, [plain[i]])
        noise = (plain_alone.logits[0] - plain_together.logits[i]).abs().max().item()
        difference = (alone.logits[0] - together.logits[i]).abs().max().item()
        assert difference <= max(3e-4, 4 * noise)
        for mine, batched in zip(alone.applied[0], together.applied[i], strict=True):
            assert (mine.index, mine.layer, mine.positions) == (
                batched.index,
                batched.layer,
                batched.positions,
            )
            assert batched.mean_change == pytest.approx(mine.mean_change, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_row_does_not_feel_its_neighbours_interventions(family):
    """The row without interventions has bit-identical logits whatever is done to the others."""
    hosted = tiny_hosted(family)
    rows = ragged(hosted)
    plain = run_rows(hosted, [RowInput(row.ids) for row in rows]).logits[0]
    assert plain.equal(run_rows(hosted, rows).logits[0])
