"""All attacks on one export, from its request to figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.removal import AttackFigure, Removal, are_enough, judge_removal
from trephine.engine.attack.answers import Token, load
from trephine.engine.attack.behaviour import Behaviour, answers, behaviour, choose
from trephine.engine.attack.recovery import recovery
from trephine.engine.attack.relearning import Lessons, benign, few_shot
from trephine.engine.attack.request import AttackRequest
from trephine.engine.runs.divergence import kl_divergence

Say = Callable[[Progress], None]


def attack(request: AttackRequest, say: Say) -> Removal:
    """Load both folders, choose the tokens, attack, judge."""
    edited, twin = (load(folder, request.attention) for folder in (request.exported, request.parent))
    say(Progress(stage="attack: contexts", done=0, total=1))
    with torch.no_grad():
        before, after = ([answers(model, window) for window in request.windows] for model in (twin, edited))
    effects = [kl_divergence(o.logits, e.logits) for o, e in zip(before, after, strict=True)]
    windows = [n for n, mask in enumerate(request.firing) if any(mask[1:])]
    attacked = choose(effects, request.firing, windows, request.most_tokens)
    # Windows are alternately for training and for tests, so that both hold what acts most.
    training, testing = windows[::2], windows[1::2]
    taught, tested = (
        choose(effects, request.firing, part, request.most_tokens) for part in (training, testing)
    )

    def on(tokens: tuple[Token, ...]) -> Behaviour:
        unembed = edited.get_output_embeddings().weight.detach()
        return behaviour(tokens, before, after, unembed, unrelated=request.unrelated, seed=request.seed)

    figures: list[AttackFigure] = []
    enough = _are_enough(tested) and _are_enough(attacked)
    if enough:
        figures += _recovered(request, edited, on(attacked), say)
    if (
        enough
        and _are_enough(taught)
        and not (request.until_decided and any(figure.succeeded for figure in figures))
    ):
        lessons = Lessons(
            windows=request.windows, training=tuple(training), shots=on(taught), tested=on(tested)
        )
        figures += _relearned(request, edited, twin, lessons, say)
    return judge_removal(
        tuple(figures),
        n_tokens=len(tested),
        n_contexts=len(_contexts(tested)),
        effect=_mean_effect(effects, tested),
        unrelated_behaviours=request.unrelated,
        seed=request.seed,
        taught=(len(taught), len(_contexts(taught))),
    )


def _recovered(request: AttackRequest, edited: Any, target: Behaviour, say: Say) -> list[AttackFigure]:
    read = _orthonormal(load_file(request.directions)["read"])

    def told(done: int, total: int) -> None:
        say(Progress(stage="attack: recovery", done=done, total=total))

    return recovery(
        edited,
        request.windows,
        target,
        request.layers,
        read,
        request.budgets,
        steps=request.recovery_steps,
        seed=request.seed,
        say=told,
        until_decided=request.until_decided,
    )


def _relearned(
    request: AttackRequest, edited: Any, twin: Any, lessons: Lessons, say: Say
) -> list[AttackFigure]:
    def told(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: say(Progress(stage=stage, done=done, total=total))

    steps, seed = request.training_steps, request.seed
    found = benign(edited, twin, lessons, steps, seed=seed, say=told("attack: benign training"))
    return found + few_shot(edited, lessons, steps, seed=seed, say=told("attack: few-shot training"))


def _orthonormal(directions: Tensor) -> Tensor:
    """Return an orthonormal basis of what directions `(k, d_model)` span, `(rank, d_model)`."""
    _, sizes, basis = torch.linalg.svd(directions.double(), full_matrices=False)
    return basis[sizes > 1e-6 * sizes.max()].float() if len(sizes) else directions


def _are_enough(tokens: Sequence[Token]) -> bool:
    return are_enough(len(tokens), len(_contexts(tokens)))


def _contexts(tokens: Sequence[Token]) -> set[int]:
    return {token.window for token in tokens}


def _mean_effect(effects: Sequence[Tensor], tokens: Sequence[Token]) -> float:
    found = [float(effects[token.window][token.position]) for token in tokens]
    return sum(found) / len(found) if found else 0.0
