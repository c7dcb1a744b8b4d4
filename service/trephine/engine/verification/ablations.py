"""Carrying out removals on the real model, batch by batch, and following their change upwards."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.sites import NEURONS, LayerRef
from trephine.engine.replacements.sets import opened
from trephine.engine.verification.choosing import Cell, Removal
from trephine.engine.verification.masks import Mask, MaskedPrompt, Substitutes, Tape
from trephine.engine.verification.subject import Subject


def mask_of(prompt: MaskedPrompt, cells: Sequence[Cell]) -> Mask:
    """Return the mask that removes some features at their own positions."""
    mask: dict[LayerRef, Tensor] = {}
    for ref in sorted({cell.ref for cell in cells}):
        own = [cell for cell in cells if cell.ref == ref]
        kept = torch.ones(len(prompt.ids), prompt.width(ref), device=prompt.operators.device)
        kept[[cell.position for cell in own], [cell.index for cell in own]] = 0
        mask[ref] = kept
    return mask


def measured_drops(
    prompt: MaskedPrompt, removals: Sequence[Removal], substitutes: Substitutes | None, stage: str
) -> Generator[Progress, None, Tensor]:
    """Measure how much the target falls, float64 `(n_removals,)`; one batch a quantum.

    It falls from where nothing is ablated under the same error term. Removals of high layers are run
    together: what is below them is not computed again.
    """
    drops = torch.zeros(len(removals), dtype=torch.float64)
    upwards = sorted(range(len(removals)), key=lambda place: removals[place].first_layer)
    for start in range(0, len(upwards), prompt.batch_rows):
        places = upwards[start : start + prompt.batch_rows]
        masks = [mask_of(prompt, removals[place].cells) for place in places]
        values, _ = prompt.values(masks, substitutes)
        drops[places] = prompt.unablated - values
        yield Progress(stage=stage, done=start + len(places), total=len(removals))
    return drops


def measured_changes(
    subject: Subject, removals: Sequence[Removal]
) -> Generator[Progress | None, None, Tensor]:
    """Measure how every node of the graph changes: float64 `(n_removals, n_nodes)`, in its own units.

    Only features at positions >= 1 above a removal are measured, those that read above it in its own block
    among them; the others are 0. Zero ablation, beside nothing ablated under the same error term.
    """
    prompt, graph = subject.prompt, subject.graph
    still = yield from _unablated(subject)
    lowest_of = [min(int(graph.owner[node]) for node in one.nodes) for one in removals]
    changes = torch.zeros(len(removals), len(graph.layer), dtype=torch.float64)
    upwards = sorted(range(len(removals)), key=lambda place: removals[place].first_layer)
    for start in range(0, len(upwards), prompt.batch_rows):
        places = upwards[start : start + prompt.batch_rows]
        lowest = min(lowest_of[place] for place in places)
        above = {number: ref for number, ref in enumerate(graph.refs) if number > lowest}
        masks = [mask_of(prompt, removals[place].cells) for place in places]
        reads = [prompt.site_in(ref) for ref in above.values()]
        _, tape = prompt.values(masks, reads=list(dict.fromkeys(reads)))
        for number, ref in above.items():
            nodes = (graph.is_feature & (graph.owner == number) & (graph.position > 0)).nonzero().flatten()
            found = _read(prompt, tape, ref)[:, graph.position[nodes], graph.index[nodes]]
            clean = still[ref][graph.position[nodes], graph.index[nodes]]
            below = torch.tensor([lowest_of[place] < number for place in places])
            difference = (found.cpu() - clean.cpu()).double() * below[:, None]
            changes[torch.tensor(places)[:, None], nodes] = difference
        yield Progress(stage="change by depth", done=start + len(places), total=len(removals))
    return changes


def _unablated(subject: Subject) -> Generator[None, None, Mapping[LayerRef, Tensor]]:
    """Return activations `(n_pos, width)` where nothing is ablated under the prompt's error term."""
    prompt = subject.prompt
    if prompt.unablated == prompt.baseline:
        return subject.activation
    _, tape = prompt.values([{}], reads=list(dict.fromkeys(prompt.site_in(ref) for ref in prompt.layers)))
    yield None
    return {ref: _read(prompt, tape, ref)[0] for ref in prompt.layers}


def _read(prompt: MaskedPrompt, tape: Tape, ref: LayerRef) -> Tensor:
    """Return what a layer's features are `(rows, n_pos, width)`, of what it read and not of what it wrote."""
    if ref in tape.codes:
        return tape.codes[ref].activations
    x = tape.values[prompt.site_in(ref)]
    if ref.replacement == NEURONS:
        return x
    with opened(prompt.hosted, ref.replacement, [ref.layer]) as resident, torch.inference_mode():
        return resident[ref.layer].encode(x.to(torch.promote_types(x.dtype, torch.float32))).activations
