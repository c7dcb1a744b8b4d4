"""How good is a loaded set? Its figures on held-out text, beside controls of the same size and L0."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from trephine.domain.commands import Progress
from trephine.domain.errors import BrokenCorpusError, InvalidRequestError
from trephine.domain.replacements import (
    Dictionary,
    EvaluateReplacementSet,
    LayerKind,
    ReplacementEvaluation,
    ReplacementSetInfo,
)
from trephine.engine.admission.controls_fit import FIT_TOKENS, fitted_controls
from trephine.engine.admission.measurement import LAYER_CONTEXTS, Measured, Measurement, survey
from trephine.engine.admission.perturbation import by_depth, perturb
from trephine.engine.admission.splice import LayerSource, loaded_source
from trephine.engine.admission.verdicts import Verdicts
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.contexts import (
    PROBE,
    beginning,
    contexts_of,
    n_tokens,
    probe_text,
    text_label,
)
from trephine.engine.replacements.positions import ALL_LATER, Scope, TrainedTokens
from trephine.engine.replacements.sets import require_set
from trephine.engine.runs.retain import BUILT_IN, built_in_text

_LEAST_CONTEXTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """Contexts that are scored, and those that controls are fitted on."""

    scored: tuple[tuple[int, ...], ...]
    fitted: tuple[tuple[int, ...], ...]
    label: str
    fitted_on: str


def evaluate_replacement_set(
    session: Session, command: EvaluateReplacementSet
) -> Generator[Progress | None, None, ReplacementEvaluation]:
    """Measure a loaded set: layer by layer, all layers spliced, and under perturbation.

    Raises:
        ReplacementNotFoundError: If no such set is loaded.
        LayerOutOfRangeError: If it does not cover a layer that is asked for.
        BrokenCorpusError: If the text has fewer than two contexts.
        OverBudgetError: If the controls do not fit into memory.
    """
    started, hosted = time.perf_counter(), session.require_model().pinned()
    info = require_set(hosted, command.name).info
    if Dictionary.GIVEN in command.controls:
        raise InvalidRequestError("the set is no control of itself", field="controls")
    alone = [loaded.layer for loaded in loaded_source(hosted, command.name, command.layers).infos]
    given = loaded_source(hosted, command.name, require_set(hosted, command.name).covered)
    trained_on = require_set(hosted, command.name).trained_on
    scope = trained_on.scope(hosted)
    texts = _texts(hosted, command, info, scope)
    sources = {Dictionary.GIVEN: given}
    sources |= yield from fitted_controls(
        hosted, given, texts.fitted, command.controls, seed=command.seed, scope=scope
    )
    measured = yield from measure(hosted, sources, texts.scored, alone=alone, scope=scope)
    pairs = yield from perturb(
        hosted, sources, texts.scored, count=command.perturbations, seed=command.seed, scope=scope
    )
    verdicts = Verdicts(measured, given, samples=command.bootstrap, seed=command.seed)
    layers = verdicts.layers(command.controls, alone or [each.layer for each in given.infos])
    claims = (
        *verdicts.claims(command.controls, alone or [each.layer for each in given.infos]),
        *verdicts.of_perturbations(command.controls, pairs),
    )
    return ReplacementEvaluation(
        replacement=require_set(hosted, command.name).info,
        layers=layers,
        spliced=verdicts.spliced(command.controls),
        depths=by_depth(pairs, samples=command.bootstrap, seed=command.seed),
        claims=claims,
        text=texts.label,
        tokens=n_tokens(texts.scored),
        contexts=len(texts.scored),
        seed=command.seed,
        caveats=(
            *_caveats(info, command, texts, trained_on),
            *verdicts.sizes(command.controls),
            *verdicts.caveats(claims),
        ),
        seconds=time.perf_counter() - started,
    )


def measure(
    hosted: HostedModel,
    sources: Mapping[Dictionary, LayerSource],
    scored: Sequence[tuple[int, ...]],
    *,
    alone: Sequence[int],
    scope: Scope = ALL_LATER,
) -> Generator[Progress | None, None, Measured]:
    """Run every context with the set and its controls; `alone` empty splices every layer alone too."""
    measured, given = Measured(), sources[Dictionary.GIVEN]
    layers = list(alone) or [info.layer for info in given.infos]
    yield from survey(hosted, scored, given.sites_out, measured, scope)
    measurement = Measurement(hosted=hosted, sources=sources, alone=layers, measured=measured, scope=scope)
    for number, ids in enumerate(scored):
        for _ in measurement.context(number, ids):
            yield None
        yield Progress(stage="measure", done=number + 1, total=len(scored))
    return measured


def _texts(
    hosted: HostedModel, command: EvaluateReplacementSet, info: ReplacementSetInfo, scope: Scope
) -> _Texts:
    """Split the text: its beginning is scored, what follows (with the probe text) fits the controls."""
    name, text = (command.text_name, command.text) if command.text else (BUILT_IN, built_in_text())
    begin = beginning(hosted, bool(info.admission.begins_with))
    contexts = contexts_of(hosted, text, size=command.context_tokens, begin=begin)
    # The set was trained on none of what the others hold.
    contexts = [ids for ids in contexts if scope.predicts(ids)]
    scored = contexts[: command.max_contexts]
    if len(scored) < _LEAST_CONTEXTS:
        raise BrokenCorpusError(
            f"{name or 'the text'} holds {len(scored)} contexts of {command.context_tokens} tokens; "
            f"intervals need at least {_LEAST_CONTEXTS}: give a longer text or ask for shorter contexts",
            field="text",
        )
    if command.control_text:
        rest = contexts_of(hosted, command.control_text, size=command.context_tokens, begin=begin)
        said = text_label("control text", command.control_text)
    else:
        probe = contexts_of(hosted, probe_text(), size=command.context_tokens, begin=begin)
        rest, said = [*contexts[len(scored) :], *probe], f"the rest of {name} and {PROBE}"
    return _Texts(
        scored=tuple(scored),
        fitted=tuple(rest[: max(1, FIT_TOKENS // command.context_tokens)]),
        label=text_label(name, text),
        fitted_on=said,
    )


def _caveats(
    info: ReplacementSetInfo, command: EvaluateReplacementSet, texts: _Texts, trained_on: TrainedTokens
) -> tuple[str, ...]:
    said = ["position 0 of every context is left out, and keeps its true activation when layers are spliced"]
    if not trained_on.everything:
        said.append(f"{trained_on.described()}; they keep their plain activations when layers are spliced")
    if len(texts.scored) > LAYER_CONTEXTS:
        said.append(
            f"CE, KL and top-1 of single layers are measured on the first {LAYER_CONTEXTS} of "
            f"{len(texts.scored)} contexts; everything else on all"
        )
    if command.controls:
        said.append(f"controls are fitted on {n_tokens(texts.fitted)} tokens: {texts.fitted_on}")
    if any(layer.kind is LayerKind.CROSS_LAYER_TRANSCODER for layer in info.layers):
        said.append(
            "a cross-layer transcoder's layer is scored on the sum of all decoders that write it; its "
            "controls are transcoders of one layer, of the same d_sae and L0"
        )
    if info.degraded:
        said.append(f"the set is degraded: {info.admission.why}")
    return tuple(said)


HANDLERS: dict[type, Handler] = {EvaluateReplacementSet: evaluate_replacement_set}
