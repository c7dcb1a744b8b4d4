"""Effects of error terms are what they write times the real model's gradient; of tokens, shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.builders import tiny_hosted
from tests.resident_sets import NAME, reside, resident_set, sae
from trephine.app.circuits.pruning import numbers
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import Circuit, DiscoverCircuit, NodeKind
from trephine.domain.error_sites import error_site
from trephine.domain.sites import NEURONS, Site, SiteKind
from trephine.domain.targets import AttentionScore, DirectionValue, FeatureValue, GraphTarget, TopLogits
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.places import place_of
from trephine.engine.attribution.targets import Explained, Gauge, SiteGauge
from trephine.engine.graphs.actives import ActiveFeatures, activate
from trephine.engine.graphs.discover import Question, discover_circuit
from trephine.engine.graphs.effects import effects_on
from trephine.engine.graphs.open_layers import open_layers
from trephine.engine.graphs.target_kinds import explained
from trephine.engine.models.quanta import finish
from trephine.engine.models.sites import touching

PROMPT = "When Mary went to the store John gave a drink to"
EMBED = Site(kind=SiteKind.EMBED, layer=0)
FAMILIES = ("llama", "gpt2", "gemma2", "qwen3", "gpt_neox")
VECTOR = tuple(1.0 / (place + 1) * (-1) ** place for place in range(32))
BESIDE = "beside"


def at(kind: SiteKind, layer: int) -> Site:
    """A site."""
    return Site(kind=kind, layer=layer)


def mixture(hosted: Any) -> None:
    """Attention's dictionaries, one transcoder with a skip path, and neurons in the other layers."""
    resident_set(hosted, "skip", layers=(1,))
    resident_set(hosted, "attn_out", name=BESIDE)


def before(hosted: Any) -> None:
    """Dictionaries on what blocks read."""
    reside(hosted, [sae(hosted, at(SiteKind.RESID_PRE, layer)) for layer in (0, 2)])


