"""Every way of getting a fair decision out of a confounded set, each as margins on the same test texts.

What is fitted sees the ambiguous set and, except for the original and the random arms, the attribute's
examples; skylines and the oracle see balanced texts too and are marked so. No arm sees a test text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from benchmarks.shift_tasks import Draw, Item, Task
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.spurious_heads import ProbeHead
from trephine.domain.spurious_removal import RemovalBudget, RemoveSpuriousFeatures, Standing
from trephine.domain.spurious_texts import AttributeText, LabelledText
from trephine.engine.erasure.affine import fit_inlp, fit_leace
from trephine.engine.erasure.bottleneck import concept_directions, concept_scores
from trephine.engine.erasure.skyline import Skyline, counts_up_to, skyline_order
from trephine.engine.erasure.tokens import (
    flattened_embeddings,
    strongest_tokens,
    token_associations,
    without_tokens,
)
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.spurious.baselines import INLP_ROUNDS, MOST_TOKENS, SURE
from trephine.engine.spurious.choosing import choose
from trephine.engine.spurious.controls import matched_features
from trephine.engine.spurious.effects import Contributions, feature_of
from trephine.engine.spurious.erasing import erased_head, fit_each
from trephine.engine.spurious.examples import Example
from trephine.engine.spurious.heads import LinearHead, fit_probe
from trephine.engine.spurious.judging import judge_features
from trephine.engine.spurious.metrics import worst_group
from trephine.engine.spurious.pairs import partners
from trephine.engine.spurious.pooling import Ids, Readout, pool_texts
from trephine.engine.spurious.settling import settle
from trephine.engine.spurious.study import Study, open_study
from trephine.engine.spurious.vectors import Twins, Vectors

COUNTS = (1, 20, 100, 500)
"""Numbers of removed features that are tried."""
Margins = list[float]
"""Per test text: above 0 is the second label; of texts in pairs the reward."""


@dataclass(kw_only=True)
class Bench:
    """One task under one seed, with pooled vectors of the untouched model, computed once."""

    hosted: HostedModel
    task: Task
    draw: Draw
    seed: int
    _plain: dict[str, Tensor] = field(default_factory=dict)

    @property
    def probe(self) -> ProbeHead:
        """The head."""
        return ProbeHead(layer=self.task.layer, pooling=self.task.pooling, pairs=self.task.pairs)

    @property
    def readout(self) -> Readout:
        """Where it reads."""
        return Readout(layer=self.task.layer, pooling=self.task.pooling)

    def ids(self, items: Sequence[Item]) -> list[Ids]:
        """Split texts."""
        return [tuple(self.hosted.encode(one.text)) for one in items]

    def pool(self, texts: Sequence[Ids], removed: Sequence[FeatureRef] = ()) -> Tensor:
        """Pool texts, `(n, d_model)`."""
        return finish(pool_texts(self.hosted, self.readout, texts, removed))

    def plain(self, split: str) -> Tensor:
        """Pooled vectors of a split of the draw."""
        if split not in self._plain:
            self._plain[split] = self.pool(self.ids(getattr(self.draw, split)))
        return self._plain[split]

    def head(self, pooled: Tensor, items: Sequence[Item]) -> LinearHead:
        """Train the head, as the product does."""
        return fit_probe(self.probe, self.readout, pooled, labels(items), self.pairs(items))

    def pairs(self, items: Sequence[Item]) -> Tensor | None:
        """Return the pairs `(n_pairs, 2)` that the head is trained on; None: it is trained on texts."""
        return partners(items) if self.task.pairs else None


def labels(items: Sequence[Item] | Sequence[Example]) -> Tensor:
    """Labels `(n,)`."""
    return torch.tensor([one.label for one in items])


def attributes(items: Sequence[Item]) -> Tensor:
    """Attributes `(n,)`."""
    return torch.tensor([one.attribute for one in items])


# --- without features ----------------------------------------------------------------------------


def original(bench: Bench) -> Margins:
    """The biased head."""
    head = bench.head(bench.plain("training"), bench.draw.training)
    return head.margin(bench.plain("test")).tolist()


def oracle(bench: Bench) -> Margins:
    """The same head trained on balanced texts, as many."""
    return bench.head(*_balanced(bench)).margin(bench.plain("test")).tolist()


def _balanced(bench: Bench) -> tuple[Tensor, list[Item]]:
    """Half of the ambiguous set, and as many of the other groups.

    Of texts in pairs whole pairs: both texts of one stand beside each other.
    """
    items, vectors = bench.draw.training, bench.plain("training")
    rows = [row for y in (0, 1) for row in (labels(items) == y).nonzero()[:, 0].tolist()[: len(items) // 4]]
    chosen = [items[row] for row in rows] + list(bench.draw.crossed)
    return torch.cat([vectors[rows], bench.plain("crossed")]), chosen


def sparing(bench: Bench) -> Margins:
    """The head of least variance within a label, with nothing forbidden: what this training does alone."""
    return _sparing(bench, bench.plain("training"), bench.draw.training)


def sparing_oracle(bench: Bench) -> Margins:
    """The same trained on the oracle's balanced texts."""
    return _sparing(bench, *_balanced(bench))


