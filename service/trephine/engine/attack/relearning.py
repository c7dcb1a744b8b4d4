"""Relearning: short low-rank training of the edited model, and how much of a behaviour it brings back.

Benign training is next-token training on natural text in which the behaviour occurs, the harder case: every
other one of the windows in which the edited features fire most. No answer of the original is taught. The
unedited twin is trained on the same text in the same order, and what moves it towards the behaviour is taken
off. Few-shot training sees contexts in which the edit acts, with the original's answers; it is not run on the
twin: those are its own answers, and its gradient is zero.
Behaviours are measured on tokens of other windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from trephine.domain.removal import AttackFigure
from trephine.engine.attack.answers import Token, decoder_layers, logits_of
from trephine.engine.attack.behaviour import Behaviour, share_of_step
from trephine.engine.attack.intervals import figure
from trephine.engine.attack.request import LEARNING_RATE, RANK

Windows = Sequence[Sequence[int]]
Loss = Callable[[int], Tensor]
"""Step number -> loss of the model that is trained."""
Say = Callable[[int, int], None]

_STAGES = (50, 100)
"""Behaviours are measured after so many steps, too: longer training is never a weaker attack."""
_FIRST = 0.4
"""They are first measured after this share of a training of 50 steps or less: more may undo what it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """What is trained on and what is measured."""

    windows: Windows
    training: tuple[int, ...]
    """Windows to train on; none of them is measured."""
    shots: Behaviour
    """On tokens of the windows of training."""
    tested: Behaviour
    """On tokens of others."""


def benign(
    edited: Any, twin: Any, lessons: Lessons, steps: int, *, seed: int, say: Say
) -> list[AttackFigure]:
    """Train both on the next tokens of the windows of training; return how much is back at every stage."""
    goals, start = lessons.tested.goals, lessons.tested.edited

    def text(model: Any) -> Loss:
        def loss(step: int) -> Tensor:
            ids = torch.tensor(list(lessons.windows[lessons.training[step % len(lessons.training)]]))
            output: Tensor = model(ids[None], use_cache=False).logits[0, :-1]
            return functional.cross_entropy(output.float(), ids[1:])

        return loss

    after = _trained(edited, text(edited), lessons, steps, seed, say)
    beside = _trained(twin, text(twin), lessons, steps, seed, say)
    found = []
    for step in after:
        shares = [
            _returned(goal, start, after[step], _moved(goals[0], start, beside[step])) for goal in goals
        ]
        found.append(
            figure("benign", step, shares[0], torch.stack(shares[1:]), lessons.tested.tokens, seed=seed)
        )
    return found


def _returned(goal: Tensor, start: Tensor, now: Tensor, twin: Tensor) -> Tensor:
    """Return how far training went towards a goal, less what the text teaches anybody of it, `(n_tokens,)`.

    The twin shows that. What it loses of a behaviour is nothing that came back in the edited model: text that
    speaks against one drives it out of the twin, which has it, and leaves alone a model that has not. Whether
    it loses is told over all tokens: noise of single ones, cut off at 0, would be taken for what was taught.
    """
    back, taught = (share_of_step(goal, start, answers) for answers in (now, twin))
    return back if taught.mean() <= 0 else back - taught


def _moved(original: Tensor, start: Tensor, twin: Tensor) -> Tensor:
    """Carry what training did to the twin over to the edited model's answers before training."""
    return start + twin - original


def few_shot(edited: Any, lessons: Lessons, steps: int, *, seed: int, say: Say) -> list[AttackFigure]:
    """Teach the edited model the original's answers, then each unrelated behaviour's, as fast as may be."""
    goals, start = lessons.tested.goals, lessons.tested.edited

    def shots(goal: Tensor) -> Loss:
        by_window = _by_window(lessons.shots.tokens)

        def loss(step: int) -> Tensor:
            window, rows = by_window[step % len(by_window)]
            positions = torch.tensor([lessons.shots.tokens[row].position for row in rows])
            # Nothing behind the last taught token, and no other token's logits, plays a part in the loss.
            ids = torch.tensor([list(lessons.windows[window][: int(positions.max()) + 1])])
            output: Tensor = edited(ids, use_cache=False, logits_to_keep=positions).logits[0]
            return functional.kl_div(
                torch.log_softmax(output.float(), -1),
                torch.log_softmax(goal[rows], -1),
                log_target=True,
                reduction="batchmean",
            )

        return loss

    taught = [_trained(edited, shots(goal), lessons, steps, seed, say) for goal in lessons.shots.goals]
    found = []
    for step in taught[0]:
        shares = [
            share_of_step(goal, start, answers[step]) for goal, answers in zip(goals, taught, strict=True)
        ]
        found.append(
            figure("few_shot", step, shares[0], torch.stack(shares[1:]), lessons.tested.tokens, seed=seed)
        )
    return found


def _by_window(tokens: Sequence[Token]) -> list[tuple[int, list[int]]]:
    """List windows with the rows of their tokens."""
    windows = sorted({token.window for token in tokens})
    return [(w, [row for row, token in enumerate(tokens) if token.window == w]) for w in windows]


def stages(steps: int) -> tuple[int, ...]:
    """Return the steps of a training after which behaviours are measured, ascending: 20 and 50 of 50."""
    first = max(1, round(_FIRST * min(steps, _STAGES[0])))
    return tuple(sorted({first, *(stage for stage in _STAGES if stage < steps), steps}))


# --- training ------------------------------------------------------------------------------------


def _trained(model: Any, loss: Loss, lessons: Lessons, steps: int, seed: int, say: Say) -> dict[int, Tensor]:
    """Train low-rank updates and take them off again; return the tested tokens' answers at some steps.

    A training that diverges stops, and its answers from there on are no numbers, which no word is made of.
    """
    measured = stages(steps)
    found: dict[int, Tensor] = {}
    with low_rank(model, seed) as weights:
        optimiser = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
        for step in range(steps):
            optimiser.zero_grad()
            error = loss(step)
            if not bool(error.isfinite()):
                lost = torch.full_like(lessons.tested.edited, torch.nan)
                found |= {stage: lost for stage in measured if stage > step}
                say(steps, steps)
                break
            error.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            say(step + 1, steps)
            if step + 1 in measured:
                with torch.no_grad():
                    found[step + 1] = _answers(model, lessons)
    return found


def _answers(model: Any, lessons: Lessons) -> Tensor:
    """Return the answers on the tested tokens, `(n_tokens, d_vocab)`."""
    tokens = lessons.tested.tokens
    seen = {window: logits_of(model, lessons.windows[window]) for window in {t.window for t in tokens}}
    return torch.stack([seen[token.window][token.position] for token in tokens])


@contextmanager
def low_rank(model: Any, seed: int) -> Iterator[list[Tensor]]:
    """Lay trainable updates of rank `RANK` beside every linear module of the blocks; they begin at zero."""
    draw = torch.Generator().manual_seed(seed)
    modules = [m for m in decoder_layers(model).modules() if isinstance(m, nn.Linear | Conv1D)]
    handles, weights = [], list[Tensor]()
    for module in modules:
        n_out, n_in = module.weight.shape if isinstance(module, nn.Linear) else module.weight.T.shape
        down = (torch.randn(n_in, RANK, generator=draw) / n_in**0.5).requires_grad_()
        up = torch.zeros(RANK, n_out, requires_grad=True)
        weights += [down, up]
        handles.append(module.register_forward_hook(_added(down, up)))
    try:
        yield weights
    finally:
        for handle in handles:
            handle.remove()


def _added(down: Tensor, up: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def add(_: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + (given[0] @ down) @ up

    return add
