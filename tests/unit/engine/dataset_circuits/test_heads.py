"""Attention heads and error terms as nodes: against patches by hand, small steps, and autograd."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.dataset_scene import Scene, plain_metric, some_nodes
from tests.resident_sets import resident_set
from trephine.domain.dataset_circuits import ERRORS, HEADS, Estimator, NodeAblation, PositionRule
from trephine.domain.errors import (
    InvalidRequestError,
    LayerOutOfRangeError,
    ReplacementNotFoundError,
    UnsupportedOptionError,
)
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import NEURONS, Site, SiteKind
from trephine.engine.dataset_circuits.ablated import AblatedModel, keeping
from trephine.engine.dataset_circuits.edges import find_edges
from trephine.engine.dataset_circuits.estimators import node_gradients
from trephine.engine.dataset_circuits.patches import baseline
from trephine.engine.dataset_circuits.space import node_space
from trephine.engine.dataset_circuits.sweeping import Gradient
from trephine.engine.models.attention import PatternTape, pattern_tape
from trephine.engine.models.quanta import finish
from trephine.engine.models.sites import touching


def heads_of(hosted, ids):
    """What the output projection of every block reads on one context, `(n_pos, n_heads, d_head)`."""
    kept = {}
    sites = [Site(kind=SiteKind.ATTN_Z, layer=block.layer) for block in hosted.architecture.blocks]
    touches = {site: partial(lambda site, x: kept.update({site.layer: x[0].clone()}), site) for site in sites}
    with torch.inference_mode(), touching(hosted.architecture, touches):
        hosted.model(input_ids=torch.tensor([ids]), use_cache=False)
    return [kept[n].unflatten(-1, (hosted.architecture.n_heads, -1)) for n in sorted(kept)]


def put_head(position, head, value, x):
    """Set one head's mixed values at one position of `x (n_pos, n_heads * d_head)`."""
    x.view(len(x), -1, len(value))[position, head] = value


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_patching_of_heads_is_a_patch_by_hand(family):
    """A hook on the plain model's output projection, one context at a time; neurons stand beside."""
    scene = Scene(tiny_hosted(family, dtype=torch.float64), NEURONS, HEADS)
    chosen = [k for k, place in enumerate(scene.space.places) if place.owner == HEADS]
    nodes = torch.tensor([scene.space.offsets[k] + n for k in chosen for n in (0, 3)])
    found = scene.estimate(Estimator.EXACT, nodes=nodes)
    places, positions, indices = (column.tolist() for column in scene.space.split(nodes))
    for number, context in enumerate(scene.contexts):
        plain, twin = plain_metric(scene.hosted, context), heads_of(scene.hosted, context.twin)
        for node, place, position, head in zip(nodes.tolist(), places, positions, indices, strict=True):
            layer = scene.space.layers[place]
            out = scene.hosted.architecture.blocks[layer].attention.out
            write = partial(put_head, position, head, twin[layer][position, head])
            change = plain_metric(scene.hosted, context, out, write) - plain
            assert found[number, node] == pytest.approx(float(change), abs=1e-6)
    assert found[:, nodes].abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_attribution_patching_of_heads_is_the_limit_of_small_patches(family):
    """Central differences; a head's effect is the sum over its mixed values."""
    scene = Scene(tiny_hosted(family, dtype=torch.float64), HEADS)
    estimate = scene.estimate(Estimator.ATTRIBUTION_PATCHING)
    nodes = some_nodes(estimate)
    scale = float(estimate[:, nodes].abs().max())
    assert scale > 1e-4
    assert torch.allclose(scene.slope(nodes)[:, nodes], estimate[:, nodes], atol=5e-3 * scale)


