"""Necessity and sufficiency of a pruned circuit, beside random circuits of its size; the worst case.

After Wang et al. 2022 and Marks et al. 2025: with m the target, faithfulness is
(m(circuit alone) - m(nothing)) / (m(model) - m(nothing)). Attention and everything that is no feature stay
as they are; what becomes of a set's error is asked for. Where it is dropped, that alone moves the target: a
circuit is sufficient where it stays near to the plain model, errors and all, and what ablating it takes away
counts from where nothing is ablated but errors are dropped, so that no damage but its own is put to it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from math import isfinite, nan

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import LayerRef
from trephine.domain.verification import Faithfulness, Substitute, VerificationOptions, WorstCase
from trephine.engine.verification.masks import Mask, MaskedPrompt, Substitutes
from trephine.engine.verification.slopes import mask_slopes
from trephine.engine.verification.subject import Subject, ablation_words

_ROUNDING = 1e-5
"""Of the target. Where nothing ablated moves it further, p-values would be of rounding: none is given."""
_NOTHING, _NOTHING_SHARE = 0.05, 0.1
"""Ablating everything must take more than so many logits, and more than this share, off the target for shares
of that to mean anything."""
_PASSES_PER_STEP = 4
"""A step of the search is a pass, its adjoint (about two more) and its rounded mask's pass."""


def circuit_mask(prompt: MaskedPrompt, cells: Tensor) -> dict[LayerRef, Tensor]:
    """Return the mask that keeps position 0 and the features `cells (n, 3)`.

    Args:
        prompt: The prompt.
        cells: int64, which of the prompt's layers, position, index.
    """
    mask = {ref: torch.zeros_like(ones) for ref, ones in prompt.ones().items()}
    for number, ref in enumerate(prompt.layers):
        kept = mask[ref]
        kept[0] = 1  # an attention sink, never ablated
        own = cells[cells[:, 0] == number]
        kept[own[:, 1], own[:, 2]] = 1
    return mask


def complement(mask: Mask) -> dict[LayerRef, Tensor]:
    """Return the mask that removes what this one keeps; position 0 is kept by both."""
    turned = {ref: 1 - kept for ref, kept in mask.items()}
    for kept in turned.values():
        kept[0] = 1
    return turned


def circuit_cells(subject: Subject) -> Tensor:
    """Return the features of the pruned circuit at positions >= 1, as `circuit_mask` takes them."""
    graph, nodes = subject.graph, torch.tensor(subject.kept)
    number = {ref: place for place, ref in enumerate(subject.prompt.layers)}
    place = torch.tensor([number.get(ref, -1) for ref in graph.refs])[graph.owner[nodes]]
    return torch.stack([place, graph.position[nodes], graph.index[nodes]], 1)


def random_cells(subject: Subject, cells: Tensor, count: int, seed: int) -> list[Tensor]:
    """Draw circuits with as many features in every layer, of those active at positions >= 1."""
    generator = torch.Generator().manual_seed(seed + 3)
    pools = {}
    for number, ref in enumerate(subject.prompt.layers):
        free = subject.active[ref].cpu().clone()
        free[0] = False
        pools[number] = free.nonzero()
    drawn = []
    for _ in range(count):
        parts = []
        for number, size in zip(*(x.tolist() for x in cells[:, 0].unique(return_counts=True)), strict=True):
            places = pools[number][torch.randperm(len(pools[number]), generator=generator)[:size]]
            parts.append(torch.cat([torch.full((len(places), 1), number), places], 1))
        drawn.append(torch.cat(parts))
    return drawn


