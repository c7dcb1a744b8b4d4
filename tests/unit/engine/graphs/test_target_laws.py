"""Laws 3 and 4 for every kind of target, and effects against what the model really does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import NAME, resident_set
from tests.unit.engine.graphs.test_laws_of_sets import IDS, oracle_of, prepared, sampled
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import DiscoverCircuit, NodeKind
from trephine.domain.errors import (
    FeatureOutOfRangeError,
    InvalidRequestError,
    LayerOutOfRangeError,
    PositionOutOfRangeError,
    ShapeMismatchError,
    TargetNotOneTokenError,
    UnsupportedOptionError,
)
from trephine.domain.interventions import FeatureTarget, Intervention, Scale, Selector
from trephine.domain.sites import NEURONS, FeatureRef, Site, SiteKind
from trephine.domain.targets import (
    AttentionScore,
    DirectionValue,
    FeatureValue,
    GraphTarget,
    TokenLogits,
    TopLogits,
)
from trephine.domain.verification import VerificationOptions
from trephine.engine.attribution.attention_scores import head_scores
from trephine.engine.attribution.backward import DenseCollector, sweep
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.target_rows import parts_from_the_top
from trephine.engine.attribution.targets import neuron_targets_of
from trephine.engine.graphs.actives import activate
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.graphs.open_layers import layers_of
from trephine.engine.graphs.sweeping import FeatureSums, segment_of, sweep_features
from trephine.engine.graphs.target_kinds import explained
from trephine.engine.graphs.targets import read_targets
from trephine.engine.models.quanta import finish
from trephine.engine.runs.rows import RowInput
from trephine.engine.verification.subject import open_subject

FIVE = ("llama", "gpt2", "gemma2", "qwen3", "gpt_neox")
PROMPT = "When Mary went to the store John gave a drink to"
SUMS = 2e-5
"""Of a row's absolute mass: float32 rounding over three blocks."""
EDGES = 1e-4
"""Of a row's largest edge."""
WIDTH = 32
VECTOR = tuple(1.0 / (place + 1) * (-1) ** place for place in range(WIDTH))


def direction(kind: SiteKind, layer: int) -> DirectionValue:
    """A direction of the tiny models' stream."""
    return DirectionValue(site=Site(kind=kind, layer=layer), vector=VECTOR, name="probe")


EVERY: tuple[tuple[GraphTarget, tuple[int, ...]], ...] = (
    (LogitTarget(token=" Mary", against=" John"), (2, 6)),
    (TopLogits(limit=4, mass=1.0), ()),
    (TokenLogits(tokens=(" Mary", " John")), (3, -1)),
    (FeatureValue(layer=2, index=5), (4, -1)),
    (FeatureValue(layer=0, index=7), (0,)),
    (direction(SiteKind.RESID_POST, 1), (-2,)),
    (direction(SiteKind.RESID_POST, 2), ()),
    (direction(SiteKind.RESID_PRE, 0), (3,)),
    (AttentionScore(layer=2, head=1, key=5), (7, -3)),
    (AttentionScore(layer=1, head=0, key=4), (4,)),
)
IDS_OF = [type(target).__name__ + str(place) for place, (target, _) in enumerate(EVERY)]


@dataclass
class Asked:
    """A request and its prompt."""

    command: DiscoverCircuit
    ids: list[int]


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def read(hosted, operators, target, positions, active=None):
    """What a target is on a captured prompt."""
    name = NEURONS if active is None else NAME
    command = DiscoverCircuit(prompt=PROMPT, target=target, positions=positions, replacement=name)
    return explained(hosted, operators, Asked(command, [0] * operators.n_pos), active)


def feature_sums(hosted, operators, active, what):
    """Targets and sums of every stretch of the stream."""
    parts = [part for _, part in parts_from_the_top(what)]
    segments = segment_of(active, torch.tensor([part.place for part in parts])).tolist()
    for segment in sorted(set(segments)):
        own = [part for part, number in zip(parts, segments, strict=True) if number == segment]
        targets = read_targets(operators, own)
        yield targets, finish(sweep_features(hosted, operators, active, targets))