def test_the_limit_holds_for_error_terms_and_a_mixture_of_sets():
    """Transcoders, dictionaries of attention outputs, and the error terms of both."""
    hosted = tiny_hosted("llama", dtype=torch.float64)
    names = mixture(hosted)
    scene = Scene(hosted, *names, ERRORS, rule=PositionRule.SUMMED)
    assert {place.owner for place in scene.space.places} == {*names, *(f"{name}:errors" for name in names)}
    estimate = scene.estimate(Estimator.ATTRIBUTION_PATCHING)
    errors = [scene.space.offsets[k] for k, p in enumerate(scene.space.places) if p.unit > 1]
    nodes = torch.cat([some_nodes(estimate), torch.tensor(errors)])
    scale = float(estimate[:, nodes].abs().max())
    assert float(estimate[:, errors].abs().min()) > 1e-5
    assert torch.allclose(scene.slope(nodes)[:, nodes], estimate[:, nodes], atol=1e-2 * scale)


def mixture(hosted):
    """A set of transcoders and a set of dictionaries of attention outputs beside a model."""
    return resident_set(hosted, "skip", name="coders"), resident_set(hosted, "attn_out", name="attention")


def test_integrated_gradients_of_heads_sum_to_the_change_of_a_layer():
    """All heads of a layer move together; the rule of rectangles errs by 1 / steps, extrapolated away."""
    scene = Scene(tiny_hosted("llama", dtype=torch.float64), HEADS, rule=PositionRule.SUMMED)
    coarse, fine = (scene.estimate(Estimator.INTEGRATED_GRADIENTS, steps=n) for n in (16, 32))
    effects = 2 * fine - coarse
    model = AblatedModel(scene.hosted, scene.space, ErrorTerm.LIVE)
    at = scene.run.pack.clean.position[:, None]

    def whole_layer(place, live):
        return torch.where(at >= 1, scene.run.replaced[place].activations, live)

    plain = scene.run.pack.metric(scene.run.operators.final)
    for place in range(3):
        change = model.metric(scene.run.pack, whole_layer, places=(place,)) - plain
        summed = scene.space.part(effects, place).sum((1, 2)).double()
        assert torch.allclose(summed, change.double(), atol=0.02 * float(change.abs().max()))


def test_relp_of_heads_is_the_gradient_of_the_frozen_network():
    """Autograd, with norm scales, gates and patterns constant and gated neurons split in half."""
    scene = Scene(tiny_hosted("llama", dtype=torch.float64), HEADS)
    effects = scene.estimate(Estimator.RELP)
    for number, context in enumerate(scene.contexts):
        gradients = frozen_gradients(scene.hosted, context)
        clean, twin = (heads_of(scene.hosted, ids) for ids in (context.ids, context.twin))
        for place, gradient in enumerate(gradients):
            by_head = gradient.unflatten(-1, clean[place].shape[1:])
            expected = (by_head * (twin[place] - clean[place])).sum(-1)[1:]
            assert torch.allclose(scene.space.part(effects[number], place), expected.float(), atol=1e-6)


def frozen_gradients(hosted, context):
    """The metric's derivative by what every output projection reads, `(n_pos, n_heads * d_head)` each."""
    with torch.inference_mode(), pattern_tape(PatternTape(record=True)) as tape:
        hosted.model(input_ids=torch.tensor([context.ids]), use_cache=False)
    imposed = PatternTape(imposed={n: p.clone() for n, p in tape.recorded.items()})
    final, kept, handles = [], [], []

    def scale_free(module, args, output):
        x = args[0]
        return output.detach() / x.detach().where(x != 0, 1) * x if x.requires_grad else output

    def keep(_module, args):
        kept.append(args[0].detach().requires_grad_() if not kept else args[0])
        kept[-1].retain_grad()
        return (kept[-1], *args[1:])

    def halved(mlp, args):
        g, u = mlp.gate_proj(args[0]), mlp.up_proj(args[0])
        phi = mlp.act_fn(g).detach()
        half = 0.5 * (phi / g.detach()) * u.detach() * g + 0.5 * phi * u
        return mlp.down_proj(half)

    with torch.enable_grad(), pattern_tape(imposed):
        for block in hosted.architecture.blocks:
            for norm in (block.attention_norm, block.mlp_norm):
                handles.append(norm.module.register_forward_hook(scale_free))
            handles.append(block.attention.out.register_forward_pre_hook(keep))
            handles.append(block.mlp.module.register_forward_hook(lambda m, args, _: halved(m, args)))
        norm = hosted.architecture.final_norm.module
        handles.append(norm.register_forward_hook(scale_free))
        handles.append(norm.register_forward_hook(lambda _, __, output: final.append(output)))
        try:
            hosted.model(input_ids=torch.tensor([context.ids]), use_cache=False)
            (final[0][0, -1] * context.direction).sum().backward()
        finally:
            for handle in handles:
                handle.remove()
            hosted.model.zero_grad()
    return [each.grad[0] for each in kept]