def measure_faithfulness(
    subject: Subject, options: VerificationOptions, kind: Substitute, become: Substitutes | None
) -> Generator[Progress, None, Faithfulness]:
    """Ablate the circuit, its outside and everything, and random circuits likewise; one batch a quantum."""
    prompt, cells = subject.prompt, circuit_cells(subject)
    drawn = random_cells(subject, cells, options.random_circuits, options.seed)
    circuits = [partial(circuit_mask, prompt, each) for each in (cells, *drawn)]
    empty = partial(circuit_mask, prompt, cells[:0])
    stage = f"necessity and sufficiency ({kind.value})"
    values = yield from _run(prompt, [empty, *circuits], become, stage)
    removed = yield from _run(prompt, [partial(_without, mask) for mask in circuits], become, stage)
    nothing, kept, random_kept = float(values[0]), float(values[1]), values[2:]
    still, own = prompt.unablated, float(removed[0])
    sign = 1.0 if still >= 0 else -1.0
    farthest = float((torch.cat([values, removed]) - still).abs().max())
    moved = farthest > _ROUNDING * max(abs(still), abs(prompt.baseline))
    # Near to the model, not merely large: where ablating everything raises the target, and beyond the model,
    # more of it is no more like the model.
    far, random_far = abs(kept - prompt.baseline), (random_kept - prompt.baseline).abs()
    shared = _overlap(cells, drawn)
    return Faithfulness(
        substitute=kind,
        baseline=prompt.baseline,
        unablated=still,
        empty=nothing,
        kept=kept,
        removed=own,
        faithfulness=_share(kept - nothing, prompt.baseline, nothing),
        necessity=_share(still - own, still, nothing),
        random_circuits=len(drawn),
        random_kept=float(random_kept.mean()),
        random_removed=float(removed[1:].mean()),
        p_sufficient=p_value(-random_far, -far) if moved else nan,
        p_necessary=p_value(-sign * removed[1:], -sign * own) if moved else nan,
        how=f"ablated features {ablation_words(prompt, kind)}; all features of {len(prompt.layers)} layers, "
        f"active or not; the circuit keeps {len(cells)}, {subject.first_position} more of it at position 0 "
        f"never ablated; {len(drawn)} random circuits with as many features in every layer, drawn from those "
        f"active at positions >= 1, {shared:.0%} of them in the circuit too; {_kept_words(prompt)}",
    )


def _share(part: float, start: float, nothing: float) -> float | None:
    """Return a part of what ablating everything takes off `start`; None where that is next to nothing."""
    whole, sign = start - nothing, 1.0 if start >= 0 else -1.0
    return part / whole if sign * whole > max(_NOTHING, _NOTHING_SHARE * abs(start)) else None


def _kept_words(prompt: MaskedPrompt) -> str:
    """Say what is never ablated, and from where necessity counts."""
    if not prompt.drops_errors:
        return "error nodes and attention kept"
    return (
        "attention kept, error nodes dropped at positions >= 1 in every run but the model's own; sufficiency "
        f"is nearness to the model, {prompt.baseline:+.3f}; necessity counts from {prompt.unablated:+.3f}, "
        "where errors are dropped and no feature is ablated"
    )


def _without(mask: Callable[[], Mask]) -> Mask:
    return complement(mask())


def _overlap(cells: Tensor, drawn: Sequence[Tensor]) -> float:
    own = set(map(tuple, cells.tolist()))
    counts = [sum(tuple(cell) in own for cell in each.tolist()) for each in drawn]
    return sum(counts) / max(1, sum(map(len, drawn)))


def p_value(random: Tensor, own: float) -> float:
    """Count random circuits that are at least as extreme; NaN, which passes nothing, if any is no number."""
    if not (isfinite(own) and bool(random.isfinite().all())):
        return nan
    return (1 + int((random >= own).sum())) / (1 + len(random))


def _run(
    prompt: MaskedPrompt, masks: Sequence[Callable[[], Mask]], become: Substitutes | None, stage: str
) -> Generator[Progress, None, Tensor]:
    """Run masks, built only when their batch is due: each is as large as all features of the prompt."""
    found = []
    for start in range(0, len(masks), prompt.batch_rows):
        part = [mask() for mask in masks[start : start + prompt.batch_rows]]
        found.append(prompt.values(part, become)[0])
        yield Progress(stage=stage, done=start + len(part), total=len(masks))
    return torch.cat(found)


# --- worst case ------------------------------------------------------------------------------------------


