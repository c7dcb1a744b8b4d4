"""Replacement sets through the client, sync and async, against the fake server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.grpc_server import FakeService
from tests.fakes.replacement_service import SET
from trephine.client import Trephine
from trephine.client.aio import connect as connect_async
from trephine.client.errors import (
    AdmissionFailedError,
    InvalidRequestError,
    LocalFileError,
    ReplacementNotFoundError,
)
from trephine.client.types import Dictionary, FeatureRef, LayerKind, ReplacementState
from trephine.v1 import common_pb2
from trephine.v1 import replacement_service_pb2 as pb


def test_a_set_is_loaded_and_its_features_addressed(fake: FakeService, trephine: Trephine):
    """Options reach the request; the set tells its admission and addresses features by its name."""
    loaded = trephine.model("tiny").load_replacements(
        "small", name="mine", format="saelens", memory_budget_bytes=100, accept_degraded=True
    )
    request = next(one for one in fake.requests if isinstance(one, pb.LoadReplacementSetRequest))
    assert (request.model, request.source, request.set_id) == ("models/tiny", "small", "mine")
    assert (request.format, request.memory_budget_bytes) == (pb.SET_FORMAT_SAELENS, 100)
    assert request.accept_degraded
    assert (loaded.name, loaded.set_id) == (SET, "small")
    assert loaded.info.layers[0].kind is LayerKind.TRANSCODER
    assert loaded.admission.layers[0].fvu == 0.31
    target = loaded.feature(0, 2).ablate().target
    assert target == FeatureRef(layer=0, index=2, replacement="small")
    assert str(target) == "small:0:2"


def test_what_is_loaded_and_what_could_be(fake: FakeService, trephine: Trephine):
    """Everything is listed, or what is beside one model; a loaded set is had by its name."""
    assert [one.state for one in trephine.replacements.list()] == [
        ReplacementState.LOADED,
        ReplacementState.AVAILABLE,
    ]
    model = trephine.model("tiny")
    assert [one.name for one in model.replacements()] == [SET]
    assert model.replacement("small").refresh().content_hash == "c" * 64
    with pytest.raises(ReplacementNotFoundError):
        model.replacement("none")
    model.replacement("small").unload()
    assert fake.requests[-1] == pb.UnloadReplacementSetRequest(name=SET)


def test_a_refused_set_is_a_typed_error(fake: FakeService, trephine: Trephine):
    """The figures are in the message."""
    fake.admission_error = "layer 3: FVU 1.31 is not below 1"
    with pytest.raises(AdmissionFailedError, match=r"FVU 1\.31"):
        trephine.model("tiny").load_replacements("small")


def test_folders_need_a_local_server(trephine: Trephine, tmp_path: Path):
    """A path of this machine means nothing to a named server; one that is not there is said so."""
    model = trephine.model("tiny")
    with pytest.raises(InvalidRequestError, match="named server"):
        model.load_replacements(tmp_path)
    with pytest.raises(ReplacementNotFoundError, match="no folder"):
        model.load_replacements(str(tmp_path / "none"))
    with pytest.raises(InvalidRequestError, match="saelens, circuit_tracer"):
        model.load_replacements("small", format="pickle")


def test_an_evaluation_is_asked_for_read_and_saved(fake: FakeService, trephine: Trephine, tmp_path: Path):
    """The text is uploaded; figures come typed; files appear by their suffix or all in a folder."""
    evaluation = (
        trephine.model("tiny")
        .replacement("small")
        .evaluate("held out", layers=[0], controls=["random"], perturbations=0)
    )
    request = next(one for one in fake.requests if isinstance(one, pb.EvaluateReplacementSetRequest))
    assert fake.uploaded[request.text] == b"held out"
    assert (list(request.layers), request.perturbations) == ([0], 0)
    assert list(request.controls) == [pb.DICTIONARY_RANDOM]
    assert not request.without_controls
    assert [claim.beats for claim in evaluation.info.claims] == [True, False]
    assert evaluation.info.layers[1].dictionary is Dictionary.RANDOM
    assert evaluation.json() == {"name": "evaluations/e1"}
    saved = evaluation.save(tmp_path / "out")
    assert {path.name for path in saved} == {"evaluation.html", "evaluation.json", "evaluation.csv"}
    assert evaluation.save(tmp_path / "one.csv") == (tmp_path / "one.csv",)
    with pytest.raises(InvalidRequestError):
        evaluation.save(tmp_path / "one.pdf")
    assert trephine.replacements.evaluation("e1").name == "evaluations/e1"


def test_leaving_controls_out_is_said(fake: FakeService, trephine: Trephine):
    """An empty choice is no default; a wrong one is refused here."""
    found = trephine.model("tiny").replacement("small")
    found.evaluate(controls=())
    assert next(
        one for one in fake.requests if isinstance(one, pb.EvaluateReplacementSetRequest)
    ).without_controls
    with pytest.raises(InvalidRequestError, match="frozen_decoder"):
        found.evaluate(controls=["best"])


def test_a_fit_takes_its_recipe_as_keywords(fake: FakeService, trephine: Trephine, tmp_path: Path):
    """What is not said stays unset; a corpus file is uploaded with its kind."""
    corpus = tmp_path / "text.jsonl"
    corpus.write_text('{"text": "a"}\n')
    report = trephine.model("tiny").fit_replacements(
        "mine", corpus=corpus, kind="sae", site="resid_post", k=4, warm_start=False, end_to_end_tokens=10
    )
    request = next(one for one in fake.requests if isinstance(one, pb.FitReplacementSetRequest))
    recipe = request.recipe
    assert fake.uploaded[request.corpus] == corpus.read_bytes()
    assert (request.set_id, request.corpus_name) == ("mine", "text.jsonl")
    assert (recipe.kind, recipe.site) == (pb.LAYER_KIND_SAE, common_pb2.SITE_KIND_RESID_POST)
    assert (recipe.k, recipe.warm_start, recipe.end_to_end.tokens) == (4, False, 10)
    assert not recipe.HasField("d_sae")
    assert report.gap is not None
    assert (report.gap.ce_local_control, report.gap.closed) == (3.45, 0.6)
    assert trephine.replacements.fit("f1").replacement_set == "replacements/mine"
    with pytest.raises(LocalFileError):
        trephine.model("tiny").fit_replacements("mine", corpus=tmp_path / "none.txt")


def test_a_prediction_fits_nothing(fake: FakeService, trephine: Trephine, tmp_path: Path):
    """`validate_only` is set, and the prediction is told apart from a report; a corpus is sent with it."""
    predicted = trephine.model("tiny").predict_fit(d_sae=64).predicted
    assert predicted is not None
    assert predicted.seconds == 60
    request = fake.requests[-1]
    assert (request.validate_only, request.recipe.d_sae, request.corpus) == (True, 64, "")
    assert request.set_id == ""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a b c")
    trephine.model("tiny").predict_fit("mine", corpus=corpus)
    request = fake.requests[-1]
    assert (request.validate_only, request.set_id) == (True, "mine")
    assert fake.uploaded[request.corpus] == b"a b c"


def test_large_uploads_come_in_pieces(fake: FakeService, trephine: Trephine, tmp_path: Path):
    """A file of more than one message arrives whole, under its digest."""
    path = tmp_path / "large.txt"
    path.write_bytes(bytes(range(256)) * 10_000)
    name = trephine.artifacts.upload(path, media_type="text/plain")
    assert fake.uploaded[name] == path.read_bytes()
    assert trephine.artifacts.read(name) == path.read_bytes()
    with pytest.raises(LocalFileError):
        trephine.artifacts.upload(tmp_path, media_type="text/plain")


async def test_the_same_awaited(fake: FakeService, address: str, tmp_path: Path):
    """Load, list, evaluate, save and fit on an event loop."""
    async with await connect_async(address, token="secret") as trephine:
        model = await trephine.model("tiny")
        loaded = await model.load_replacements("small")
        assert [one.set_id for one in await model.replacements()] == ["small"]
        evaluation = await loaded.evaluate("held out", control_text="other")
        saved = await evaluation.save(tmp_path)
        assert len(saved) == 3
        assert b"other" in fake.uploaded.values()
        corpus = tmp_path / "corpus.txt"
        corpus.write_text("a b c")
        report = await model.fit_replacements("mine", corpus=corpus)
        assert report.name == "fits/f1"
        assert (await model.predict_fit("mine", corpus=corpus)).predicted is not None
        assert (await loaded.predict_evaluate("held out", max_contexts=4)).seconds == 60
        await (await model.replacement("small")).unload()
