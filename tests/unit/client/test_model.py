from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.grpc_server import FakeService
from trephine.client import Row, Trephine, feature
from trephine.client.aio import connect as connect_async
from trephine.client.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    NothingToShipError,
    ReplacementNotFoundError,
)
from trephine.client.selection import Selection
from trephine.client.sources import REPLACEMENT_SET, source_of
from trephine.client.types import FeatureValue, Proposal, Version


def test_a_loaded_model_is_used_as_it_is(fake: FakeService, trephine: Trephine):
    """Loading what is loaded with the same type costs no operation; another type does."""
    trephine.load_model("tiny")
    assert fake.operations == {}
    trephine.load_model("tiny", dtype="bfloat16")
    assert len(fake.operations) == 1


def test_a_revision_is_asked_of_the_server(fake: FakeService, trephine: Trephine):
    """A model that is loaded may be another revision: the server decides, which knows."""
    trephine.load_model("tiny", revision="v1.0")
    assert (fake.requests[-1].source, fake.requests[-1].revision) == ("tiny", "v1.0")
    trephine.start_load("tiny")
    assert not fake.requests[-1].HasField("revision")


def test_folders_are_told_from_names(tmp_path):
    """A slash, a dot or a tilde in front makes a folder; it must exist. A path object always is one."""
    assert source_of("smollm2").folder is None
    assert source_of("exports/edited").source == "exports/edited"
    assert source_of(tmp_path).source == str(tmp_path.resolve())
    with pytest.raises(ModelNotFoundError):
        source_of("./nothing/here")


