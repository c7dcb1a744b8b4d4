"""Edges of global circuits against plain sums over tokens: virtual weights, co-activation, ends."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.global_texts import request
from tests.resident_sets import resident_set
from trephine.domain.global_circuits import GrowthStart
from trephine.domain.global_figures import EdgeWeighting
from trephine.domain.sites import NEURONS, Site, SiteKind
from trephine.domain.targets import DirectionValue
from trephine.engine.attribution.readouts import half_rule
from trephine.engine.features.deembedding import token_embeddings
from trephine.engine.global_circuits import texts as reading
from trephine.engine.global_circuits.activity import measure_activity
from trephine.engine.global_circuits.coactivation import Ends, measure_coactivation, probabilities
from trephine.engine.global_circuits.dictionaries import Chosen
from trephine.engine.global_circuits.discovery import prepared
from trephine.engine.global_circuits.measured import measured_edges
from trephine.engine.global_circuits.texts import pack_texts, run_pack
from trephine.engine.global_circuits.virtual import virtual_weights
from trephine.engine.models.quanta import finish
from trephine.engine.replacements.sets import opened

LOGITS = (5, 9, 300)


class Scene:
    """Everything measured of some features of a tiny model, and the texts one by one."""

    def __init__(self, hosted, name, command=None) -> None:
        self.command = command or request(10, replacement=name)
        self.study = prepared(hosted, self.command)
        self.hosted, space = hosted, self.study.space
        every = torch.arange(space.count)
        self.chosen = Chosen(space=space, features=every[:: max(1, space.count // 15)].contiguous())
        packs = pack_texts(self.study.training, hosted.model.device)
        self.activity = finish(measure_activity(hosted, space, packs, self.study.meter))
        self.virtual = finish(virtual_weights(hosted, self.chosen, self.study.boundary))
        tokens = tuple(sorted({token for ids in self.study.training for token in ids}))[:7]
        self.ends = Ends(tokens=tokens, logits=LOGITS)
        weighting = self.command.weighting
        self.sums = finish(
            measure_coactivation(hosted, self.chosen, packs, self.ends, weighting, self.study.meter)
        )
        self.edges = measured_edges(
            hosted,
            self.chosen,
            self.ends,
            self.study.readouts,
            self.virtual,
            self.activity,
            self.sums,
            weighting,
        )

    def plain(self, half=None):
        """The same by plain sums over single texts: edges, and those of tokens, logits and the direction."""
        texts = self._by_text if half is None else self._by_text[half::2]
        total, bare, below, above, mass, direct, rows = (sum(parts) for parts in zip(*texts, strict=True))
        return total / below, bare / below, above / mass, direct / rows

    @cached_property
    def _by_text(self):
        """Sums of each text: of the whole and of both halves they are the same."""
        return [self._sums(ids) for ids in self.study.training]

    def _sums(self, ids):
        """What `plain` divides, summed over all positions `p` of a text but the first."""
        (pack,) = pack_texts([ids], torch.device("cpu"))
        operators, kept = run_pack(self.hosted, pack), slice(1, len(ids))
        a, size, writes, readers = self._at(operators, kept)
        twera = self.command.weighting is EdgeWeighting.TWERA
        weight = size if twera else (size > 0).double()
        embedded = token_embeddings(self.hosted.architecture)[list(ids[kept])]
        total, bare = [], []
        for target, (norm, direction) in enumerate(readers):
            layer = int(self.chosen.layer[target])
            below = [sum((w for at, w in one.items() if at < layer), torch.zeros(32)) for one in writes]
            effect = (norm.push(torch.stack(below)[:, None], kept) * direction).sum(-1).double()
            total.append(torch.einsum("sp,ps,p->s", effect, a, weight[:, target]))
            bare.append((norm.push(embedded, kept) * direction).sum(-1).double() * weight[:, target])
        here = (torch.tensor(ids[kept])[:, None] == torch.tensor(self.ends.tokens)).double()
        p = probabilities(self.hosted, operators.final[kept])[:, list(LOGITS)].double()
        return (
            torch.stack(total, 1),
            here.T @ torch.stack(bare, 1),
            (size if twera else torch.ones_like(size)).sum(0),
            torch.einsum("spl,ps,pl->sl", self._pushed(operators, writes, kept), a, p),
            p.sum(0),
            a.sum(0),
            len(a),
        )

    def _pushed(self, operators, writes, kept):
        """By how much a unit of each feature moves each logit at each position."""
        architecture = self.hosted.architecture
        whole = torch.stack([sum(one.values()) for one in writes])
        wanted = architecture.W_U[list(LOGITS)] - architecture.mean_unembedding
        return (operators.final_norm.push(whole[:, None], kept) @ wanted.T).double()

    def _at(self, operators, kept):
        """Activations as written, their sizes, what each writes by layer, and what reads the stream."""
        a, size, writes, readers = [], [], [], []
        for feature in self.chosen.features.tolist():
            place, index = self.chosen.space.split(torch.tensor([feature]))
            info, index = self.chosen.space.infos[int(place)], int(index)
            layer = operators.layers[info.layer]
            with opened(self.hosted, self.chosen.space.name, [info.layer]) as resident:
                found = resident[info.layer]
                by_layer = {site.layer: found.decoders([index], site)[0] for site in info.sites_out}
                if self.chosen.space.name == NEURONS:
                    value, post = layer.activation[kept, index].double(), layer.mlp_post_norm
                    gate, read = half_rule(layer)
                    mlp = layer.block.mlp
                    direction = read[kept, index, None] * mlp.W_in[index]
                    if gate is not None:
                        direction = direction + gate[kept, index, None] * mlp.W_gate[index]
                    scale_out = 1.0 if post is None else post.scale[kept]
                else:
                    code = found.encode(layer.mlp_norm.clean[kept])
                    value, scale_out = code.activations[:, index].double(), code.scale_out
                    direction = found.encoders([index]) / code.scale
            a.append((value[:, None] * scale_out)[:, 0])
            size.append(value.abs())
            writes.append(by_layer)
            readers.append((layer.mlp_norm, direction))
        return torch.stack(a, 1), torch.stack(size, 1), writes, readers


def agreed(whole, scene, part):
    """What is left where the halves have one sign."""
    halves = [scene.plain(half)[part] for half in (0, 1)]
    return whole.masked_fill(halves[0].sign() * halves[1].sign() <= 0, 0.0)


def close(found, expected):
    """Equal within float32 of the largest."""
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["relu", "clt", NEURONS])
def test_edges_are_means_of_direct_effects(family, kind):
    """Every pair of features, of every family, tokens and logits too."""
    hosted = tiny_hosted(family)
    scene = Scene(hosted, kind if kind == NEURONS else resident_set(hosted, kind))
    whole, bare, above, _ = scene.plain()
    assert int((scene.edges.weight != 0).sum()) > 5
    close(scene.edges.weight, agreed(whole, scene, 0))
    close(scene.edges.from_tokens, agreed(bare, scene, 1))
    close(scene.edges.to_logits, agreed(above, scene, 2))
    assert bool((scene.edges.weight.nonzero() @ torch.tensor([-1, 1]) > 0).all())  # from the bottom up


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "abs_topk", "skip", "normalised", "denormalised"])
def test_every_kind_of_transcoder(kind):
    """Thresholds, sparsity by rank, signs, skip paths and scales of input and output."""
    hosted = tiny_hosted("llama")
    scene = Scene(hosted, resident_set(hosted, kind))
    close(scene.edges.weight, agreed(scene.plain()[0], scene, 0))


def test_expected_effects_count_every_token():
    """ERA divides by all tokens, and weighs those on which the target is active alike."""
    hosted = tiny_hosted("llama")
    command = request(10, replacement=resident_set(hosted, "relu"), weighting=EdgeWeighting.ERA)
    scene = Scene(hosted, "set", command)
    close(scene.edges.weight, agreed(scene.plain()[0], scene, 0))


@pytest.mark.parametrize(
    ("kind", "layer"), [("resid_pre", 1), ("resid_mid", 1), ("resid_post", 1), ("resid_post", 2)]
)
def test_directions_read_what_is_written_below(kind, layer):
    """Above its site nothing reaches it; after the last block everything does."""
    hosted = tiny_hosted("llama")
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    site = Site(kind=SiteKind(kind), layer=layer)
    start = GrowthStart(direction=DirectionValue(site=site, vector=tuple(vector.tolist())))
    scene = Scene(hosted, "set", request(10, replacement=resident_set(hosted, "relu"), start=start))
    last = layer if kind == "resid_post" else layer - 1
    mean = scene.plain()[3]
    for number, feature in enumerate(scene.chosen.features.tolist()):
        place, index = scene.chosen.space.split(torch.tensor([feature]))
        with opened(hosted, "set", [int(place)]) as resident:
            found = resident[int(place)]
            written = found.decoders([int(index)], found.info.sites_out[0])[0]
        expected = float(mean[number]) * float(written @ vector) if int(place) <= last else 0.0
        assert float(scene.edges.to_direction[number]) in (0.0, pytest.approx(expected, rel=1e-3, abs=1e-6))
        if int(place) > last:
            assert float(scene.edges.to_direction[number]) == 0.0
    assert bool((scene.edges.to_direction != 0).any())


def test_packs_do_not_mix_texts(monkeypatch):
    """Whether texts run one by one or together, the sums are the same."""
    hosted = tiny_hosted("qwen3")
    name = resident_set(hosted, "relu")
    together = Scene(hosted, name)
    monkeypatch.setattr(reading, "PACK_TOKENS", 1)
    alone = Scene(hosted, name)
    close(together.edges.weight, alone.edges.weight.double())
    close(together.sums.logits.sum(0), alone.sums.logits.sum(0).double())
    assert torch.equal(together.sums.rows, alone.sums.rows)


def test_shares_are_of_the_target_itself():
    """TWERA: over the target's weighted mean; ERA: over its mean."""
    hosted = tiny_hosted("llama")
    name = resident_set(hosted, "relu")
    scene = Scene(hosted, name)
    rms, mean = scene.activity.rms[scene.chosen.features], scene.activity.mean_size[scene.chosen.features]
    torch.testing.assert_close(
        scene.edges.unit.double(), rms**2 / mean.clamp_min(1e-30), rtol=1e-4, atol=1e-6
    )
    other = Scene(hosted, name, replace(scene.command, weighting=EdgeWeighting.ERA))
    torch.testing.assert_close(other.edges.unit.double(), mean, rtol=1e-4, atol=1e-6)
