"""What an operation would write, feature by feature, is what it writes where it is done."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import NAME, resident_set
from trephine.domain.interventions import (
    Ablate,
    Add,
    Clamp,
    Condition,
    FeatureTarget,
    Intervention,
    MeanAblate,
    Mode,
    ProjectOut,
    Resample,
    Scale,
    Selector,
    SetTo,
)
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.engine.edits.written import written_on_prompt
from trephine.engine.replacements.sets import layer_info
from trephine.engine.runs.rows import RowInput, run_rows

IDS = [5, 17, 44, 9, 9, 301, 23, 120, 77]
TEXT = "The dog went to Paris and then to the store to drink"
OPERATIONS = (
    Ablate(),
    Scale(factor=1.5),
    SetTo(value=0.7),
    Clamp(high=0.1),
    MeanAblate(text=TEXT),
    Resample(donor=TEXT),
)


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def change(index, operation, replacement=NAME, **rest: Any):
    feature = FeatureRef(replacement=replacement, layer=1, index=index)
    return Intervention(target=FeatureTarget(feature=feature), operation=operation, **rest)


def seen(hosted, intervention, positions):
    """The rms of the output's change at some positions, by carrying the operation out."""
    feature = intervention.target.feature
    sites = layer_info(hosted, feature.replacement, 1).sites_out
    rows = [RowInput(IDS), RowInput(IDS, (intervention,))]
    plain, changed = run_rows(hosted, rows, reads=sites, allow_unmatched=True).values
    first = sites[0]  # later ones hold what the change did on its way, too
    return float((changed[first] - plain[first])[positions].double().pow(2).sum(1).mean().sqrt())


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.kind)
@pytest.mark.parametrize("kind", ["jumprelu", "topk", "normalised", "denormalised", "resid_post"])
def test_it_is_what_the_operation_writes(kind, operation):
    """For features of the layer one by one, at positions >= 1."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, kind)
    (written,) = written_on_prompt(hosted, IDS, (change(0, operation),)).values()
    positions = list(range(1, len(IDS)))
    for index in (*written.topk(4).indices.tolist(), 0, int(written.argmin())):
        expected = seen(hosted, change(index, operation), positions)
        assert float(written[index]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_of_neurons_too(family):
    """Neurons write through the down projection."""
    hosted = tiny_hosted(family)
    (written,) = written_on_prompt(hosted, IDS, (change(3, Ablate(), NEURONS),)).values()
    expected = seen(hosted, change(9, Ablate(), NEURONS), list(range(1, len(IDS))))
    assert float(written[9]) == pytest.approx(expected, rel=1e-3)


def test_selectors_conditions_and_strengths_count():
    """Only positions that are reached, only where the condition holds, only as far as it goes."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "jumprelu")
    (everywhere,) = written_on_prompt(hosted, IDS, (change(0, Ablate()),)).values()
    busy = int(everywhere.argmax())
    half = change(busy, Ablate(), selector=Selector(positions=(3, -1)), mode=Mode(strength=0.5))
    (written,) = written_on_prompt(hosted, IDS, (half,)).values()
    assert float(written[busy]) == pytest.approx(seen(hosted, half, [3, 8]), rel=1e-3)
    condition = Condition(feature=FeatureRef(replacement=NAME, layer=1, index=busy), at_least=1e-6)
    (met,) = written_on_prompt(hosted, IDS, (change(busy, Ablate(), condition=condition),)).values()
    assert float(met[busy]) >= float(everywhere[busy])
    never = Condition(feature=condition.feature, at_least=1e9)
    (none,) = written_on_prompt(hosted, IDS, (change(busy, Ablate(), condition=never),)).values()
    assert not none.any()


def test_neighbours_and_repeated_changes_are_told_apart():
    """What neighbours share is computed once; a feature that is changed twice has both changes."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "jumprelu")
    first, rest = Selector(positions=(3,)), Selector(positions=(4, 5))
    plan = (
        change(0, Ablate(), selector=first),
        change(1, Ablate(), selector=first),
        change(0, Scale(factor=3.0), selector=rest),
    )
    together = written_on_prompt(hosted, IDS, plan)
    alone = [next(iter(written_on_prompt(hosted, IDS, (one,)).values())) for one in plan]
    torch.testing.assert_close(together[plan[1].target.feature], alone[1])
    both = ((alone[0] ** 2 + 2 * alone[2] ** 2) / 3).sqrt()
    torch.testing.assert_close(together[plan[0].target.feature], both)


def test_the_sink_counts_only_alone():
    """Position 0 is left out beside others, and measured where it is all that is reached."""
    hosted = tiny_hosted("llama")
    first, other = Selector(positions=(0,)), Selector(positions=(0, 4))
    (alone,) = written_on_prompt(hosted, IDS, (change(3, Ablate(), NEURONS, selector=first),)).values()
    (beside,) = written_on_prompt(hosted, IDS, (change(3, Ablate(), NEURONS, selector=other),)).values()
    assert float(alone[3]) == pytest.approx(seen(hosted, change(3, Ablate(), NEURONS), [0]), rel=1e-3)
    assert float(beside[3]) == pytest.approx(seen(hosted, change(3, Ablate(), NEURONS), [4]), rel=1e-3)


@pytest.mark.parametrize("operation", [Add(amount=2.0), ProjectOut()], ids=lambda operation: operation.kind)
def test_what_follows_no_activation_is_left_out(operation):
    """What is added or projected out is the same whatever the feature does here."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "jumprelu")
    assert written_on_prompt(hosted, IDS, (change(0, operation),)) == {}