@pytest.mark.parametrize(("target", "positions"), EVERY, ids=IDS_OF)
@pytest.mark.parametrize("family", FIVE)
def test_rows_sum_to_what_the_model_says(family, target, positions):
    """Law 3 over two sets and neurons; the totals are what is measured in the model as it is."""
    for kind in ("jumprelu", "mixed"):
        hosted, operators, active = prepared(family, kind)
        what = read(hosted, operators, target, positions, active)
        totals = 0.0
        for targets, sums in feature_sums(hosted, operators, active, what):
            assert ((sums.total - targets.total).abs() / (sums.mass + sums.bias.abs())).max() < SUMS
            totals += float(targets.total.sum())
        assert totals == pytest.approx(sum(t.about.value for t in what.targets), abs=1e-4)
        check_measured(hosted, what)
    what = read(hosted, operators, target, positions)
    targets = neuron_targets_of(operators, [part for _, part in parts_from_the_top(what)])
    sums = finish(sweep(operators, targets, DenseCollector(operators, len(targets.total))))
    assert ((sums.total - targets.total).abs() / (sums.mass + sums.bias.abs())).max() < SUMS
    check_measured(hosted, what)


def check_measured(hosted, what):
    """The clean quantity is what the model says on the prompt, and shares sum to 1."""
    measured = float(what.on_rows(hosted, [RowInput(IDS)])[0])
    assert measured == pytest.approx(what.baseline, rel=1e-4, abs=1e-4)
    assert sum(what.shares) == pytest.approx(1.0)


ORACLES = [
    (family, kind, place)
    for family in FIVE
    for kind in ("skip", "clt", "resid_post", "attn_out")
    for place in (3, 5, 6)
    if not (family == "gpt_neox" and kind == "attn_out")
]


@pytest.mark.parametrize(("family", "kind", "place"), ORACLES)
def test_edges_into_features_and_directions_are_interventions(family, kind, place):
    """Law 4: an edge is minus the change of the read-out when its source is taken out wherever it writes."""
    hosted, operators, active = prepared(family, kind)
    target, positions = EVERY[place]
    what = read(hosted, operators, target, positions, active)
    oracle, checked = oracle_of(hosted, active), 0
    for targets, sums in feature_sums(hosted, operators, active, what):
        for number in range(len(targets.total)):
            gauge = next(t.gauge for t in what.targets if t.about.position == int(targets.position[number]))
            edges, moves = sampled(hosted, operators, active, sums, number)

            def value(rows, gauge=gauge):
                return oracle.read(rows, gauge.site)[:, gauge.position] @ gauge.vector

            clean = value([()])
            removed = clean - value([[(s, p, -v) for s, p, v in move] for move in moves])
            expected = torch.tensor(edges, dtype=clean.dtype)
            largest = max(float(sums.features[number].abs().max()), float(expected.abs().max()))
            reading = float(oracle.read([()], gauge.site)[0, gauge.position].norm() * gauge.vector.norm())
            allowed = EDGES * largest + torch.finfo(clean.dtype).eps * reading
            assert (removed - expected).abs().max() <= allowed
            checked += len(edges)
    assert checked >= 10


@pytest.mark.parametrize("family", FIVE)
def test_edges_into_a_score_are_half_its_slope(family):
    """With norms frozen a score is bilinear: half its central difference along a source is the edge."""
    hosted, operators, active = prepared(family, "skip")
    wanted, query = AttentionScore(layer=2, head=1, key=5), 7
    what = read(hosted, operators, wanted, (query,), active)
    (_, sums), oracle = next(feature_sums(hosted, operators, active, what)), oracle_of(hosted, active)
    found = head_scores(operators.layers[2], 1)
    stream = Site(kind=SiteKind.RESID_PRE, layer=2)

    def scores(rows):
        seen = oracle.read(rows, stream).to(operators.dtype)
        at = [torch.full((len(rows),), place) for place in (query, wanted.key)]
        q = found.queries.project(seen[:, query], at[0]) + found.queries.constant(at[0])
        k = found.keys.project(seen[:, wanted.key], at[1]) + found.keys.constant(at[1])
        return found.scaling * (q * k).sum(1)

    assert float(scores([()])[0]) == pytest.approx(what.baseline, abs=1e-4)
    both = FeatureSums(
        features=sums.features.sum(0, keepdim=True),
        errors=sums.errors.sum(0, keepdim=True),
        tokens=sums.tokens.sum(0, keepdim=True),
        bias=sums.bias.sum(0, keepdim=True),
    )
    edges, moves = sampled(hosted, operators, active, both, 0)
    up = scores([[(s, p, v) for s, p, v in move] for move in moves])
    down = scores([[(s, p, -v) for s, p, v in move] for move in moves])
    expected = torch.tensor(edges, dtype=up.dtype)
    assert len(edges) >= 20
    assert ((up - down) / 4 - expected).abs().max() <= EDGES * float(expected.abs().max()) + 1e-5


