"""What an evaluation of an edit is predicted to take, from its sets, its controls and the edit's layers."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.app.jobs.costs import Cost, forward_bytes, tokens_of
from trephine.app.jobs.prices import block_seconds, logit_seconds, pass_seconds
from trephine.domain.edit_evaluation import (
    FEWEST_UNITS,
    EvaluateEdit,
    EvaluationSet,
    FeatureControls,
    SetRole,
)
from trephine.domain.edit_kinds import is_steering
from trephine.domain.interventions import FeatureTarget, Intervention
from trephine.domain.models import ModelInfo

_RETAIN_TOKENS = 1024
_PROMPT_ARMS, _STRENGTH_ARMS = 4, 24
"""Prompts tried, and strengths of the edit, on as many units as controls are run on."""
_BATCH_TOKENS = 384
_OVERHEAD_SECONDS = 1.0


def edit_evaluation_cost(command: EvaluateEdit, info: ModelInfo) -> Cost:
    """Count tokens: every set plain, edited and as no-op, and a part of every set under all controls.

    What is below the edit is run once for all arms of a text.
    """
    controls = command.controls
    whole = sum(map(_tokens, command.sets))
    targets = [one for one in command.sets if one.role is SetRole.TARGET]
    retained = [_retained(one, controls) for one in command.sets if one.role is SetRole.RETAIN]
    compared = sum(_tokens(one) for one in command.sets if one.texts)
    if not retained:
        whole, compared = whole + _RETAIN_TOKENS, compared + _RETAIN_TOKENS
        retained.append(_cut_part(_RETAIN_TOKENS, controls))
    part = sum(_part(one, controls.tokens) for one in targets)
    arms = 1 + controls.sets + controls.wrong_layer_sets
    prompted = part * (_PROMPT_ARMS + _STRENGTH_ARMS) + 2 * whole if _is_prompted(command) else 0
    longest = min(max(map(_longest, command.sets)), info.context_length)
    rows = max(1, _BATCH_TOKENS // longest)
    above = 1 - _lowest(command.edit.interventions) / info.n_layers
    controlled = arms * (part + sum(retained))
    plain = whole + _RETAIN_TOKENS + part + sum(retained) + prompted
    share = compared / whole  # items are compared at the answer alone
    return Cost(
        tokens=3 * whole + _RETAIN_TOKENS + controlled + prompted,
        memory_bytes=forward_bytes(longest, 2 * rows, info) + 2 * _RETAIN_TOKENS * info.d_vocab * 4,
        seconds=_OVERHEAD_SECONDS
        + pass_seconds(_passes(command, arms, part + sum(retained)), info)
        + block_seconds(plain + above * (2 * whole + controlled), info)
        + logit_seconds(3 * compared + arms * _of_texts(command, retained) + share * prompted, info),
    )


def _passes(command: EvaluateEdit, arms: int, controlled: int) -> int:
    """Count passes: two of every text and item; of those that controls are run on, as many as hold them."""
    units, tokens = sum(map(len, command.sets)), sum(map(_tokens, command.sets))
    return 2 * units + controlled * units // tokens + arms * controlled // _BATCH_TOKENS


def _is_prompted(command: EvaluateEdit) -> bool:
    """True if prompts are tried: for an edit that only removes, if they were asked for."""
    options = command.prompting
    if options is None:
        return False
    return options.always or bool(options.prompts) or is_steering(command.edit.interventions)


def _lowest(interventions: Sequence[Intervention]) -> int:
    """Return the lowest layer that an edit changes."""
    targets = (one.target for one in interventions)
    layers = [one.feature.layer if isinstance(one, FeatureTarget) else one.site.layer for one in targets]
    return min(layers, default=0)


def _of_texts(command: EvaluateEdit, retained: Sequence[int]) -> int:
    """Count tokens whose distributions every control is compared by: items are compared at the answer."""
    controls = command.controls
    texts = [one for one in command.sets if one.texts and one.role is SetRole.TARGET]
    kept = [one for one in command.sets if one.role is SetRole.RETAIN]
    cut = [count for one, count in zip(kept, retained, strict=False) if one.texts] if kept else list(retained)
    return sum(_part(one, controls.tokens) for one in texts) + sum(cut)


def _part(one: EvaluationSet, tokens: int) -> int:
    """Tokens of a set that every control is run on: about as many as asked for, of 8 units at least."""
    return min(_tokens(one), max(tokens, _tokens(one) // len(one) * FEWEST_UNITS))


def _retained(one: EvaluationSet, controls: FeatureControls) -> int:
    """Tokens of a retain set that every control is run on: none, if none is asked for."""
    if one.texts:
        return _cut_part(_tokens(one), controls)
    return _part(one, controls.of_retain) if controls.of_retain else 0


def _cut_part(tokens: int, controls: FeatureControls) -> int:
    """Tokens that every control is run on of texts that are cut, of so many tokens uncut."""
    if not controls.of_retain:
        return 0
    return min(tokens, max(controls.of_retain, FEWEST_UNITS * controls.retain_cut))


def _tokens(one: EvaluationSet) -> int:
    items = sum(tokens_of(item.prompt) + sum(map(tokens_of, item.choices)) for item in one.items)
    return sum(map(tokens_of, one.texts)) + items


def _longest(one: EvaluationSet) -> int:
    texts = max(map(tokens_of, one.texts), default=1)
    items = max((tokens_of(item.prompt) + max(map(tokens_of, item.choices)) for item in one.items), default=1)
    return max(texts, items)