@pytest.mark.parametrize("rule", list(PositionRule))
def test_ablated_heads_are_zeroed_by_hand(rule):
    """Every second head, at every position but the first; MLPs have no nodes and stay as they are."""
    scene = Scene(tiny_hosted("llama", dtype=torch.float64), HEADS, rule=rule)
    _, _, indices = scene.space.split(torch.arange(scene.space.count))
    zeros = zeros_of(scene)
    change = keeping(scene.space, scene.run.pack, indices % 2 == 0, zeros)
    found = AblatedModel(scene.hosted, scene.space, ErrorTerm.LIVE).metric(scene.run.pack, change)
    for number, context in enumerate(scene.contexts):
        handles = [
            block.attention.out.register_forward_pre_hook(partial(_odd_heads_out, scene.hosted))
            for block in scene.hosted.architecture.blocks
        ]
        try:
            expected = plain_metric(scene.hosted, context)
        finally:
            for handle in handles:
                handle.remove()
        assert found[number] == pytest.approx(float(expected), abs=1e-6)
        assert abs(float(found[number] - plain_metric(scene.hosted, context))) > 1e-4


def _odd_heads_out(hosted, _module, args):
    x = args[0].clone()
    x.view(*x.shape[:2], hosted.architecture.n_heads, -1)[:, 1:, 1::2] = 0
    return (x, *args[1:])


def zeros_of(scene):
    """What zero ablation puts everywhere."""
    return baseline(
        scene.space, scene.run.pack, NodeAblation.ZERO, means=(), twins=None, like=scene.run.clean
    )


def test_error_nodes_are_live_where_kept_and_gone_where_not():
    """All kept is the model; features kept and errors zeroed is the error term `drop`, another way."""
    hosted = tiny_hosted("llama", dtype=torch.float64)
    name = resident_set(hosted, "skip")
    scene = Scene(hosted, name, ERRORS)
    model, everything = (
        AblatedModel(hosted, scene.space, ErrorTerm.LIVE),
        torch.ones(scene.space.count).bool(),
    )
    plain = scene.run.pack.metric(scene.run.operators.final)
    zeros = zeros_of(scene)

    def metric(circuit):
        return model.metric(scene.run.pack, keeping(scene.space, scene.run.pack, circuit, zeros))

    assert torch.allclose(metric(everything), plain, atol=1e-9)
    places, _, _ = scene.space.split(torch.arange(scene.space.count))
    features = torch.tensor([place.unit == 1 for place in scene.space.places])[places]
    dropping = Scene(hosted, name)
    dropped = tuple(
        type(state)(activations=state.activations, errors={place.outputs[0]: torch.zeros(1, 1).double()})
        for state, place in zip(dropping.run.clean, dropping.space.places, strict=True)
    )
    other = AblatedModel(hosted, dropping.space, ErrorTerm.DROP).metric(
        dropping.run.pack, lambda _, live: live, replaced=_at_rows(dropped, len(plain.new_zeros(12)))
    )
    assert torch.allclose(metric(features), other, atol=1e-9)
    assert (metric(features) - plain).abs().max() > 1e-4


def _at_rows(states, rows):
    return tuple(
        type(s)(activations=s.activations, errors={k: e.expand(rows, 1) for k, e in s.errors.items()})
        for s in states
    )