# --- effects and nodes --------------------------------------------------------------------------------


def found(target: GraphTarget, *, kind: str | None = "jumprelu", **changes: Any):
    """A circuit of a tiny model over a set, or over neurons."""
    hosted = tiny_hosted("llama")
    name = NEURONS if kind is None else resident_set(hosted, kind)
    command = DiscoverCircuit(
        prompt=PROMPT,
        target=target,
        replacement=name,
        **{"max_feature_nodes": 40, "verify_nodes": 0, **changes},
    )
    return hosted, finish(discover_circuit(hosted, command))


@pytest.mark.parametrize("kind", ["jumprelu", "attn_out", None])
@pytest.mark.parametrize(("target", "positions"), [*EVERY[1:6], EVERY[8]], ids=[*IDS_OF[1:6], IDS_OF[8]])
def test_an_effect_is_what_a_small_change_does(kind, target, positions):
    """Scaling a feature a little moves the weighted quantity by that share of the node's effect."""
    hosted, circuit = found(target, kind=kind, positions=positions)
    features = [node for node in circuit.nodes if node.kind is NodeKind.FEATURE]
    if not features:
        assert isinstance(target, FeatureValue)
        assert target.layer == 0
        return
    strongest = max(features, key=lambda node: abs(node.effect))
    ref = FeatureRef(replacement=circuit.replacement, layer=strongest.layer, index=strongest.feature)
    change = Intervention(
        target=FeatureTarget(feature=ref),
        operation=Scale(factor=0.99),
        selector=Selector(positions=(strongest.position,)),
    )
    ids = hosted.encode(PROMPT)
    command = DiscoverCircuit(
        prompt=PROMPT, target=target, positions=positions, replacement=circuit.replacement
    )
    operators = capture(hosted.model, hosted.architecture, ids)
    active = None
    if kind is not None:
        active = finish(activate(hosted, operators, layers_of(NAME, hosted.replacements[NAME].covered)))
    what = explained(hosted, operators, Asked(command, ids), active)
    plain, scaled = what.on_rows(hosted, [RowInput(ids), RowInput(ids, (change,))]).tolist()
    assert plain == pytest.approx(circuit.figures.baseline, abs=1e-4)
    assert plain - scaled == pytest.approx(0.01 * strongest.effect, rel=0.08, abs=2e-5)


def test_the_likeliest_tokens_are_nodes_with_their_probability():
    """The fewest that reach the mass, likeliest first; shares, influences and probabilities agree."""
    hosted, circuit = found(TopLogits(limit=10, mass=0.1))
    ids = torch.tensor([hosted.encode(PROMPT)])
    probabilities = hosted.model(input_ids=ids).logits[0, -1].softmax(-1)
    ranked = probabilities.sort(descending=True)
    needed = int((ranked.values.cumsum(0) < 0.1).sum()) + 1
    nodes = [node for node in circuit.nodes if node.kind is NodeKind.LOGIT]
    assert [node.feature for node in nodes] == ranked.indices[:needed].tolist()
    assert 1 < needed <= 10
    assert [node.activation for node in nodes] == pytest.approx(ranked.values[:needed].tolist(), rel=1e-4)
    share = (ranked.values[:needed] / ranked.values[:needed].sum()).tolist()
    assert [node.influence for node in nodes] == pytest.approx(share, rel=1e-4)
    assert [target.share for target in circuit.targets] == pytest.approx(share, rel=1e-4)
    assert circuit.figures.baseline == pytest.approx(sum(node.effect for node in nodes))
    entered = torch.frombuffer(bytearray(circuit.rows.target.data), dtype=torch.int32).tolist()
    assert set(range(len(circuit.nodes) - needed, len(circuit.nodes))) <= set(entered)