def erased(bench: Bench) -> Margins:
    """The product's erased head with every feature in place."""
    study = finish(open_study(bench.hosted, command(bench, NEURONS)))
    return _margins(finish(erased_head(study, (), "erased alone", study.everything)), bench.plain("test"))


def _sparing(bench: Bench, pooled: Tensor, items: Sequence[Item]) -> Margins:
    """Train with nothing forbidden; of pairs, left-out ones settle the threshold, as in the product."""
    nothing = torch.zeros(0, bench.hosted.info.d_model)

    def fit(seen: Vectors, factors: Sequence[float]) -> list[LinearHead | None]:
        pairs = partners(seen.texts) if bench.task.pairs else None
        return fit_each(bench.readout, seen.pooled, labels(seen.texts), nothing, factors, pairs=pairs)

    none = Twins(rows=torch.zeros(0, dtype=torch.long), vectors=pooled[:0])
    vectors = Vectors(texts=_examples(bench, items), pooled=pooled, examples=None, twins=none)
    head, _ = finish(settle(fit, vectors, seed=bench.seed, pairs=bench.pairs(items)))
    return _margins(head, bench.plain("test"))


def _examples(bench: Bench, items: Sequence[Item]) -> tuple[Example, ...]:
    """Texts as the product has them."""
    ids = bench.ids(items)
    return tuple(
        Example(
            text=one.text,
            ids=own,
            label=one.label,
            attribute=one.attribute,
            twin=None,
            environment=None,
            pair=one.pair,
        )
        for one, own in zip(items, ids, strict=True)
    )


def _margins(head: LinearHead | None, pooled: Tensor) -> Margins:
    if head is None:
        raise SystemExit("nothing but the attribute tells the labels apart")
    return head.margin(pooled).tolist()


def _erased(bench: Bench, erase: Callable[[Tensor], Tensor]) -> Margins:
    head = bench.head(erase(bench.plain("training")), bench.draw.training)
    return head.margin(erase(bench.plain("test"))).tolist()


def leace(bench: Bench) -> Margins:
    """Erase the attribute as its examples tell it, then train."""
    return _erased(bench, fit_leace(bench.plain("examples"), attributes(bench.draw.examples)))


def inlp(bench: Bench) -> Margins:
    """Project the attribute's probes out one after the other, then train."""
    found = fit_inlp(bench.plain("examples"), attributes(bench.draw.examples), rounds=INLP_ROUNDS)
    return _erased(bench, found)


def bottleneck(bench: Bench) -> Margins:
    """Train on likeness to words of the task alone."""
    texts = [tuple(bench.hosted.encode("<|im_start|>" + concept)) for concept in bench.task.concepts]
    centre = bench.plain("training").mean(0)
    directions = concept_directions(bench.pool(texts), centre)
    return _erased(bench, partial(concept_scores, directions=directions, centre=centre))


def _telling(bench: Bench) -> frozenset[int]:
    """Tokens that tell the attribute: a person's list, and the strongest of its examples."""
    found = token_associations(bench.ids(bench.draw.examples), attributes(bench.draw.examples).tolist())
    begin = bench.hosted.encode("<|im_start|>")
    listed = {
        ids[0]
        for word in bench.task.listed
        for form in (word, f" {word}", word.capitalize(), f" {word.capitalize()}")
        if len(ids := bench.hosted.encode(form)) == 1
    }
    return (strongest_tokens(found, above=SURE, at_most=MOST_TOKENS) | listed) - set(begin)


def token_deletion(bench: Bench) -> Margins:
    """Delete telling tokens everywhere, then train."""
    gone = _telling(bench)
    kept = {
        split: bench.pool([tuple(without_tokens(ids, gone)) for ids in bench.ids(getattr(bench.draw, split))])
        for split in ("training", "test")
    }
    return bench.head(kept["training"], bench.draw.training).margin(kept["test"]).tolist()


def embedding_only(bench: Bench) -> Margins:
    """Ablate telling tokens' embeddings alone, everywhere, then train."""
    flat = partial(_flat_pool, bench, _telling(bench))
    head = bench.head(flat(bench.draw.training), bench.draw.training)
    return head.margin(flat(bench.draw.test)).tolist()


def _flat_pool(bench: Bench, tokens: frozenset[int], items: Sequence[Item]) -> Tensor:
    embedding = bench.hosted.model.get_input_embeddings()

    def flatten(module: torch.nn.Embedding, given: tuple[Tensor, ...], _: Tensor) -> Tensor:
        return flattened_embeddings(module.weight, given[0], tokens)

    handle = embedding.register_forward_hook(flatten)
    try:
        return bench.pool(bench.ids(items))
    finally:
        handle.remove()


