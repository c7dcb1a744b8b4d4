from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.unit.engine.fitting.fits import SMALL, kept, request
from trephine.domain.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    LayerOutOfRangeError,
    OverBudgetError,
    UnsupportedOptionError,
)
from trephine.domain.fitting import EndToEnd, FitRecipe, FitReplacementSet, PredictFit
from trephine.domain.replacements import LayerKind
from trephine.domain.sites import SiteKind
from trephine.engine.fitting import command, prediction, sizes
from trephine.engine.fitting.request import FitRequest, same_work
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session


@pytest.fixture(scope="module")
def session() -> Session:
    """An engine that hosts a tiny Llama."""
    return Session(hosted=tiny_hosted("llama", n_layers=2))


def asked(recipe: FitRecipe, folder: Path) -> FitReplacementSet:
    """Ask for a fit on the model's own samples."""
    return FitReplacementSet(
        recipe=recipe,
        corpus=None,
        corpus_name="own samples",
        folder=str(folder),
        checkpoints=str(kept(folder).work),
    )


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "layer": ({"layers": (0, 2)}, LayerOutOfRangeError, "layer 2"),
    "some layers of a CLT": ({"layers": (1,)}, UnsupportedOptionError, "all layers"),
    "contexts": ({"context_tokens": 4096}, InvalidRequestError, "context"),
    "no contexts": ({"context_tokens": 4}, InvalidRequestError, "context"),
    "site of a transcoder": ({"site": SiteKind.RESID_PRE}, InvalidRequestError, "resid_pre"),
    "site of an SAE": ({"kind": LayerKind.SAE, "site": SiteKind.EMBED}, InvalidRequestError, "embed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_the_model_is_refused(name: str, session: Session, tmp_path: Path):
    """Before a process starts or a file is written, with a typed error that names the trouble."""
    changes, error, said = REFUSED[name]
    folder = tmp_path / "set"
    with pytest.raises(error, match=said):
        finish(command.fit_replacement_set(session, asked(replace(SMALL, **changes), folder)))
    with pytest.raises(error, match=said):
        finish(command.predict(session, PredictFit(recipe=replace(SMALL, **changes))))
    assert not folder.exists()


def test_parallel_blocks_have_no_middle(tmp_path: Path):
    """A site that the model lacks is refused by name."""
    session = Session(hosted=tiny_hosted("gpt_neox", n_layers=2))
    recipe = replace(SMALL, kind=LayerKind.SAE, site=SiteKind.RESID_MID)
    with pytest.raises(UnsupportedOptionError, match="resid_mid"):
        finish(command.fit_replacement_set(session, asked(recipe, tmp_path / "set")))


def test_without_saelens_the_extra_is_named(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """SAEs and transcoders need it; a cross-layer transcoder does not."""
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    recipe = replace(SMALL, kind=LayerKind.TRANSCODER)
    with pytest.raises(UnsupportedOptionError, match=r"trephine\[service,fit\]"):
        finish(command.fit_replacement_set(session, asked(recipe, tmp_path / "set")))
    command.require_trainer(SMALL)


def test_a_folder_that_holds_something_else_is_left_alone(session: Session, tmp_path: Path):
    """Neither other files nor another fit's checkpoints are taken over."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(AlreadyExistsError):
        finish(command.fit_replacement_set(session, asked(SMALL, tmp_path)))
    other = tmp_path / "other"
    request(other, session.require_model(), None, seed=5)
    with pytest.raises(AlreadyExistsError):
        finish(command.fit_replacement_set(session, asked(SMALL, other)))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_adapter_in_memory_is_refused(session: Session, tmp_path: Path):
    """The process reads weights from disk, where the merged ones are not."""
    hosted = tiny_hosted("llama", n_layers=2)
    hosted.info = replace(hosted.info, parent_hash="0" * 64)
    with pytest.raises(UnsupportedOptionError, match="adapter"):
        finish(command.fit_replacement_set(Session(hosted=hosted), asked(SMALL, tmp_path / "set")))


def test_only_the_same_work_is_taken_up(tmp_path: Path):
    """Recipe, text and weights make a fit; where the corpus lies does not."""
    hosted = tiny_hosted("llama", n_layers=2)
    made: FitRequest = request(tmp_path / "a", hosted, None)
    assert same_work(made, replace(made, corpus="/elsewhere", threads=8))
    assert not same_work(made, replace(made, weight_hash="1" * 64))
    assert not same_work(made, replace(made, recipe=replace(made.recipe, lr=0.5)))


def test_a_prediction_grows_with_the_work(session: Session, monkeypatch: pytest.MonkeyPatch):
    """More tokens, phases and own text take longer; more features take more memory and disk."""
    monkeypatch.setattr(prediction, "_seconds", lambda work: 1e-3)

    def predicted(own: bool = False, **changes: Any) -> Any:
        recipe = replace(SMALL, **({"tokens": 10_000_000} | changes))
        return finish(command.predict(session, PredictFit(recipe=recipe, own_samples=own)))

    base, wide = predicted(), predicted(d_sae=4096)
    phase = predicted(end_to_end=EndToEnd(tokens=10_000_000))
    assert base.seconds > predicted(tokens=5_000_000).seconds
    assert wide.memory_bytes > base.memory_bytes
    assert wide.disk_bytes > 10 * base.disk_bytes
    assert phase.seconds > base.seconds
    assert phase.disk_bytes > base.disk_bytes
    assert predicted(own=True).seconds > base.seconds


def test_layers_are_grouped_by_memory(session: Session, monkeypatch: pytest.MonkeyPatch):
    """What does not fit at once is trained in turn; what must be trained together is refused."""
    hosted = session.require_model()
    recipe = replace(SMALL, kind=LayerKind.TRANSCODER)
    one = sizes.layer_bytes(hosted, recipe, 0, 1)
    monkeypatch.setattr(sizes, "free_bytes", lambda hosted: 3 * one)
    assert sizes.groups(hosted, recipe, [0, 1]) == [[0], [1]]
    with pytest.raises(OverBudgetError):
        sizes.groups(hosted, replace(recipe, end_to_end=EndToEnd(tokens=1)), [0, 1])
    monkeypatch.setattr(sizes, "free_bytes", lambda hosted: 5 * one)
    assert sizes.groups(hosted, recipe, [0, 1]) == [[0, 1]]
    monkeypatch.setattr(sizes, "free_bytes", lambda hosted: one)
    with pytest.raises(OverBudgetError):
        sizes.groups(hosted, recipe, [0, 1])