def search_worst_case(
    subject: Subject, options: VerificationOptions
) -> Generator[Progress | None, None, WorstCase | None]:
    """Look for the mask outside the circuit that does most damage, by projected signed gradient steps.

    Starts where nothing is ablated; a step moves every mask value by 2 / steps against its derivative and
    clips it to [0, 1]. The circuit and position 0 stay at 1. Every step's mask is rounded and run for real.
    """
    prompt = subject.prompt
    if not options.adversary_steps or prompt.error_term is not ErrorTerm.LIVE:
        return None
    sign = 1.0 if prompt.baseline >= 0 else -1.0
    fixed = circuit_mask(prompt, circuit_cells(subject))
    mask = prompt.ones()
    relaxed, rounded = [], []
    for step in range(options.adversary_steps):
        value, slopes = yield from mask_slopes(prompt, mask, None)
        relaxed.append(sign * value)
        mask = {
            x: _step(kept, sign * slopes[x], fixed[x], options.adversary_steps) for x, kept in mask.items()
        }
        rounded.append({layer: kept >= 0.5 for layer, kept in mask.items()})
        yield Progress(stage="worst case", done=step + 1, total=options.adversary_steps)
    last, _ = prompt.values([mask])
    relaxed.append(sign * float(last[0]))
    again = [partial(_as_mask, one) for one in rounded]
    found = sign * (yield from _run(prompt, again, None, "worst case, rounded"))
    budget = _PASSES_PER_STEP * options.adversary_steps
    random = sign * (yield from _random_masks(prompt, fixed, budget, options.seed))
    kept, _ = prompt.values([fixed])
    worst = int(found.argmin())
    return WorstCase(
        substitute=Substitute.ZERO,
        baseline=prompt.baseline,
        kept=float(kept[0]),
        relaxed=sign * min(relaxed),
        rounded=sign * float(found[worst]),
        random=sign * float(random.min()),
        steps=options.adversary_steps,
        random_masks=budget,
        ablated=_count(subject, rounded[worst]),
        outside=_count(subject, {layer: one == 1 for layer, one in fixed.items()}),
        how=f"features outside the circuit, {ablation_words(prompt, Substitute.ZERO)}; the circuit's own "
        f"stay whole; {options.adversary_steps} signed gradient steps from the whole model, masks clipped to "
        "[0, 1], the derivative exact with supports of sparse features held; rounded at 0.5 after every step "
        f"and measured anew, the worst is reported; beside it the worst of {budget} random masks, as many as "
        "the search took passes, each keeping a share drawn evenly from 0 to 1",
    )


def _as_mask(kept: Mask) -> Mask:
    return {layer: one.float() for layer, one in kept.items()}


def _count(subject: Subject, kept: Mask) -> int:
    """Count features active on the prompt that a boolean mask ablates."""
    return sum(int((subject.active[layer].cpu() & ~one.cpu()).sum()) for layer, one in kept.items())


def _step(kept: Tensor, slope: Tensor, fixed: Tensor, steps: int) -> Tensor:
    moved = (kept - 2 / steps * slope.sign()).clamp(0, 1)
    return torch.where(fixed == 1, torch.ones_like(moved), moved)


def _random_masks(
    prompt: MaskedPrompt, fixed: Mask, count: int, seed: int
) -> Generator[Progress, None, Tensor]:
    generator = torch.Generator().manual_seed(seed + 4)
    found = []
    for start in range(0, count, prompt.batch_rows):
        rows = range(start, min(count, start + prompt.batch_rows))
        masks = [_random_mask(fixed, generator) for _ in rows]
        found.append(prompt.values(masks)[0])
        yield Progress(stage="worst case, random masks", done=rows.stop, total=count)
    return torch.cat(found)


def _random_mask(fixed: Mask, generator: torch.Generator) -> dict[LayerRef, Tensor]:
    share = float(torch.rand((), generator=generator))
    return {
        layer: torch.where(kept == 1, 1.0, (torch.rand(kept.shape, generator=generator) < share).to(kept))
        for layer, kept in fixed.items()
    }