SETS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "clt": (lambda hosted: resident_set(hosted, "clt"), (NAME,)),
    "partial": (lambda hosted: resident_set(hosted, "jumprelu", layers=(1,)), (NAME,)),
    "denormalised": (lambda hosted: resident_set(hosted, "denormalised"), (NAME,)),
    "stream": (lambda hosted: resident_set(hosted, "resid_post"), (NAME,)),
    "before": (before, (NAME,)),
    "embed": (lambda hosted: reside(hosted, [sae(hosted, EMBED)]), (NAME,)),
    "mlp_out": (lambda hosted: reside(hosted, [sae(hosted, at(SiteKind.MLP_OUT, 1))]), (NAME,)),
    "middle": (lambda hosted: reside(hosted, [sae(hosted, at(SiteKind.RESID_MID, 1))]), (NAME,)),
    "mixture": (mixture, (NAME, BESIDE, NEURONS)),
}
TARGETS: tuple[tuple[GraphTarget, tuple[int, ...]], ...] = (
    (LogitTarget(token=" Mary", against=" John"), (2, -1)),
    (TopLogits(limit=3, mass=1.0), (4, -1)),
    (DirectionValue(site=at(SiteKind.RESID_PRE, 0), vector=VECTOR), (3,)),
    (DirectionValue(site=at(SiteKind.RESID_POST, 1), vector=VECTOR), (5, -1)),
    (AttentionScore(layer=2, head=1, key=5), (7, -1)),
    (AttentionScore(layer=0, head=2, key=3), (3, 6)),
)
CASES = [
    (family, name)
    for family in FAMILIES
    for name in SETS
    if family != "gpt_neox" or name not in ("middle", "mixture")  # parallel blocks have no such sites
]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def gradients(hosted: Any, ids: Sequence[int], what: Explained, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Derivatives `(n_pos, d_model)` of a quantity by what stands at sites."""
    shape = (len(ids), hosted.info.d_model)
    arrived, written = {}, {}
    moves = {site: torch.zeros(shape, requires_grad=True) for site in sites}
    start = torch.zeros(shape, requires_grad=True)  # below every target, so that there is a graph

    def begin(x: Tensor) -> None:
        x += start

    def touch(site: Site, x: Tensor) -> None:
        arrived[site] = x[0].clone()
        if site in moves:
            x += moves[site]
        written[site] = x[0].clone()

    read = [target.gauge.site for target in what.targets if target.gauge.site is not None]
    touches = {site: partial(touch, site) for site in {*sites, *read}}
    with touching(hosted.architecture, {EMBED: begin}), touching(hosted.architecture, touches):
        logits = hosted.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    quantity = sum(
        target.about.share * _measured(target.gauge, arrived, written, logits) for target in what.targets
    )
    by_site = torch.autograd.grad(quantity, list(moves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(moves, by_site, strict=True))


def _measured(
    gauge: Gauge, arrived: dict[Site, Tensor], written: dict[Site, Tensor], logits: Tensor
) -> Tensor:
    if gauge.site is None:
        return gauge.measure(logits[gauge.position])
    if isinstance(gauge, SiteGauge):  # its vector was made where nothing is recorded
        gauge = replace(gauge, vector=gauge.vector.clone())
    # Attention reads what a dictionary wrote, a direction what is there before it does.
    return gauge.measure((written if gauge.reads_changed else arrived)[gauge.site])


def reads_below_a_dictionary(gauge: Gauge, active: ActiveFeatures) -> bool:
    """True if a direction before a block is read below a dictionary on it: a hook there reads above it."""
    site = gauge.site
    if site is None or gauge.reads_changed:
        return False
    return site.kind is SiteKind.RESID_PRE and place_of(site) in active.cuts


def agree(found: Tensor, expected: Tensor, rounding: float = 0.0) -> None:
    """Rounding alone apart; where terms cancel, as behind a norm they do, it is theirs."""
    smallest = max(2e-5 * float(expected.abs().max()), rounding)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=smallest + 1e-8)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_effects_are_what_is_written_times_the_real_gradient(family, name):
    """Every error term, position 0 and uncovered MLPs among them, for every kind of target."""
    build, sets = SETS[name]
    hosted = tiny_hosted(family)
    build(hosted)
    ids = hosted.encode(PROMPT)
    operators = capture(hosted.model, hosted.architecture, ids)
    active = finish(activate(hosted, operators, open_layers(hosted, sets)))
    targets = TARGETS if name != "clt" else (*TARGETS, (FeatureValue(layer=2, index=5), (4, -1)))
    for target, positions in targets:
        asked = DiscoverCircuit(
            prompt=PROMPT, target=target, positions=positions, replacement=sets[0], beside=sets[1:]
        )
        what = explained(hosted, operators, Question(command=asked, ids=ids), active)
        if any(reads_below_a_dictionary(target.gauge, active) for target in what.targets):
            continue
        effects = finish(effects_on(hosted, operators, active, what.cotangents(live=True)))
        by_site = gradients(hosted, ids, what, active.error_sites)
        terms = torch.cat([active.errors[site] * by_site[site] for site in active.error_sites])
        agree(effects.errors, terms.sum(-1), 1e-6 * float(terms.abs().sum(-1).max()))


def circuit(hosted: Any, sets: tuple[str, ...], nodes: int, layers: tuple[int, ...] | None = None) -> Circuit:
    """A circuit with so many features."""
    return finish(
        discover_circuit(
            hosted,
            DiscoverCircuit(
                prompt=PROMPT,
                target=TARGETS[0][0],
                replacement=sets[0],
                beside=sets[1:],
                layers=layers,
                max_feature_nodes=nodes,
                verify_nodes=0,
            ),
        )
    )


@pytest.mark.parametrize("name", ["clt", "stream", "mixture"])
def test_effects_do_not_depend_on_the_number_of_nodes(name):
    """An error or token that two graphs of one prompt have has one effect."""
    build, sets = SETS[name]
    hosted = tiny_hosted("llama")
    build(hosted)
    few, many = (
        {
            (node.kind, node.layer, node.position, error_site(node)): node.effect
            for node in circuit(hosted, sets, count).nodes
            if node.kind in (NodeKind.ERROR, NodeKind.TOKEN)
        }
        for count in (5, 300)
    )
    common = few.keys() & many.keys()
    assert len(common) > 12
    assert [few[key] for key in common] == [many[key] for key in common]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_of_neurons_shows_the_same_gradient(family):
    """Opaque MLPs go by it as neurons do."""
    hosted = tiny_hosted(family)
    found = circuit(hosted, (NEURONS,), 60, layers=(0, 2))
    ids = hosted.encode(PROMPT)
    operators = capture(hosted.model, hosted.architecture, ids)
    asked = DiscoverCircuit(prompt=PROMPT, target=TARGETS[0][0])
    what = explained(hosted, operators, Question(command=asked, ids=ids))
    opaque = at(SiteKind.MLP_OUT, 1)
    by_site = gradients(hosted, ids, what, [opaque])
    errors = (operators.layers[1].mlp_out * by_site[opaque]).sum(-1)
    nodes = [node for node in found.nodes if node.kind is NodeKind.ERROR]
    assert nodes
    agree(torch.tensor([node.effect for node in nodes]), errors[[node.position for node in nodes]])


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_have_one_share_over_sets_and_over_neurons(family):
    """What a token does along all paths through the model's MLPs asks for no set; notes say what it is."""
    hosted = tiny_hosted(family)
    SETS["clt"][0](hosted)
    over_sets, over_neurons = (circuit(hosted, sets, 40) for sets in ((NAME,), (NEURONS,)))
    shares = [
        {node.position: node.effect for node in found.nodes if node.kind is NodeKind.TOKEN}
        for found in (over_sets, over_neurons)
    ]
    assert shares[0] == shares[1]
    assert any(shares[0].values())
    for found in (over_sets, over_neurons):
        assert any("of a token is its share by relp_half" in caveat for caveat in found.caveats)


def test_shares_of_what_attention_writes_are_all_of_it():
    """Below block 0's attention there are tokens and biases: theirs add up to what is read of its output."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "attn_out")
    target = FeatureValue(layer=0, index=3)
    command = DiscoverCircuit(prompt=PROMPT, target=target, replacement=NAME, verify_nodes=0)
    found = finish(discover_circuit(hosted, command))
    shares = sum(node.effect for node in found.nodes if node.kind is NodeKind.TOKEN)
    (bias,) = (
        b
        for n, b in zip(numbers(found.rows.target), numbers(found.rows.bias), strict=True)
        if found.nodes[n].kind is NodeKind.LOGIT
    )
    assert shares + bias == pytest.approx(found.targets[0].value, rel=1e-4)
