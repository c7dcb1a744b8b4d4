"""A replacement set may be given by id, by any of its names, or as value; requests carry its id."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.fakes.grpc_server import FakeService
from trephine.client import Trephine, feature
from trephine.client.dataset_requests import discover_dataset
from trephine.client.errors import InvalidRequestError
from trephine.client.set_ids import set_id
from trephine.client.spurious_requests import remove_spurious
from trephine.v1 import circuit_service_pb2

LOADED = SimpleNamespace(name="models/tiny/replacements/small", set_id="small")
FORMS = ("small", "replacements/small", "models/tiny/replacements/small", LOADED)


@pytest.mark.parametrize("given", FORMS)
@pytest.mark.parametrize("model", ["tiny", "models/tiny"])
def test_every_form_of_a_set_is_its_id(given, model):
    """Also in each request that names one."""
    assert set_id(given, model) == set_id(given) == "small"
    assert discover_dataset(model, (), (), replacement=given, beside=(given, "heads")).replacement == "small"
    assert list(discover_dataset(model, (), (), beside=(given, "heads")).beside) == ["small", "heads"]
    assert remove_spurious(model, (), replacement=given).replacement == "small"
    assert feature(1, 2, replacement=given).target.replacement == "small"


@pytest.mark.parametrize("given", FORMS)
def test_a_discovery_takes_every_form(trephine: Trephine, fake: FakeService, given):
    """So do the model's features and the list of circuits."""
    model = trephine.model("tiny")
    model.start_discover("Mary", target=" a", replacement=given)
    (asked,) = [one for one in fake.requests if isinstance(one, circuit_service_pb2.DiscoverCircuitRequest)]
    assert asked.replacement == "small"
    assert (
        model.features(given).replacement == model.feature(1, 2, replacement=given).ref.replacement == "small"
    )


@pytest.mark.parametrize("given", ["", "neurons", "heads"])
def test_what_is_no_set_passes_as_it_is(given):
    """The model's own neurons, heads, error terms."""
    assert set_id(given, "tiny") == given


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("models/other/replacements/small", "another model"),
        ("./small", "load_replacements opens a folder"),
        ("models/tiny", "names no loaded set"),
        ("models/tiny/replacements/a/b", "names no loaded set"),
    ],
)
def test_a_name_that_cannot_be_meant_is_refused(given, says):
    """Of a set beside another model, of a folder, of something else."""
    with pytest.raises(InvalidRequestError, match=says) as caught:
        set_id(given, "tiny")
    assert caught.value.field == "replacement"