@pytest.mark.parametrize(
    ("names", "error", "field"),
    [
        ((NEURONS, "coders"), UnsupportedOptionError, "beside[0]"),
        ((HEADS, "coders", "attention"), UnsupportedOptionError, "beside[1]"),
        ((NEURONS, ERRORS), InvalidRequestError, "beside[0]"),
        ((NEURONS, "nothing"), ReplacementNotFoundError, "beside[0]"),
    ],
)
def test_what_cannot_stand_together_is_refused(names, error, field):
    """One part of the stream has one owner; the field says which name is too many."""
    hosted = tiny_hosted("llama")
    mixture(hosted)
    with pytest.raises(error) as caught:
        node_space(hosted, names, None, PositionRule.SUMMED, 0, ErrorTerm.LIVE)
    assert caught.value.context["field"] == field


def test_layers_must_be_covered_by_some_name():
    """A set of one layer, heads of all: layer 1 has heads only, and layer 99 does not exist."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "relu", layers=(0,), name="one")
    space = node_space(hosted, ("one", HEADS), (0, 1), PositionRule.SUMMED, 0, ErrorTerm.LIVE)
    assert [(place.owner, place.layer) for place in space.places] == [(HEADS, 0), ("one", 0), (HEADS, 1)]
    with pytest.raises(LayerOutOfRangeError, match=r"they have 0\. Name some of these") as caught:
        node_space(hosted, ("one",), (0, 1), PositionRule.SUMMED, 0, ErrorTerm.LIVE)
    assert caught.value.context["field"] == "layers"
    with pytest.raises(LayerOutOfRangeError):
        node_space(hosted, ("one", HEADS), (99,), PositionRule.SUMMED, 0, ErrorTerm.LIVE)


EDGE_ENDS = [
    ((HEADS, 0), (NEURONS, 1)), ((HEADS, 0), (HEADS, 1)), ((NEURONS, 0), (HEADS, 2)),
    ((HEADS, 1), (NEURONS, 1)), ((NEURONS, 0), (NEURONS, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), EDGE_ENDS)
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_edges_are_what_passes_with_everything_between_held(family, source, target):
    """Central differences, all other neurons and heads held clean; the model's softmax rounds in float32."""
    hosted = tiny_hosted(family, dtype=torch.float64)
    scene = Scene(hosted, NEURONS, HEADS, rule=PositionRule.SUMMED)
    nodes = torch.tensor([strongest(scene, end) for end in (source, target)])
    edges = finish(
        find_edges(
            hosted, scene.space, [scene.run.pack], nodes, patch=NodeAblation.RESAMPLE, means=(), stage=""
        )
    )
    found = {(edge.source, edge.target): edge.weight for edge in edges}
    gradients = finish(node_gradients(hosted, scene.space, scene.run, Gradient()))
    expected = float(held_response(scene, nodes, gradients))
    # Of parallel blocks the branches do not see each other, and the first MLP reads the token alone.
    assert abs(expected) > 1e-7 or (family == "gpt_neox" and expected == 0)
    assert found.get((0, 1), 0.0) * len(scene.contexts) == pytest.approx(expected, rel=1e-2, abs=1e-9)


def strongest(scene, end):
    """The node of an owner and layer that has the largest effect."""
    place = next(k for k, p in enumerate(scene.space.places) if (p.owner, p.layer) == end)
    effects = scene.estimate(Estimator.ATTRIBUTION_PATCHING).abs().sum(0)
    return scene.space.offsets[place] + int(scene.space.part(effects, place).argmax())


def held_response(scene, nodes, gradients, step=1e-2):
    """What the source's patch changes in the target, times the metric's gradient there, per whole way."""
    (source, target), _, (s, t) = (column.tolist() for column in scene.space.split(nodes))
    space, run = scene.space, scene.run
    columns = slice(s * space.places[source].unit, (s + 1) * space.places[source].unit)
    at = run.pack.clean.position >= 1
    read = {}

    def change(way, place, live):
        if place == target:
            read[way] = live.clone()
            return live
        new = run.clean[place].activations.clone()
        if place == source:
            new[at, columns] += way * run.difference(place)[at, columns]
        return new

    model = AblatedModel(scene.hosted, space, ErrorTerm.LIVE)
    for way in (step, -step):
        model.metric(run.pack, partial(change, way))
    unit = space.places[target].unit
    moved = (gradients[target] * (read[step] - read[-step]))[at] / (2 * step)
    return moved[:, t * unit : (t + 1) * unit].sum()
