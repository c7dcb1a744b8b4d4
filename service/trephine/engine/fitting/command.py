"""FitReplacementSet and PredictFit, as the engine carries them out. Nothing here trains or uses autograd."""

from __future__ import annotations

from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import torch

from trephine.domain.commands import Progress
from trephine.domain.errors import AlreadyExistsError, FitFailedError, UnsupportedOptionError
from trephine.domain.fitting import FitRecipe, FitReplacementSet, FitReport, PredictedFit, PredictFit
from trephine.domain.replacements import LayerKind
from trephine.engine.fitting.files import write_text
from trephine.engine.fitting.prediction import predict_fit
from trephine.engine.fitting.process import is_free, run_process
from trephine.engine.fitting.request import (
    FitRequest,
    Workspace,
    read_report,
    read_request,
    request_text,
    same_work,
)
from trephine.engine.fitting.sizes import fitted_layers, groups
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session


def fit_replacement_set(
    session: Session, command: FitReplacementSet
) -> Generator[Progress | None, None, FitReport]:
    """Fit a set in a process of its own; go on from what an earlier one has checkpointed.

    Raises:
        AlreadyExistsError: If the set's folder is not empty, or the checkpoints are another fit's.
        UnsupportedOptionError: If SAELens is needed and not installed, or an adapter was merged in memory.
        BrokenCorpusError: If there is too little text to fit on, or none.
        FitFailedError: If the process dies; what it has checkpointed is kept.
        TrephineError: If the recipe does not fit the model, or the fit the memory.
    """
    hosted, recipe = session.require_model(), command.recipe
    groups(hosted, recipe, fitted_layers(hosted, recipe))
    _require_folder_model(hosted)
    require_trainer(recipe)
    space = Workspace(work=Path(command.checkpoints))
    _prepare(space, _request(hosted, command))
    yield None
    yield from run_process(space)
    report = read_report(space.report)
    if report is None:
        raise FitFailedError("the fitting process said that it was done and left no report; start it again")
    return report


def predict(session: Session, command: PredictFit) -> Generator[Progress | None, None, PredictedFit]:
    """Predict a fit without starting it.

    Raises:
        UnsupportedOptionError: If SAELens is needed and not installed.
        TrephineError: If the recipe does not fit the model, or the fit the memory.
    """
    hosted = session.require_model()
    require_trainer(command.recipe)
    _require_folder_model(hosted)
    return (yield from predict_fit(hosted, command.recipe, own_samples=command.own_samples))


def require_trainer(recipe: FitRecipe) -> None:
    """Refuse a fit that needs a trainer that is not there.

    Raises:
        UnsupportedOptionError: If SAELens is needed and not installed.
    """
    if recipe.kind is not LayerKind.CROSS_LAYER_TRANSCODER and find_spec("sae_lens") is None:
        raise UnsupportedOptionError(
            "SAEs and transcoders are trained by SAELens, which is not installed here: pip install "
            "'trephine[service,fit]'. A cross-layer transcoder needs nothing more",
            field="recipe.kind",
        )


def _require_folder_model(hosted: HostedModel) -> None:
    if hosted.info.weight_hash != hosted.info.parent_hash:
        raise UnsupportedOptionError(
            "this model has an adapter merged in memory, and the fitting process reads weights from disk; "
            "save the merged model as a checkpoint and load that",
            field="model",
        )


def _request(hosted: HostedModel, command: FitReplacementSet) -> FitRequest:
    corpus = None if command.corpus is None else str(Path(command.corpus).resolve())
    return FitRequest(
        recipe=command.recipe,
        corpus=corpus,
        corpus_name=command.corpus_name,
        folder=str(Path(command.folder).resolve()),
        checkpoints=str(Path(command.checkpoints).resolve()),
        model_folder=str(hosted.folder.resolve()),
        model_name=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
        dtype=hosted.info.dtype,
        device=hosted.info.device,
        threads=torch.get_num_threads(),
    )


def _prepare(space: Workspace, request: FitRequest) -> None:
    """Leave the request where the process finds it, if both folders are free or this fit's."""
    kept = read_request(space.request) if space.request.exists() else None
    if not is_free(Path(request.folder)) or not (same_work(kept, request) if kept else is_free(space.work)):
        raise AlreadyExistsError(
            "the set's folder is not empty, or the checkpoints are not this fit's; choose empty folders",
            field="folder",
        )
    space.report.unlink(missing_ok=True)
    write_text(space.request, request_text(request))


HANDLERS: dict[type, Handler] = {FitReplacementSet: fit_replacement_set, PredictFit: predict}
