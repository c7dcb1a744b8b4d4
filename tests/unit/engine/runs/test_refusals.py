"""What does not exist or is not supported is refused before any work, by a typed error."""

from __future__ import annotations

import pytest

from tests.builders import tiny_hosted
from tests.unit.engine.interventions import at, direction, neuron, whole
from trephine.domain.errors import (
    EmptyPromptError,
    FeatureOutOfRangeError,
    InvalidRequestError,
    LayerOutOfRangeError,
    PositionOutOfRangeError,
    PromptTooLongError,
    ReplacementNotFoundError,
    ShapeMismatchError,
    TokenOutOfRangeError,
    UnsupportedInterventionError,
    UnsupportedOptionError,
)
from trephine.domain.interventions import (
    Ablate,
    Add,
    AddNormScaled,
    Condition,
    ErrorTerm,
    FeatureTarget,
    HeadInput,
    Intervention,
    MeanAblate,
    Mode,
    PatternMode,
    Selector,
    SetTo,
)
from trephine.domain.sites import FeatureRef, SiteKind
from trephine.engine.runs.rows import RowInput, run_rows

ONES = [1.0] * 32
FOREIGN = Intervention(
    target=FeatureTarget(feature=FeatureRef(replacement="tc", layer=0, index=0)), operation=Ablate()
)
BAD = [
    (neuron(3, 0, Ablate()), LayerOutOfRangeError, "layers 0 to 2"),
    (neuron(-1, 0, Ablate()), LayerOutOfRangeError, "layer -1"),
    (neuron(0, 64, Ablate()), FeatureOutOfRangeError, "0 to 63"),
    (neuron(0, -1, Ablate()), FeatureOutOfRangeError, "neuron -1"),
    (FOREIGN, ReplacementNotFoundError, "replacement set 'tc' is not loaded"),
    (neuron(0, 0, AddNormScaled(fraction=1.0)), UnsupportedInterventionError, "operation"),
    (direction(SiteKind.MLP_OUT, 0, [1.0], Ablate()), ShapeMismatchError, "has 32"),
    (direction(SiteKind.NEURONS, 0, ONES, Ablate()), ShapeMismatchError, "has 64"),
    (direction(SiteKind.MLP_OUT, 9, ONES, Ablate()), LayerOutOfRangeError, "layer 9"),
    (direction(SiteKind.EMBED, 1, ONES, Ablate()), LayerOutOfRangeError, "embed"),
    (
        direction(SiteKind.MLP_OUT, 0, ONES, Ablate(), error_term=ErrorTerm.DROP),
        UnsupportedInterventionError,
        "error",
    ),
    (whole(SiteKind.MLP_OUT, 0, Add(amount=1.0)), UnsupportedInterventionError, "operation"),
    (neuron(0, 0, Ablate(), mode=Mode(last_layer=1)), UnsupportedInterventionError, "mode.last_layer"),
    (
        neuron(0, 0, Ablate(), mode=Mode(heads=(HeadInput(layer=0, head=0, role="q"),))),
        UnsupportedInterventionError,
        "mode.heads",
    ),
    (
        neuron(0, 0, Ablate(), condition=Condition(feature=FeatureRef(layer=1, index=0), at_least=0.0)),
        UnsupportedInterventionError,
        "condition.feature",
    ),
    (
        direction(
            SiteKind.RESID_MID,
            1,
            ONES,
            Ablate(),
            condition=Condition(feature=FeatureRef(layer=1, index=0), at_least=0),
        ),
        UnsupportedInterventionError,
        "earlier layer",
    ),
    (neuron(0, 0, Ablate(), selector=at(3)), PositionOutOfRangeError, "positions 0 to 2"),
    (neuron(0, 0, Ablate(), selector=at(-4)), PositionOutOfRangeError, "position -4"),
    (neuron(0, 0, Ablate(), selector=Selector(tokens=(400,))), TokenOutOfRangeError, "0 to 399"),
    (neuron(0, 0, MeanAblate(text=" the")), InvalidRequestError, "at least two tokens"),
    (neuron(0, 0, MeanAblate(text="")), EmptyPromptError, "no token"),
]


@pytest.mark.parametrize(("intervention", "error", "says"), BAD)
def test_refused(intervention, error, says):
    """Each bad intervention raises its own error, whose message says what is wrong."""
    hosted = tiny_hosted("llama")
    with pytest.raises(error, match=says) as caught:
        run_rows(hosted, [RowInput(hosted.encode(" Mary and John"), (intervention,))])
    assert type(caught.value) is error


def test_neurons_accept_every_error_term():
    """Neurons reconstruct exactly, so live, frozen and drop agree bit for bit."""
    hosted = tiny_hosted("llama")
    ids = hosted.encode(" Mary and John")
    rows = [RowInput(ids, (neuron(0, 0, SetTo(value=2.0), error_term=term),)) for term in ErrorTerm]
    first, *others = run_rows(hosted, rows).logits
    assert all(first.equal(other) for other in others)


def test_one_row_cannot_hold_patterns_both_ways():
    """Frozen and live patterns in one row contradict each other."""
    hosted = tiny_hosted("llama")
    both = (neuron(0, 0, Ablate()), neuron(1, 0, Ablate(), mode=Mode(patterns=PatternMode.FROZEN)))
    with pytest.raises(UnsupportedInterventionError, match="two rows"):
        run_rows(hosted, [RowInput(hosted.encode(" Mary"), both)])


def test_parallel_blocks_have_no_stream_between_their_branches():
    """Writing `resid_mid` of a parallel block is refused, not quietly done elsewhere."""
    hosted = tiny_hosted("gpt_neox")
    with pytest.raises(UnsupportedOptionError, match="parallel"):
        run_rows(
            hosted, [RowInput(hosted.encode(" Mary"), (direction(SiteKind.RESID_MID, 0, ONES, Ablate()),))]
        )


def test_rows_need_tokens_and_must_fit():
    """An empty row and one beyond the context are typed errors."""
    hosted = tiny_hosted("llama")
    with pytest.raises(EmptyPromptError):
        run_rows(hosted, [RowInput([])])
    with pytest.raises(PromptTooLongError, match="context of 256"):
        run_rows(hosted, [RowInput([5] * 257)])
