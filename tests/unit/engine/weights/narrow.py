"""Grafts of every family from bfloat16 files, run in bfloat16, between the floors that bound them.

KL in nats per token on which an edited feature fires, always from the float32 intervened runtime: the export
as stock transformers runs it in bfloat16, beside three things that no export is to blame for: what bfloat16
costs the unedited parent (the floor), what it costs the runtime that intervenes by hooks (whose own features
jump on other tokens, because what they read is rounded), and what is left where modules answer as well as any
weights let them (`reach`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.resident_sets import resident_set
from tests.unit.engine.exporting import edit_of, hosted_in
from tests.unit.engine.weights.folders import FIT, compiled, feature, parent, windows, written
from tests.unit.engine.weights.reach import best_answers
from trephine.domain.interventions import Ablate, Clamp, Intervention
from trephine.domain.sites import Site, SiteKind
from trephine.engine.certificates.firing import masks_by_feature
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.replacements.sets import opened
from trephine.engine.runs.retain import windows_logits
from trephine.engine.weights.capture import captured, stacked
from trephine.engine.weights.compiling import WeightProgram
from trephine.engine.weights.operations import sort_operations

NARROW = torch.bfloat16
LAWS, MOST = ("floor", "runtime", "reach"), 1.5
KINDS = ("ReLU", "JumpReLU", "clamp")
SEVERAL = ((0, 1), (1, 2), (2, 1))
"""Layer, and how many of its features are edited together."""
WINDOWS, MANY_FEATURES, FEW, FEW_BEHIND_NORM = 144, 64, 10, 24
"""Windows that a feature that jumps is measured on, because what matters are the few tokens next to its
threshold; several such; all others, and these behind a post-norm, where the feature fires least."""
_SETS = {"ReLU": "relu", "JumpReLU": "jumprelu", "clamp": "relu"}
_SHARES = (0.15, 0.5)
"""Of the tokens: a feature is chosen from those that fire so often, the strongest first."""
_COMMON = {"qwen2": 2.0, "qwen3": 2.0, "gemma2": 0.125}
_EMBEDDINGS = {"gemma2": 0.25}
"""Its logits are of tied embeddings: at the builders' size rounding alone would be more than most edits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One edit of one family."""

    family: str
    kind: str
    several: bool
    tokens: int
    edit: float
    """KL(intervened || unedited)."""
    floor: float
    """KL(unedited || unedited in bfloat16)."""
    runtime: float
    """KL(intervened || intervened in bfloat16, by hooks)."""
    best: float | None
    """KL(intervened || the best that any weights do, in bfloat16); None: the runtime itself is in reach."""
    graft: float
    """KL(intervened || export run in bfloat16)."""
    idle: float
    """KL(intervened || unedited in bfloat16): a copy of the parent."""
    recovery: float
    recovery_same: float
    """Against the intervened runtime that computes in bfloat16 itself."""
    program: WeightProgram = field(repr=False)

    def bound(self, name: str) -> float:
        """Return what `floor`, `runtime` or `reach` stands for."""
        return {"floor": self.floor, "runtime": self.runtime, "reach": self.best or self.runtime}[name]

    @property
    def held_to(self) -> str:
        """The narrowest law of 1.5 that holds: `floor`, `runtime`, `reach`; empty if none does."""
        return next((name for name in LAWS if self.graft <= MOST * self.bound(name)), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowScene:
    """A parent of bfloat16 files, loaded twice, and its features."""

    family: str
    hosted: HostedModel
    """Computing in float32."""
    same: HostedModel
    """Computing in bfloat16."""
    texts: list[tuple[int, ...]]
    plain: list[Tensor]
    floor: Tensor
    """KL per token of the unedited parent, `(n,)`."""
    served: list[Tensor]
    """The parent's folder in stock transformers, in bfloat16."""

    def first(self, count: int) -> NarrowScene:
        """Look at fewer windows."""
        return replace(
            self,
            texts=self.texts[:count],
            plain=self.plain[:count],
            floor=self.floor[: sum(map(len, self.texts[:count]))],
            served=self.served[:count],
        )

    def edit(self, kind: str, *, several: bool) -> tuple[Intervention, ...]:
        """Return an edit: one feature of layer 1, or four of all layers."""
        name = _SETS[kind]
        return tuple(
            feature(layer, index, Clamp(low=0.0, high=median / 2) if kind == "clamp" else Ablate(), name=name)
            for layer, count in (SEVERAL if several else ((1, 1),))
            for index, median in strongest(self.hosted, name, layer, count)
        )


def narrow_scene(family: str, folder: Path, *, count: int = WINDOWS) -> NarrowScene:
    """Make a parent, and measure what bfloat16 costs it; on so many windows."""
    hosted = parent(
        family, folder, dtype=NARROW, common=_COMMON.get(family, 0.0), biases=family != "llama",
        embeddings=_EMBEDDINGS.get(family, 1.0),
    )  # fmt: skip
    same, texts = hosted_in(folder, NARROW), windows(count, seed=2)
    for each in (hosted, same):
        for name in sorted(set(_SETS.values())):
            resident_set(each, name, name=name)
    plain, served = windows_logits(hosted, texts), stock(folder, texts)
    return NarrowScene(
        family=family, hosted=hosted, same=same, texts=texts, plain=plain, floor=_kl(plain, served),
        served=served,
    )  # fmt: skip


@torch.inference_mode()
def row(scene: NarrowScene, kind: str, folder: Path, *, several: bool) -> Row:
    """Compile an edit into a folder and measure it."""
    few = FEW_BEHIND_NORM if scene.family == "gemma2" else FEW
    scene = scene.first((MANY_FEATURES if several else WINDOWS) if kind == "JumpReLU" else few)
    hosted, same, texts = scene.hosted, scene.same, scene.texts
    edit = scene.edit(kind, several=several)
    program = compiled(hosted, edit)
    exported = stock(written(hosted, program, folder), texts)
    changed, here = (windows_logits(model, texts, edit) for model in (hosted, same))
    fires = fires_on(hosted, texts, edit)
    best = best_answers(hosted, same, edit, texts) if program.fitted else None
    left, moved = float(_kl(changed, exported)[fires].mean()), float(_kl(changed, scene.plain)[fires].mean())
    left_same, moved_same = (float(_kl(here, other)[fires].mean()) for other in (exported, scene.served))
    return Row(
        family=scene.family,
        kind=kind,
        several=several,
        tokens=int(fires.sum()),
        edit=moved,
        floor=float(scene.floor[fires].mean()),
        runtime=float(_kl(changed, here)[fires].mean()),
        best=None if best is None else float(_kl(changed, best)[fires].mean()),
        graft=left,
        idle=float(_kl(changed, scene.served)[fires].mean()),
        recovery=1 - left / moved,
        recovery_same=1 - left_same / moved_same,
        program=program,
    )


@torch.inference_mode()
def strongest(hosted: HostedModel, name: str, layer: int, count: int) -> list[tuple[int, float]]:
    """Return the features of a layer that write most where they fire, and their medians there."""
    site = Site(kind=SiteKind.MLP_IN, layer=layer)
    with opened(hosted, name, [layer]) as layers:
        found = layers[layer].encode(stacked(finish(captured(hosted, FIT, [site], ()))[site])).activations
        sizes = layers[layer].decoders(range(found.shape[1]), Site(kind=SiteKind.MLP_OUT, layer=layer))
    shares = (found > 0).double().mean(0)
    writes = found.double().square().mean(0) / shares * sizes.double().square().sum(1)
    writes[(shares < _SHARES[0]) | (shares > _SHARES[1])] = 0.0
    chosen = writes.argsort(descending=True)[:count].tolist()
    return [(index, float(found[:, index][found[:, index] > 0].median())) for index in chosen]


@torch.inference_mode()
def fires_on(hosted: HostedModel, texts: list[tuple[int, ...]], edit: tuple[Intervention, ...]) -> Tensor:
    """Return on which tokens an edited feature fires, bool `(n,)`."""
    grafts = sort_operations(hosted, edit_of(hosted, *edit).interventions).grafts
    masks = finish(masks_by_feature(hosted, texts, grafts, edit))
    return torch.stack([torch.cat(each) for each in masks.values()]).any(0)


@torch.inference_mode()
def stock(folder: Path, texts: list[tuple[int, ...]]) -> list[Tensor]:
    """Run a folder in stock transformers, in bfloat16; float32 logits per window."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=NARROW).eval()
    return list(model(torch.tensor(texts), use_cache=False).logits.float())


def _kl(p: Sequence[Tensor], q: Sequence[Tensor]) -> Tensor:
    """Return KL per token, `(n,)`: in float64, which is quicker than what does not cancel in float32."""
    log_p, log_q = (torch.log_softmax(torch.cat(list(each)).double(), -1) for each in (p, q))
    return (log_p.exp() * (log_p - log_q)).sum(-1)