def test_ablations_measure_the_target_that_was_asked_for():
    """A circuit behind a feature is verified on that feature, at its position."""
    _, circuit = found(FeatureValue(layer=2, index=5), positions=(6,), verify_nodes=30)
    assert circuit.quality is not None
    assert circuit.quality.spearman > 0.8
    assert all(node.position <= 6 for node in circuit.nodes if node.kind is NodeKind.FEATURE)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_neuron_is_an_estimate_whether_gated_or_not(family):
    """A plain MLP's goes by a secant, as its edges do: the target says so, and no feature of a set does."""
    hosted = tiny_hosted(family)
    resident_set(hosted, "jumprelu", layers=(1,))
    for name, estimated in ((NEURONS, True), (NAME, False)):
        command = DiscoverCircuit(
            prompt=PROMPT,
            target=FeatureValue(layer=2 if estimated else 1, index=5, replacement=name),
            replacement=NAME,
            beside=(NEURONS,),
            max_feature_nodes=10,
            verify_nodes=0,
        )
        circuit = finish(discover_circuit(hosted, command))
        assert circuit.targets[0].estimated is estimated
        assert any("The target is a neuron" in caveat for caveat in circuit.caveats) is estimated


def test_what_rests_on_a_choice_refuses_other_targets():
    """Edits name what they work for, and verification refuses a circuit whose question is not known."""
    hosted, circuit = found(direction(SiteKind.RESID_POST, 1))
    with pytest.raises(UnsupportedOptionError, match="one logit, or the difference of two"):
        circuit.choice()
    unknown = replace(circuit, asked=None)
    with pytest.raises(UnsupportedOptionError, match="discover it with a token"):
        finish(open_subject(hosted, VerificationOptions(), unknown, range(len(circuit.nodes))))
    assert circuit.target_label == "probe at resid_post 1, position 10"


REFUSED = [
    (FeatureValue(layer=2, index=40), (), FeatureOutOfRangeError, "features 0 to 39"),
    (FeatureValue(layer=3, index=0), (), LayerOutOfRangeError, "layer 3 does not exist"),
    (TokenLogits(tokens=(" Mary", " Maryland")), (), TargetNotOneTokenError, "exactly one token"),
    (TokenLogits(tokens=(" Mary",)), (99,), PositionOutOfRangeError, "positions 0 to 10"),
    (TokenLogits(tokens=(" Mary",)), (10, -1), InvalidRequestError, "named twice"),
    (TopLogits(limit=40), (1, 2), InvalidRequestError, "80 targets"),
    (AttentionScore(layer=1, head=4, key=0), (), InvalidRequestError, "heads 0 to 3"),
    (AttentionScore(layer=1, head=0, key=5), (4,), PositionOutOfRangeError, "query 4 sees keys 0 to 4"),
    (
        DirectionValue(site=Site(kind=SiteKind.RESID_POST, layer=1), vector=(1.0, 2.0)),
        (),
        ShapeMismatchError,
        "2 numbers, resid_post has 32",
    ),
]


@pytest.mark.parametrize(("target", "positions", "error", "said"), REFUSED)
def test_what_does_not_exist_is_refused_by_name(target, positions, error, said):
    """Every address is checked before the prompt is run."""
    with pytest.raises(error, match=said):
        found(target, positions=positions)


def test_parallel_blocks_have_no_middle():
    """Where attention and MLP read the same stream there is none between them to be read."""
    hosted = tiny_hosted("gpt_neox")
    command = DiscoverCircuit(prompt=PROMPT, target=direction(SiteKind.RESID_MID, 1))
    with pytest.raises(UnsupportedOptionError, match="has no `resid_mid`"):
        finish(discover_circuit(hosted, command))


def test_a_direction_must_be_one():
    """Zeros, other sites and numbers that are none are refused where they are written down."""
    with pytest.raises(InvalidRequestError, match="all zeros"):
        DirectionValue(site=Site(kind=SiteKind.RESID_POST, layer=1), vector=(0.0,))
    with pytest.raises(InvalidRequestError, match="read off the residual stream"):
        DirectionValue(site=Site(kind=SiteKind.MLP_IN, layer=1), vector=(1.0,))