# --- with features -------------------------------------------------------------------------------


def command(bench: Bench, replacement: str) -> RemoveSpuriousFeatures:
    """What a user would ask for; the test split is not handed over."""
    names = bench.task.labels, bench.task.attributes
    return RemoveSpuriousFeatures(
        training=tuple(
            LabelledText(
                text=one.text, label=f"{one.label} {names[0][one.label]}", twin=one.twin, pair=one.pair
            )
            for one in bench.draw.training
        ),
        attribute_texts=tuple(
            AttributeText(text=one.text, attribute=f"{one.attribute} {names[1][one.attribute]}")
            for one in (() if bench.draw.training[0].twin else bench.draw.examples)
        ),
        neutral_examples=bench.task.neutral,
        decision=bench.probe,
        replacement=replacement,
        budget=RemovalBudget(
            candidates=2048,
            exact=0,
            counts=COUNTS,
            effect_texts=128,
            fit_texts=len(bench.draw.training),
            random_sets=0,
        ),
        seed=bench.seed,
    )


def removal(bench: Bench, replacement: str) -> dict[str, Margins]:
    """Ours: features gone, then a refit, then one without the attribute; as many matched random features."""
    study = finish(open_study(bench.hosted, command(bench, replacement)))
    judged = finish(judge_features(study))
    choice = finish(choose(study, judged.candidates))
    gone = [one.feature for one in choice.removed]
    spurious = [one for one in judged.candidates if one.standing is Standing.SPURIOUS]
    random = matched_features(study.space, choice.removed, spurious, judged.use, bench.seed + 100)
    texts = bench.ids(bench.draw.test)
    without, without_random = bench.pool(texts, gone), bench.pool(texts, random)
    refit = _trained_again(bench, study, random)
    # Of as many texts as the original and all that is trained again: the features alone are to differ.
    head = bench.head(bench.plain("training"), bench.draw.training)
    return {
        "removed": head.margin(without).tolist(),
        "removed, refitted": choice.final.plain.margin(without).tolist(),
        "removed, erased": choice.head.margin(without).tolist(),
        "random": head.margin(without_random).tolist(),
        "random, refitted": refit.margin(without_random).tolist(),
        "_counts": [len(gone), len(spurious), study.space.count],
    }


def _trained_again(bench: Bench, study: Study, removed: Sequence[FeatureRef]) -> LinearHead:
    """Train the head on as many texts as the product's removal does; with nothing gone, the original."""
    if not removed:
        return bench.head(bench.plain("training"), bench.draw.training)
    texts = [one.ids for one in study.everything]
    return study.trained(finish(study.pool(texts, removed, "trained again")), study.everything)


def skyline(bench: Bench, replacement: str) -> dict[str, Margins]:
    """Features chosen by balanced texts, the head trained again: how far this dictionary can go."""
    study = finish(open_study(bench.hosted, command(bench, replacement)))
    items = bench.draw.validation
    order = _skyline_order(study, bench, items)
    ranked = [feature_of(study.space, node) for node in order.tolist()]
    texts, tried = bench.ids(items), counts_up_to(len(ranked), COUNTS)
    heads = [_trained_again(bench, study, ranked[:count]) for count in tried]
    worst = [
        worst_group(head.decide(bench.pool(texts, ranked[:count])), labels(items), attributes(items))
        for head, count in zip(heads, tried, strict=True)
    ]
    chosen = Skyline(counts=tried, worst_groups=tuple(worst)).chosen
    vectors = bench.pool(bench.ids(bench.draw.test), ranked[:chosen])
    return {
        "skyline": heads[tried.index(chosen)].margin(vectors).tolist(),
        "_skyline": [chosen, len(ranked)],
    }


def _skyline_order(study: Study, bench: Bench, items: Sequence[Item]) -> Tensor:
    measure = Contributions(study.hosted, study.space, study.readout, study.command.estimator, 1)
    (found,) = finish(measure.of(bench.ids(items), [study.head.direction]))
    return skyline_order(found, labels(items), attributes(items))


PLAIN_ARMS: dict[str, Callable[[Bench], Margins]] = {
    "original": original,
    "token deletion": token_deletion,
    "embedding only": embedding_only,
    "LEACE": leace,
    "INLP": inlp,
    "concept bottleneck": bottleneck,
    "oracle": oracle,
    "least variance": sparing,
    "erased alone": erased,
    "oracle, least variance": sparing_oracle,
}
FEATURE_ARMS: dict[str, Callable[[Bench, str], dict[str, Margins]]] = {
    "removal": removal,
    "skyline": skyline,
}
