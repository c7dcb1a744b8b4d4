"""Replacement sets, evaluations and fits on the wire."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.rpc.test_wire_results import nasty_values as nasty_values  # a fixture
from trephine.app.jobs.requests import EvaluateSetRequest, FitSetRequest
from trephine.app.sets.evaluations import StoredEvaluation
from trephine.app.sets.fits import StoredFit
from trephine.app.sets.replacements import SetEntry
from trephine.domain.errors import InvalidRequestError
from trephine.domain.fitting import EndToEnd, FitRecipe
from trephine.domain.replacements import Dictionary, EvaluateReplacementSet, LayerKind
from trephine.domain.sites import SiteKind
from trephine.rpc.wire.evaluations import evaluate_from_wire, evaluation_to_wire, format_from_wire
from trephine.rpc.wire.fits import fit_from_wire, fit_to_wire, recipe_from_wire, recipe_to_wire
from trephine.rpc.wire.replacements import SetName, set_name, set_to_wire
from trephine.v1 import replacement_service_pb2 as pb

LOADED = "models/tiny/replacements/small"
WRITERS: dict[type, Callable[[Any], Message]] = {
    SetEntry: set_to_wire,
    StoredEvaluation: evaluation_to_wire,
    StoredFit: fit_to_wire,
}
count = st.integers(1, 2**31 - 1)
recipes = st.builds(
    FitRecipe,
    kind=st.sampled_from([kind for kind in LayerKind if kind is not LayerKind.NEURONS]),
    site=st.sampled_from(SiteKind),
    layers=st.lists(st.integers(0, 100), unique=True, max_size=4).map(tuple),
    d_sae=st.just(2**31 - 1),
    k=count,
    tokens=count,
    context_tokens=count,
    batch_tokens=count,
    lr=st.floats(1e-9, 1),
    dead_after_tokens=count,
    warm_start=st.booleans(),
    end_to_end=st.builds(
        EndToEnd, tokens=st.integers(0, 2**40), lr=st.floats(1e-9, 1), local_control=st.booleans()
    ),
    seed=st.integers(0, 2**40),
)


def field_of(call: Callable[[], Any]) -> object:
    with pytest.raises(InvalidRequestError) as caught:
        call()
    return caught.value.context.get("field")


@pytest.mark.usefixtures("nasty_values")
@pytest.mark.parametrize("kind", WRITERS, ids=lambda kind: kind.__name__)
def test_no_text_breaks_a_message(kind: type):
    """Half an emoji in any field becomes the replacement character, never an exception."""
    st.register_type_strategy(FitRecipe, recipes)

    @given(value=st.from_type(kind))
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    def check(value: Any) -> None:
        message = WRITERS[kind](value)
        assert type(message).FromString(message.SerializeToString()) == message

    check()


@given(recipe=recipes)
@settings(max_examples=50, deadline=None)
def test_a_recipe_survives_the_wire(recipe: FitRecipe):
    """What is written is read back as it was: zeros and falses included."""
    assert recipe_from_wire(recipe_to_wire(recipe)) == recipe


def test_defaults_are_the_domain_s():
    """An evaluation or a fit without options is exactly the domain's default."""
    command = EvaluateReplacementSet(name="small", text="", text_name="built-in")
    request = pb.EvaluateReplacementSetRequest(name=LOADED)
    assert evaluate_from_wire(request) == EvaluateSetRequest(model="tiny", command=command)
    fit = pb.FitReplacementSetRequest(model="models/tiny", set_id="mine")
    expected = FitSetRequest(model="tiny", set_id="mine", recipe=FitRecipe(), corpus_name="own samples")
    assert fit_from_wire(fit) == expected


def test_zero_means_zero():
    """No perturbations and no warm start are choices, not defaults."""
    request = pb.EvaluateReplacementSetRequest(name=LOADED, perturbations=0)
    assert evaluate_from_wire(request).command.perturbations == 0
    recipe = recipe_from_wire(pb.FitRecipe(warm_start=False, end_to_end=pb.EndToEnd(local_control=False)))
    assert (recipe.warm_start, recipe.end_to_end.local_control) == (False, False)


def test_controls_are_chosen_or_left_out():
    """Empty means all three; leaving them out is said apart."""
    one = pb.EvaluateReplacementSetRequest(name=LOADED, controls=[pb.DICTIONARY_RANDOM] * 2)
    assert evaluate_from_wire(one).command.controls == (Dictionary.RANDOM,)
    none = pb.EvaluateReplacementSetRequest(name=LOADED, without_controls=True)
    assert evaluate_from_wire(none).command.controls == ()


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"name": "small"}, "name"),
        ({"name": "replacements/small"}, "name"),
        ({"text": "/etc/passwd"}, "text"),
        ({"control_text": "artifacts/xyz"}, "control_text"),
        ({"layers": [0, -1]}, "layers[1]"),
        ({"controls": [pb.DICTIONARY_RANDOM, pb.DICTIONARY_GIVEN]}, "controls[1]"),
        ({"controls": [9]}, "controls[0]"),
        ({"controls": [pb.DICTIONARY_RANDOM], "without_controls": True}, "without_controls"),
        ({"context_tokens": 0}, "context_tokens"),
        ({"max_contexts": 1}, "max_contexts"),
        ({"bootstrap": 0}, "bootstrap"),
        ({"perturbations": -1}, "perturbations"),
    ],
)
def test_evaluations_out_of_range_name_their_field(fields: dict[str, Any], path: str):
    """Nonsense is refused by the request's own field names."""
    request = pb.EvaluateReplacementSetRequest(**{"name": LOADED, **fields})
    assert field_of(lambda: evaluate_from_wire(request)) == path


@pytest.mark.parametrize(
    ("recipe", "path"),
    [
        ({"kind": 99}, "recipe.kind"),
        ({"kind": pb.LAYER_KIND_NEURONS}, "recipe.kind"),
        ({"site": 99}, "recipe.site"),
        ({"layers": [-1]}, "recipe.layers[0]"),
        ({"k": 0}, "recipe.k"),
        ({"k": 10, "d_sae": 5}, "recipe.k"),
        ({"lr": math.nan}, "recipe.lr"),
        ({"lr": 0.0}, "recipe.lr"),
        ({"end_to_end": pb.EndToEnd(tokens=-1)}, "recipe.end_to_end.tokens"),
        ({"end_to_end": pb.EndToEnd(lr=math.inf)}, "recipe.end_to_end.lr"),
    ],
)
def test_recipes_out_of_range_name_their_field(recipe: dict[str, Any], path: str):
    """A recipe's fields are named below `recipe`."""
    assert field_of(lambda: recipe_from_wire(pb.FitRecipe(**recipe))) == path


def test_sets_are_named_strictly():
    """Two forms, and nothing that only looks like one."""
    assert set_name(LOADED) == SetName(model="tiny", name="small")
    assert set_name("replacements/small") == SetName(model=None, name="small")
    for text in (
        "",
        "small",
        "models/tiny",
        "models/../replacements/x",
        "models/t/replacements/",
        "a/b/c/d/e",
    ):
        assert field_of(lambda text=text: set_name(text)) == "name"


def test_unspecified_formats_are_refused():
    """A rendering must say as what."""
    assert field_of(lambda: format_from_wire(pb.EVALUATION_FORMAT_UNSPECIFIED)) == "format"