def test_names_of_sets_are_told_from_folders_in_the_same_way(tmp_path, monkeypatch):
    """By the same lines; only what is said of a missing one, and what a resource name begins with, differ."""
    (tmp_path / "replacements" / "small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for written in ("small", "replacements/small"):
        found = source_of(written, REPLACEMENT_SET)
        assert (found.source, found.folder) == ("small", None)
    folder = tmp_path.resolve() / "replacements" / "small"
    assert source_of("./replacements/small", REPLACEMENT_SET).folder == folder
    for missing in ("exports/edited", "models/tiny/replacements/small"):
        with pytest.raises(ReplacementNotFoundError, match="has no slash in it"):
            source_of(missing, REPLACEMENT_SET)


def test_a_named_server_takes_no_folders_of_this_machine(trephine: Trephine, tmp_path):
    """Paths never cross the wire to a server elsewhere."""
    with pytest.raises(InvalidRequestError, match="by name"):
        trephine.start_load(tmp_path)


def test_lists_follow_every_page(trephine: Trephine):
    """A list is complete however many pages it came in."""
    assert [model.name for model in trephine.models.list()] == ["models/tiny", "models/two"]


def test_rows_stream_and_end_with_their_completions(fake: FakeService, trephine: Trephine):
    """Tokens of all rows arrive in order of coming; `result` has one completion a row."""
    stream = trephine.model("tiny").side_by_side("Mary", [feature(1, 2).set(0.0)], max_new_tokens=2)
    assert [(event.row, event.step) for event in stream] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert len(stream.result().completions) == 2
    request = fake.requests[-1]
    assert [len(row.interventions) for row in request.rows] == [0, 1]
    assert request.rows[1].interventions[0].operation.WhichOneof("operation") == "set"


def test_leaving_a_generation_ends_it_on_the_server(fake: FakeService, trephine: Trephine):
    """The end of the `with` block cancels the call."""
    fake.generate_forever = True
    with trephine.model("tiny").generate([Row("Mary")]) as stream:
        next(iter(stream))
    assert fake.generation_ended.wait(60)


async def test_leaving_an_async_generation_ends_it_too(fake: FakeService, address: str):
    """The same with `async with`."""
    fake.generate_forever = True
    async with await connect_async(address) as trephine:
        model = await trephine.model("tiny")
        async with await _stream(model) as stream:
            async for _ in stream:
                break
        assert fake.generation_ended.wait(60)


async def _stream(model):
    return model.generate("Mary")


def test_an_ablation_without_controls_says_so(fake: FakeService, trephine: Trephine):
    """`controls=0` is an explicit wish, never a silent default."""
    model = trephine.model("tiny")
    model.ablate("Mary", [feature(1, 2).ablate()], target=" Mary", controls=0)
    assert fake.requests[-1].without_controls
    model.ablate("Mary", [feature(1, 2).ablate()], target=" Mary")
    assert (fake.requests[-1].controls.sets, fake.requests[-1].without_controls) == (99, False)


def test_the_issue_sample_carries_model_and_evidence_into_the_edit(fake: FakeService, trephine: Trephine):
    """A draft knows its model, its reason and its circuit, so that `create` needs no more."""
    circuit = trephine.load_model("tiny").discover("Mary", target=" Mary", against=" John")
    edit = trephine.edits.create("no-mary", circuit.shippable().ablate())
    request = fake.requests[-1]
    assert (request.model, list(request.evidence), request.reason) == (
        "models/tiny",
        ["circuits/c1"],
        "one is enough",
    )
    assert edit.interventions == (feature(1, 7).ablate(),)


def test_bare_interventions_get_an_author_and_an_honest_reason(fake: FakeService, trephine: Trephine):
    """The service asks for both; what nobody said is not made up."""
    trephine.edits.create("cut", [feature(1, 7).ablate()], model="tiny")
    assert fake.requests[-1].reason == "none given"
    assert fake.requests[-1].author


def test_an_edit_without_a_model_is_refused(trephine: Trephine):
    """Bare interventions do not say which weights they are for."""
    with pytest.raises(InvalidRequestError, match="model="):
        trephine.edits.create("no-mary", [feature(1, 7).ablate()])


def test_nothing_to_ship_is_an_error_not_an_empty_edit():
    """If no prefix meets both bounds, drafting raises with the reason."""
    version = Version(model="models/tiny", weight_hash="")
    proposal = Proposal(
        baseline=1.0,
        curve=(),
        ranking=(),
        chosen=0,
        why="too much damage",
        retain_tokens=0,
        retain_text="",
        version=version,
    )
    with pytest.raises(NothingToShipError, match="too much damage"):
        Selection(proposal=proposal, model="models/tiny").ablate()


def test_notebook_views_escape_what_they_show(fake: FakeService, trephine: Trephine):
    """Labels and prompts never become markup."""
    fake.prompt = "</script><img src=x onerror=alert(1)>"
    page = trephine.model("tiny").discover("Mary", target=" Mary")._repr_html_()
    assert "<img" not in page
    assert "&lt;img" in page


async def test_awaited_notebook_views_ask_for_nothing(fake: FakeService, address: str):
    """A notebook does not await: it shows what came with the circuit, escaped."""
    fake.prompt = "</script><img src=x onerror=alert(1)>"
    async with await connect_async(address) as trephine:
        circuit = await (await trephine.model("tiny")).discover("Mary", target=" Mary")
        asked = len(fake.requests)
        page = circuit._repr_html_()
    assert page is not None
    assert circuit.name in page
    assert "&lt;img" in page
    assert "<img" not in page
    assert "<table>" not in page
    assert len(fake.requests) == asked


@pytest.mark.parametrize(
    "options",
    [{"max_feature_nodes": 2**40}, {"target": FeatureValue(layer=1, index=2**40)}, {"layers": [-(2**40)]}],
)
def test_a_number_that_fits_no_field_is_refused_by_a_typed_error(trephine: Trephine, options: dict[str, Any]):
    """Before it is sent; it says which number."""
    with pytest.raises(InvalidRequestError, match=r"does not fit into its field.*1099511627776"):
        trephine.load_model("tiny").discover("x", **{"target": " a", **options})
