"""What is shown of a judged feature: its strongest places, and its effect when it alone is ablated."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.spurious_removal import Firing
from trephine.domain.spurious_sizes import EXACT_TEXTS
from trephine.engine.dataset_circuits.nodes import node_layer
from trephine.engine.dataset_circuits.packs import Layout, capture_layout, lay_out
from trephine.engine.spurious.examples import UNKNOWN, Example, labels, sample
from trephine.engine.spurious.judgement import separation
from trephine.engine.spurious.judging import Candidate
from trephine.engine.spurious.pooling import batches
from trephine.engine.spurious.study import Study, quiet

_BEFORE = 12
_SHOWN = 4
_TEXTS = 64


def exact_effects(study: Study, candidates: Sequence[Candidate]) -> Generator[Progress | None, None, None]:
    """Ablate the strongest candidates one at a time; write what each takes from the labels' separation."""
    chosen = sample(study.data.training, EXACT_TEXTS, study.command.seed + 7)
    texts, y = [one.ids for one in chosen], labels(chosen)
    wanted = sorted(candidates, key=lambda one: -abs(one.effect))[: study.command.budget.exact]
    if not wanted:
        return
    pooled = yield from study.pool(texts, (), "exact effects")
    plain = separation(study.head.margin(pooled)[:, None], y)
    for number, candidate in enumerate(wanted):
        yield Progress(stage="exact effects", done=number, total=len(wanted))
        pooled = yield from quiet(study.pool(texts, [candidate.feature], ""))
        candidate.exact = float(plain - separation(study.head.margin(pooled)[:, None], y))


def firings_of(
    study: Study, candidates: Sequence[Candidate]
) -> Generator[Progress | None, None, list[tuple[Firing, ...]]]:
    """Return the places of largest |activation| of every candidate, in distinct ambiguous texts."""
    chosen = sample(study.data.training, _TEXTS, study.command.seed + 8)
    texts = [one.ids for one in chosen]
    best: list[dict[int, tuple[float, float, int]]] = [{} for _ in candidates]
    by_place: dict[int, list[tuple[int, int]]] = {}
    places, _, indices = study.space.split(torch.tensor([one.node for one in candidates], dtype=torch.long))
    for number, (place, index) in enumerate(zip(places.tolist(), indices.tolist(), strict=True)):
        by_place.setdefault(place, []).append((number, index))
    for part in batches(texts):
        yield Progress(stage="evidence", done=part.start, total=len(texts))
        layout = lay_out(texts[part], study.hosted.model.device)
        operators = capture_layout(study.hosted, layout, study.readout.layer)
        yield None
        for place, wanted in by_place.items():
            with node_layer(study.hosted, study.space, place) as layer, torch.inference_mode():
                values = layer.captured(operators)[:, [index for _, index in wanted]].float().cpu()
                values = values.masked_fill((layout.position.cpu() == 0)[:, None], 0)  # an attention sink
            for column, (number, _) in enumerate(wanted):
                for text, (value, position) in enumerate(_peaks(values[:, column], layout)):
                    best[number][part.start + text] = (abs(value), value, position)
    return [_told(study, chosen, found) for found in best]


def _peaks(values: Tensor, layout: Layout) -> list[tuple[float, int]]:
    """Return the value of largest magnitude, and its position, of every text of a pack `(n_rows,)`."""
    found = []
    for part in values.split(layout.lengths):
        at = int(part.abs().argmax())
        found.append((float(part[at]), at))
    return found


def _told(
    study: Study, chosen: Sequence[Example], found: dict[int, tuple[float, float, int]]
) -> tuple[Firing, ...]:
    order = sorted(found, key=lambda text: -found[text][0])[:_SHOWN]
    return tuple(_firing(study, chosen[text], *found[text][1:]) for text in order if found[text][0] > 0)


def _firing(study: Study, example: Example, value: float, position: int) -> Firing:
    ids = example.ids
    known = example.attribute != UNKNOWN and bool(study.data.attributes)
    before = study.hosted.decode(ids[max(0, position - _BEFORE) : position])
    token = _spelled(study, ids[position])
    return Firing(
        text=before + token,
        token=token,
        activation=value,
        label=study.data.labels[example.label],
        attribute=study.data.attributes[example.attribute] if known else None,
    )


def _spelled(study: Study, token_id: int) -> str:
    """Return a token as text; where it is a part of a character, as its bytes are shown."""
    (token,) = study.hosted.tokens([token_id])
    try:
        return token.raw.decode()
    except UnicodeDecodeError:
        return token.display
