"""What a removal of spurious features is predicted to cost, from its texts and its options alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trephine.app.jobs.costs import Cost, Sets, feature_counts, forward_bytes, frozen_numbers, tokens_of
from trephine.app.jobs.prices import block_seconds
from trephine.domain.dataset_circuits import Estimator
from trephine.domain.models import ModelInfo
from trephine.domain.spurious_checks import CheckedSpuriousRemoval
from trephine.domain.spurious_heads import TEXT, DecisionHead, ProbeHead, RewardHead, TokenHead
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.domain.spurious_sizes import (
    CONTROL_TEXTS,
    EXACT_TEXTS,
    FEWEST_EFFECT_TEXTS,
    FOLDS,
    MATRIX_BYTES,
    ONE_HELD_OUT_OF,
    ORIENTING_TEXTS,
    SHRINKAGES,
)
from trephine.domain.spurious_texts import FEWEST_JUDGED, LabelledText

_SWEEP = 3
"""A sweep costs about so many forward passes."""

_OVERHEAD_SECONDS, _HEAD_SECONDS = 3.0, 0.3
"""Of every removal: judges, what is done without a feature, intervals; of training a head."""
_SOLVE_SECONDS, _GRAM_SECONDS = 6e-11, 1e-10
"""Of a head without the attribute: of each shrinkage by the width's cube, of each text by its square."""
_SETTLED_ARMS = 3
"""Heads without the attribute beside those of the numbers of features: the final one, and two arms."""
_PACKED = 1.35
"""Of packs of short texts, by what long ones take a token."""
_FLOAT, _PACK_TOKENS = 4, 256
_MATRICES, _SWEPT = 4, 4
"""How often a matrix of texts by features lies in memory (as parts, joined, in float64), and how often the
features of a pack that is swept do (activations, what replaces them, adjoints, effects)."""
_EFFECT_SECONDS = 2e-9
"""Of a feature at a token that is swept: what it adds is read off and summed."""


