"""One pack of a tiny model, clean and patched, for tests of effects, and the metric of the plain model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.dataset_examples import examples
from trephine.domain.dataset_circuits import Estimator, NodeAblation, PositionRule
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import NEURONS
from trephine.engine.dataset_circuits.averaging import patched
from trephine.engine.dataset_circuits.contexts import read_contexts
from trephine.engine.dataset_circuits.estimators import PatchedPack, estimator_of
from trephine.engine.dataset_circuits.packs import donor_ids, packs
from trephine.engine.dataset_circuits.patches import LayerState
from trephine.engine.dataset_circuits.space import node_space
from trephine.engine.models.quanta import finish


class Scene:
    """One pack of a tiny model, patched."""

    def __init__(
        self,
        hosted,
        *names: str,
        rule=PositionRule.KEPT,
        ablation=NodeAblation.RESAMPLE,
        n=3,
        layers=None,
    ) -> None:
        self.hosted = hosted
        self.contexts = read_contexts(hosted, examples(n), rule, split="training")
        length, names = len(self.contexts[0].ids), names or (NEURONS,)
        self.space = node_space(hosted, names, layers, rule, length, ErrorTerm.LIVE)
        (pack,) = packs(
            self.contexts, donor_ids(self.contexts, seed=0, same_length=False), hosted.model.device
        )
        self.run = patched(hosted, self.space, pack, ablation, ())

    def estimate(self, which, *, steps=1, nodes=None, run=None):
        """Effects `(n_contexts, n_nodes)`."""
        estimator = estimator_of(self.hosted, self.space, which, steps=steps, candidates=nodes)
        with torch.inference_mode():
            return finish(estimator.estimate(run or self.run))

    def nearer(self, way):
        """The same run with patches only so far from the clean activations."""
        states = tuple(
            LayerState(activations=clean.activations + way * (new.activations - clean.activations), errors={})
            for clean, new in zip(self.run.clean, self.run.replaced, strict=True)
        )
        return PatchedPack(
            pack=self.run.pack, operators=self.run.operators, clean=self.run.clean, replaced=states
        )

    def slope(self, nodes, step=0.01):
        """Exact patching a little forward and backward, per whole way."""
        ahead, back = (self.estimate(Estimator.EXACT, nodes=nodes, run=self.nearer(w)) for w in (step, -step))
        return (ahead - back) / (2 * step)


def some_nodes(effects, count=12):
    """Nodes spread over all effects that are not 0."""
    alive = (effects.abs().sum(0) > 0).nonzero()[:, 0]
    return alive[torch.linspace(0, len(alive) - 1, count).long()]


def plain_metric(hosted, context, module=None, write: Callable[[Tensor], None] | None = None):
    """Answer less wrong answer of one context, before a soft cap; `write` changes what a module reads.

    `write` is given `(n_pos, width)` and changes it in place.
    """

    def hook(_module, args):
        x = args[0].clone()
        write(x[0])
        return (x, *args[1:])

    handle = None if module is None else module.register_forward_pre_hook(hook)
    with torch.inference_mode():
        logits = hosted.model(input_ids=torch.tensor([context.ids]), use_cache=False).logits[0, -1].double()
    if handle is not None:
        handle.remove()
    if hosted.architecture.logit_softcap is not None:
        cap = hosted.architecture.logit_softcap
        logits = cap * torch.atanh(logits / cap)
    words = context.text.removeprefix("When").split(" ")[1:]
    right, wrong = (hosted.resolve_target(f" {word}") for word in words[:2])
    return logits[right] - logits[wrong]
