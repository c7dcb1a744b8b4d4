"""At strength s an operation goes s times as far, whatever it is and wherever it acts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import NAME, resident_set
from tests.unit.engine.interventions import direction, neuron, whole
from trephine.domain.edit_strength import at_strength
from trephine.domain.errors import (
    InvalidRequestError,
    NonFiniteValueError,
    UnsupportedInterventionError,
)
from trephine.domain.interventions import (
    Ablate,
    Add,
    AddNormScaled,
    Clamp,
    ErrorTerm,
    FeatureTarget,
    Intervention,
    MeanAblate,
    Mode,
    ProjectOut,
    Resample,
    Scale,
    SetTo,
)
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.rows import RowInput, run_rows

IDS = [5, 17, 44, 9, 9, 301]
DONOR = "When Mary and John went to the store"
OPERATIONS = (
    Ablate(), Scale(factor=-0.5), SetTo(value=2.0), Clamp(low=0.1, high=0.3), Add(amount=3.0),
    ProjectOut(), MeanAblate(text=DONOR), Resample(donor=DONOR),
)  # fmt: skip
VECTOR = [1.0, -2.0] + [0.5] * 30


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def values_at(hosted: HostedModel, site: Site, *interventions: Intervention) -> torch.Tensor:
    """What stands at a site."""
    row = RowInput(IDS, interventions)
    return run_rows(hosted, [row], reads=[site]).values[0][site].double()


CHANGES = [
    *((neuron(1, 7, one), SiteKind.NEURONS) for one in OPERATIONS if not isinstance(one, ProjectOut)),
    (neuron(1, 7, ProjectOut()), SiteKind.MLP_OUT),
    *((direction(SiteKind.RESID_MID, 1, VECTOR, one), SiteKind.RESID_MID) for one in OPERATIONS),
    (direction(SiteKind.RESID_MID, 1, VECTOR, AddNormScaled(fraction=0.7)), SiteKind.RESID_MID),
    *(
        (whole(SiteKind.MLP_OUT, 1, one), SiteKind.MLP_OUT)
        for one in OPERATIONS
        if isinstance(one, Ablate | Scale | MeanAblate | Resample)
    ),
]


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize(
    ("intervention", "kind"), CHANGES, ids=lambda x: getattr(getattr(x, "operation", x), "kind", str(x))
)
def test_the_activation_moves_strength_times_as_far(intervention, kind, strength):
    """The new one is x + s (op(x) - x), float32 of the model being the only rounding."""
    hosted, site = tiny_hosted("llama"), Site(kind=kind, layer=1)
    before, after = values_at(hosted, site), values_at(hosted, site, intervention)
    found = values_at(hosted, site, *at_strength((intervention,), strength))
    torch.testing.assert_close(found, before + strength * (after - before), rtol=1e-5, atol=1e-5)
    assert (after - before).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "normalised"])
@pytest.mark.parametrize("operation", [one for one in OPERATIONS if not isinstance(one, ProjectOut)])
def test_features_of_sets_move_strength_times_as_far(kind, operation):
    """What the set's output site receives is s times what it receives at full strength."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, kind)
    feature = FeatureTarget(feature=FeatureRef(replacement=NAME, layer=1, index=3))
    given = Intervention(target=feature, operation=operation)
    site = hosted.replacements[NAME].layer_info(1).sites_out[0]
    before, after = values_at(hosted, site), values_at(hosted, site, given)
    found = values_at(hosted, site, *at_strength((given,), 0.4))
    torch.testing.assert_close(found, before + 0.4 * (after - before), rtol=1e-4, atol=1e-4)


def test_strengths_of_strengths_multiply():
    """Half of half is a quarter, in plain operations and in carried ones."""
    for operation in (Ablate(), SetTo(value=2.0), Add(amount=4.0), Scale(factor=0.2)):
        given = (neuron(1, 7, operation),)
        twice, once = at_strength(at_strength(given, 0.5), 0.5), at_strength(given, 0.25)
        hosted, site = tiny_hosted("llama"), Site(kind=SiteKind.NEURONS, layer=1)
        torch.testing.assert_close(values_at(hosted, site, *twice), values_at(hosted, site, *once))


def test_what_the_language_can_say_is_rewritten_and_the_rest_carries_its_strength():
    """Ablating, scaling and adding at a strength are plain operations."""
    for operation in (Ablate(), Scale(factor=2.0), Add(amount=1.0)):
        (one,) = at_strength((neuron(1, 7, operation),), 0.5)
        assert one.mode == Mode()
    (one,) = at_strength((neuron(1, 7, SetTo(value=1.0)),), 0.5)
    assert one.mode == Mode(strength=0.5)


def test_error_terms_have_no_degrees():
    """Half a dropped error would be another intervention; neurons have no error."""
    feature = FeatureTarget(feature=FeatureRef(replacement=NAME, layer=1, index=3))
    given = Intervention(target=feature, operation=Ablate(), error_term=ErrorTerm.DROP)
    assert at_strength((given,), 1.0) == (given,)
    with pytest.raises(UnsupportedInterventionError):
        at_strength((given,), 0.5)
    at_strength((replace(neuron(1, 7, Ablate()), error_term=ErrorTerm.DROP),), 0.5)


@pytest.mark.parametrize(
    ("strength", "error"), [(-0.1, InvalidRequestError), (float("nan"), NonFiniteValueError)]
)
def test_strengths_that_mean_nothing_are_refused(strength, error):
    """A strength is a finite number from 0 up."""
    with pytest.raises(error):
        at_strength((neuron(1, 7, Ablate()),), strength)
    with pytest.raises(error):
        Mode(strength=strength)