def removal_cost(command: RemoveSpuriousFeatures, info: ModelInfo, sets: Sets) -> Cost:
    """Predict passes over the texts: effects with their sweeps, and what is pooled up to the head's site."""
    budget = command.budget
    splits = (command.training, command.validation, command.test, command.attribute_texts)
    lengths = [tokens_of(one.text) for split in splits for one in split]
    around = _template_tokens(command.decision)
    mean = sum(lengths) / len(lengths) + around
    longest = min(max(lengths) + around, info.context_length)
    features = sum(_counts(command, info, sets).values())
    wanted = min(budget.effect_texts, len(command.training))
    sample = max(FEWEST_EFFECT_TEXTS, min(wanted, MATRIX_BYTES // (_FLOAT * max(1, features))))
    rows = max(longest, _PACK_TOKENS)
    frozen = frozen_numbers(rows, info) * info.n_layers * _depth(command, info)
    swept = _FLOAT * rows * (_SWEPT * features + round(frozen))
    return Cost(
        tokens=int(mean * (_effects(command, sample) + _depth(command, info) * pooled_texts(command))),
        memory_bytes=_MATRICES * _FLOAT * features * sample
        + swept
        + forward_bytes(max(longest, 384), 2, info),
    )


def _counts(command: RemoveSpuriousFeatures, info: ModelInfo, sets: Sets) -> dict[int, int]:
    """Count the features that can reach the head, by layer."""
    counts = feature_counts(command.replacement, info, sets, command.layers or None)
    if not isinstance(command.decision, ProbeHead) or command.decision.layer is None:
        return counts
    return {layer: count for layer, count in counts.items() if layer <= command.decision.layer}


def removal_seconds(
    command: RemoveSpuriousFeatures, info: ModelInfo, checked: CheckedSpuriousRemoval
) -> float:
    """Predict the time of a removal whose texts were counted in tokens."""
    sample = min(command.budget.effect_texts, len(command.training))
    mean, depth = checked.tokens / checked.texts, _depth(command, info)
    swept = mean * depth * _effects(command, sample)
    heads = 2 + 2 * len(command.budget.counts) * command.refit + command.budget.random_sets
    return (
        _OVERHEAD_SECONDS
        + heads * _HEAD_SECONDS
        + _settling_seconds(command, info.d_model)
        + _PACKED * block_seconds(swept + mean * depth * pooled_texts(command), info)
        + swept * checked.features * _EFFECT_SECONDS
    )


def _settling_seconds(command: RemoveSpuriousFeatures, d_model: int) -> float:
    """Predict the training of heads without the attribute, again without every part of the texts."""
    if not (command.refit and command.erase):
        return 0.0
    texts, numbers = _counted(command), len(command.budget.counts) + 1
    twinned = texts.everything[1] >= FEWEST_JUDGED
    settled = twinned or any(one.pair is not None for one in command.training)
    heads = numbers * (1 + FOLDS * _by_turns(command, texts)) + _SETTLED_ARMS
    trainings = heads * (1 + FOLDS * settled)
    solving = (len(SHRINKAGES) if twinned else 1) * _SOLVE_SECONDS * d_model**3
    return trainings * (solving + _GRAM_SECONDS * sum(texts.everything) * d_model**2)


def _depth(command: RemoveSpuriousFeatures, info: ModelInfo) -> float:
    """Return the share of the blocks that lie below the head."""
    if isinstance(command.decision, ProbeHead) and command.decision.layer is not None:
        return (command.decision.layer + 1) / info.n_layers
    return 1.0


def _template_tokens(decision: DecisionHead) -> int:
    """Guess what a template of label tokens adds to every text."""
    around = decision.template.replace(TEXT, "") if isinstance(decision, TokenHead) else ""
    return tokens_of(around) if around else 0


def _effects(command: RemoveSpuriousFeatures, sample: int) -> int:
    """Count texts that pass through all of the model, sweeps included."""
    twins = round(sample * _edited(command, command.training))
    examples = min(command.budget.effect_texts, len(command.attribute_texts))
    integrated = command.estimator is Estimator.INTEGRATED_GRADIENTS
    sweep = _SWEEP * command.gradient_steps if integrated else _SWEEP
    return (sample + twins + 2 * examples) * (1 + sweep)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """How many there are, each number with that of its twins."""

    fitted: tuple[int, int]
    everything: tuple[int, int]
    """That the final head is trained on."""
    held_out: tuple[int, int]
    """At most as many as effects are measured on."""
    examples: int
    """Of the attribute, all of them."""

    @property
    def measured(self) -> int:
        """What an arm is measured on beside the test split."""
        return sum(self.held_out)


def pooled_texts(command: RemoveSpuriousFeatures) -> int:
    """Count texts that are pooled, each once for every pass; the most that the data may ask for.

    Counts of features that are not reached, since fewer are spurious, are counted as well.
    """
    texts, trains = _counted(command), command.refit
    test, control = len(command.test), min(len(command.test), CONTROL_TEXTS)
    telling = trains and command.erase
    final = sum(texts.everything) + texts.examples if telling else trains * texts.everything[0]
    fit = sum(texts.fitted) + texts.examples if telling else trains * texts.fitted[0]
    orienting = min(texts.examples or len(command.validation) + test, ORIENTING_TEXTS)
    opening = texts.fitted[0] + orienting + command.neutral_examples * fit
    exact = EXACT_TEXTS * (command.budget.exact + 1) if command.budget.exact else 0
    arms = trains * texts.everything[0] + 2 * (test + texts.measured) + 2 * control + telling * (fit + final)
    random = command.budget.random_sets * (control + texts.measured + trains * texts.everything[0])
    told = texts.examples or 2 * texts.everything[1] or texts.everything[0]
    baselines = told + 2 * trains * texts.everything[0] + test + texts.measured
    outcome = 2 * len(command.validation)
    return opening + exact + _choosing(command, texts, fit) + final + arms + random + baselines + outcome


def _choosing(command: RemoveSpuriousFeatures, texts: _Texts, fit: int) -> int:
    """Count what every number of features is compared on, and what heads are trained on for it.

    Where twins tell, heads are trained by turns, on vectors of all ambiguous texts and their twins. One that
    is given and stays has seen none of these, and is compared on as many as effects are measured on.
    """
    most = command.budget.effect_texts
    numbers = len(command.budget.counts) + 1
    held_out = texts.held_out[0]
    grouped = _by_groups(command, texts)
    if grouped or texts.examples:
        told = 0 if grouped else min(texts.examples, most)
        return numbers * (fit + held_out + told)
    if _by_turns(command, texts):
        return numbers * (sum(texts.everything) + held_out)
    apart = texts.held_out[1] if command.validation else 0
    decision = command.decision
    fixed = isinstance(decision, RewardHead) and decision.threshold is not None
    seen = isinstance(decision, ProbeHead | RewardHead) and not fixed
    paired = apart or (texts.held_out[1] if seen else texts.everything[1])
    return numbers * (fit + held_out + 2 * min(paired, most))


def _by_groups(command: RemoveSpuriousFeatures, texts: _Texts) -> bool:
    """True if numbers of features are compared by the worst group."""
    return _grouped(command.validation) or (not command.validation and _chooses(command, texts))


def _by_turns(command: RemoveSpuriousFeatures, texts: _Texts) -> bool:
    """True if they are compared by twins among the training texts, with heads trained without these."""
    told = _by_groups(command, texts) or texts.examples or (command.validation and texts.held_out[1])
    return bool(not told and command.refit and texts.everything[1])


def _counted(command: RemoveSpuriousFeatures) -> _Texts:
    budget, training, validation = command.budget, len(command.training), len(command.validation)
    out = 0 if validation else training // ONE_HELD_OUT_OF
    fitted = min(budget.fit_texts, training - out)
    held_out = min(validation or out, budget.effect_texts)
    edited = _edited(command, command.training)
    edited_apart = _edited(command, command.validation) if validation else edited
    return _Texts(
        fitted=(fitted, round(fitted * edited)),
        everything=(fitted + out, round((fitted + out) * edited)),
        held_out=(held_out, round(held_out * edited_apart)),
        examples=len(command.attribute_texts),
    )


def _edited(command: RemoveSpuriousFeatures, texts: Sequence[LabelledText]) -> float:
    """Return the share of texts that have a twin; all may have one by a lexicon."""
    if command.attribute_name or command.swaps:
        return 1.0
    return sum(one.twin is not None for one in texts) / len(texts)


def _grouped(texts: Sequence[LabelledText]) -> bool:
    """True if no group is empty."""
    return len(_groups(texts)) == 4


def _chooses(command: RemoveSpuriousFeatures, texts: _Texts) -> bool:
    """True if the worst group of what is held out is chosen by: where more is told, not by a few texts."""
    groups = _groups(command.training)
    twins = texts.everything[1] if command.refit else 0
    told = texts.examples or twins >= FEWEST_JUDGED
    return len(groups) == 4 and not (told and min(groups.values()) // ONE_HELD_OUT_OF < FEWEST_JUDGED)


def _groups(texts: Sequence[LabelledText]) -> Counter[tuple[str, str]]:
    return Counter((one.label, one.attribute) for one in texts if one.attribute is not None)
