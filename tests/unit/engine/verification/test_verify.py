"""VerifyCircuit on tiny models: what is reported holds, and what cannot be verified is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from math import isnan
from typing import Any

import numpy as np
import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import resident_set
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuit_edges import ExplainEdges
from trephine.domain.circuits import DiscoverCircuit, NodeKind
from trephine.domain.commands import Progress
from trephine.domain.errors import InvalidRequestError, ParentChangedError, ReplacementNotFoundError
from trephine.domain.sites import NEURONS
from trephine.domain.verification import (
    Predictor,
    Standing,
    Substitute,
    VerificationOptions,
    VerifyCircuit,
)
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.places import clean_value
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.sets import opened
from trephine.engine.tracing.edges import explain_edges
from trephine.engine.verification import faithfulness
from trephine.engine.verification.control import control_circuit
from trephine.engine.verification.doubts import rising_caveats
from trephine.engine.verification.subject import open_subject, opened_layers
from trephine.engine.verification.verify import verify_on

PROMPT = "When Mary went to the store John gave a drink to"
OTHER = "When John went to the store Mary gave a drink to"
QUICK = VerificationOptions(nodes=100, groups=6, depth_nodes=12, adversary_steps=4, bootstrap=100)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@cache
def found(kind: str):
    """A hosted tiny Llama and a circuit over its neurons or a random set."""
    hosted = tiny_hosted("llama")
    name = NEURONS if kind == NEURONS else resident_set(hosted, kind)
    command = DiscoverCircuit(
        prompt=PROMPT,
        target=LogitTarget(token=" Mary", against=" John"),
        replacement=name,
        max_feature_nodes=60,
        verify_nodes=0,
    )
    return hosted, finish(discover_circuit(hosted, command))


def features(circuit):
    """Its feature nodes."""
    return tuple(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.FEATURE)


@cache
def verified(kind: str, **changes: Any):
    """The report of a circuit of half of the features; each once, for a run takes a second."""
    return verified_anew(kind, **changes)


def verified_anew(kind: str, **changes: Any):
    """The same, whatever was verified before."""
    hosted, circuit = found(kind)
    command = VerifyCircuit(circuit=circuit, kept=features(circuit)[:30], options=replace(QUICK, **changes))
    return finish(verify_on(hosted, command))


@pytest.mark.parametrize("kind", [NEURONS, "relu", "clt"])
def test_everything_that_is_asked_for_is_reported(kind):
    """All tables, with intervals that hold their estimates and words for every figure."""
    report = verified(kind, substitutes=tuple(Substitute), counterfactual=OTHER)
    examined = [one for one in (report.given, report.control) if one is not None]
    assert len(examined) == (2 if kind == "relu" else 1)
    assert report.control_note.startswith("not applicable") == (kind != "relu")
    for one in examined:
        singles = [m for m in one.measurements if m.ablations == "single nodes"]
        assert len(singles) == 100
        assert {m.stratum for m in singles} == {"outside", *(f"quantile {n} of 5" for n in range(1, 6))}
        assert {m.paths for m in singles if m.stratum == "outside"} == {0.0}
        kinds = {a.ablations for a in one.agreements}
        assert kinds >= {"single nodes", "random groups", "whole layers", "cumulative top-k"}
        assert [f.substitute for f in one.faithfulness] == list(Substitute)
        assert one.depths
        assert one.worst_case is not None
        for part in (one.agreements, one.comparisons, one.depths, one.faithfulness, (one.worst_case,)):
            for figure in part:
                assert "positions >= 1" in figure.how
                assert "error term" in figure.how
                assert "nothing frozen" in figure.how
        for a in one.agreements:
            assert a.spearman.low - 0.2 <= a.spearman.value <= a.spearman.high + 0.2


def test_few_features_are_said_in_words():
    """A graph of 60 features has no 100 to ablate; the first caveat counts them, whatever the table shows."""
    report = verified(NEURONS)
    own = sum(m.stratum != "outside" for m in report.given.measurements if m.ablations == "single nodes")
    later = sum(found(NEURONS)[1].nodes[n].position > 0 for n in features(found(NEURONS)[1]))
    assert own == later < 100
    assert report.caveats[0].startswith(
        f"Few ablations: {own} single nodes of the graph were ablated, of {own} "
    )


def test_what_comparisons_leave_open_is_said_in_words():
    """Every INCONCLUSIVE of the circuit's own table has a caveat, and so has what loses to the gradient."""
    for kind in (NEURONS, "relu"):
        report = verified(kind)
        compared = {(c.predictor, c.baseline): c.standing for c in report.given.comparisons}
        undecided = sum(standing is Standing.INCONCLUSIVE for standing in compared.values())
        lost = compared[Predictor.PATHS, Predictor.ACTIVATION_GRADIENT] is Standing.DOES_NOT_BEAT
        assert sum(said.startswith("INCONCLUSIVE, `") for said in report.caveats) == undecided
        assert sum(said.startswith("DOES NOT BEAT, `paths") for said in report.caveats) == lost
        assert undecided + lost


def test_shown_effects_rank_and_are_their_own_baseline():
    """First-order effects agree with ablations; they cannot beat activation x gradient, for they are it."""
    report = verified("relu")
    shown = next(
        a for a in report.given.agreements if a.ablations == "single nodes" and a.predictor is Predictor.SHOWN
    )
    assert shown.spearman.low > 0.7
    standing = {(c.predictor, c.baseline): c.standing for c in report.given.comparisons}
    assert standing[Predictor.SHOWN, Predictor.ACTIVATION_GRADIENT] is Standing.DOES_NOT_BEAT
    assert standing[Predictor.SHOWN, Predictor.PERMUTED] is Standing.BEATS
    assert len(standing) == 6


@pytest.mark.parametrize("kind", [NEURONS, "relu"])
def test_search_finds_what_random_masks_do_not(kind):
    """The worst rounded mask is real, and below the plain model and the best random one."""
    worst = verified(kind).given.worst_case
    sign = 1 if worst.baseline >= 0 else -1
    assert sign * worst.rounded < sign * worst.baseline
    assert sign * worst.rounded <= sign * worst.random
    assert 0 < worst.ablated <= worst.outside


def test_a_circuit_of_everything_is_the_model():
    """Keeping every active feature of a set changes little; ablating them is ablating everything."""
    hosted, circuit = found("relu")
    command = DiscoverCircuit(
        prompt=PROMPT,
        target=LogitTarget(token=" Mary", against=" John"),
        replacement=circuit.replacement,
        max_feature_nodes=10_000,
        verify_nodes=0,
    )
    whole = finish(discover_circuit(hosted, command))
    options = replace(QUICK, control=False, adversary_steps=0, depth_nodes=0, groups=0)
    report = finish(verify_on(hosted, VerifyCircuit(circuit=whole, kept=features(whole), options=options)))
    zero = report.given.faithfulness[0]
    assert zero.substitute is Substitute.ZERO
    assert abs(zero.kept - zero.baseline) < 0.05 * abs(zero.empty - zero.baseline)
    # What is not in the circuit was silent on the prompt, and wakes only where the stream has changed.
    assert abs(zero.removed - zero.empty) < 0.3 * abs(zero.empty - zero.baseline)
    assert report.given.worst_case is None
    assert report.given.depths == ()


def test_same_seed_same_report():
    """Nothing but time and memory differs between two runs (law 9)."""
    one, two = (
        replace(report, seconds=0, peak_extra_bytes=0)
        for report in (verified(NEURONS), verified_anew(NEURONS))
    )
    assert one == two


def test_work_is_cut_into_quanta():
    """Progress comes in stages, each ending at its total, and every batch of passes is a quantum."""
    hosted, circuit = found(NEURONS)
    command = VerifyCircuit(circuit=circuit, kept=features(circuit)[:30], options=QUICK)
    told, generator = [], verify_on(hosted, command)
    for event in generator:
        told.append(event)
    events = [event for event in told if isinstance(event, Progress)]
    last = {event.stage: event for event in events}
    assert set(last) >= {
        "single and group ablations",
        "change by depth",
        "necessity and sufficiency (zero)",
        "worst case",
    }
    assert all(event.done == event.total for event in last.values())
    assert len(told) > 40


def test_random_dictionary_leaves_no_trace():
    """The control's dictionary is never among the model's own sets."""
    hosted, circuit = found("relu")
    assert verified("relu").control is not None
    assert set(hosted.replacements) == {circuit.replacement}


def test_the_note_tells_l0_on_the_prompt_itself():
    """It is equal on the text that the control is fitted on; here it is counted, position 0 left out."""
    hosted, circuit = found("relu")
    operators = capture(hosted.model, hosted.architecture, [token.id for token in circuit.tokens])
    counts = []
    for info in hosted.replacements[circuit.replacement].admitted.layers:
        with opened(hosted, circuit.replacement, [info.layer]) as resident, torch.inference_mode():
            active = resident[info.layer].encode(clean_value(operators, info.site_in)).active
        counts.append(active[1:].float().sum(1).mean())
    note, own = verified("relu").control_note, float(torch.stack(counts).mean())
    assert f"of the sets {own:.3g})" in note
    told = re.search(r"on this prompt: ([0-9.]+), of the sets", note)
    assert told is not None
    assert 0.5 < float(told[1]) / own < 2


def test_control_is_found_as_the_circuit_was():
    """By hierarchical attribution from the same threshold on, and the note says so; or there is none."""
    hosted = tiny_hosted("llama")
    asked = DiscoverCircuit(
        prompt=PROMPT,
        target=LogitTarget(token=" Mary", against=" John"),
        replacement=resident_set(hosted, "relu"),
        min_attribution=0.02,
        max_feature_nodes=60,
        verify_nodes=0,
    )
    circuit = finish(discover_circuit(hosted, asked))
    _, beside, _ = finish(control_circuit(hosted, circuit, opened_layers(hosted, circuit), 10, 0))
    assert beside.figures.hierarchy is not None
    assert beside.figures.hierarchy.asked_threshold == 0.02
    command = VerifyCircuit(circuit=circuit, kept=features(circuit), options=QUICK)
    report = finish(verify_on(hosted, command))
    assert report.control is not None
    assert "hierarchical attribution of at least 0.02, cut" in report.control_note
    assert "hierarchical" not in verified("relu").control_note
    hierarchy = replace(circuit.figures.hierarchy, asked_threshold=1e6)
    strict = replace(circuit, figures=replace(circuit.figures, hierarchy=hierarchy))
    report = finish(verify_on(hosted, replace(command, circuit=strict)))
    assert report.control is None
    assert "nothing of it is chosen" in report.control_note


def test_changed_weights_and_lost_sets_are_refused():
    """Each by the error that says what to do."""
    hosted, circuit = found("relu")
    other = replace(circuit, weight_hash="0" * 64)
    with pytest.raises(ParentChangedError, match="discover it again"):
        finish(verify_on(hosted, VerifyCircuit(circuit=other, kept=features(other), options=QUICK)))
    gone = replace(circuit, replacement="gone")
    with pytest.raises(ReplacementNotFoundError, match="or load it first"):
        finish(verify_on(hosted, VerifyCircuit(circuit=gone, kept=features(gone), options=QUICK)))


def test_another_set_of_the_same_name_is_refused():
    """Its features are not the circuit's; a circuit that does not say its set is verified with a note."""
    hosted, circuit = found("relu")
    own = hosted.replacements[circuit.replacement]
    assert circuit.set_hash == own.admitted.content_hash
    assert not any("is assumed" in caveat for caveat in verified("relu").caveats)
    view = replace(hosted, replacements={})
    resident_set(view, "topk")
    other = view.replacements[circuit.replacement]
    view.replacements[circuit.replacement] = replace(
        other, admitted=replace(other.admitted, content_hash="d" * 64)
    )
    command = VerifyCircuit(circuit=circuit, kept=features(circuit)[:30], options=QUICK)
    with pytest.raises(ParentChangedError, match="other features than those of the set") as refused:
        finish(verify_on(view, command))
    assert refused.value.context["loaded_set"] == "d" * 64
    edge = ExplainEdges(circuit=circuit, edges=((features(circuit)[0], len(circuit.nodes) - 1),))
    with pytest.raises(ParentChangedError, match="other features than those of the set"):
        finish(explain_edges(Session(hosted=view), edge))
    old = replace(circuit, set_hash="")
    report = finish(verify_on(hosted, replace(command, circuit=old, options=replace(QUICK, control=False))))
    assert any("is assumed" in caveat for caveat in report.caveats)


@pytest.mark.parametrize("kind", [NEURONS, "relu", "resid_post", "attn_out"])
def test_layers_that_a_circuit_was_told_to_leave_alone_are_never_ablated(kind):
    """Neither by verification nor beside it, and edges are explained over the same layers."""
    hosted = tiny_hosted("llama")
    asked = DiscoverCircuit(
        prompt=PROMPT,
        target=LogitTarget(token=" Mary", against=" John"),
        replacement=NEURONS if kind == NEURONS else resident_set(hosted, kind),
        layers=(1,),
        max_feature_nodes=30,
        verify_nodes=0,
    )
    circuit = finish(discover_circuit(hosted, asked))
    opened = opened_layers(hosted, circuit)
    assert circuit.layers == tuple(ref.layer for ref in opened) == (1,)
    subject = finish(open_subject(hosted, QUICK, circuit, features(circuit)))
    assert set(subject.active) == set(subject.prompt.layers) == set(opened)
    if kind != NEURONS:
        _, beside, _ = finish(control_circuit(hosted, circuit, opened, 10, 0))
        assert {beside.nodes[number].layer for number in features(beside)} == {1}
    ends = zip(_ints(circuit.edges.source), _ints(circuit.edges.target), strict=True)
    edges = tuple(ends)[:20]
    for edge in finish(
        explain_edges(Session(hosted=hosted), ExplainEdges(circuit=circuit, edges=edges))
    ).edges:
        assert edge.weight == pytest.approx(edge.stored, rel=1e-3, abs=1e-4)


def test_which_layers_were_open_is_read_off_the_nodes_where_it_was_not_recorded():
    """Circuits of earlier versions: MLPs that are error as a whole were closed."""
    hosted = tiny_hosted("llama")
    asked = DiscoverCircuit(
        prompt=PROMPT,
        target=LogitTarget(token=" Mary"),
        replacement=resident_set(hosted, "relu"),
        layers=(1,),
    )
    circuit = finish(discover_circuit(hosted, replace(asked, verify_nodes=0)))
    opened = opened_layers(hosted, replace(circuit, layers=None))
    assert [ref.layer for ref in opened] == [1]


def _ints(column):
    return np.frombuffer(column.data, np.int32).tolist()


def test_nothing_to_ablate_and_uneven_counterfactuals_are_refused():
    """A circuit without features after position 0, and a donor of another length."""
    hosted, circuit = found(NEURONS)
    at_start = tuple(n for n in features(circuit) if circuit.nodes[n].position == 0)
    with pytest.raises(InvalidRequestError, match="nothing to ablate"):
        finish(verify_on(hosted, VerifyCircuit(circuit=circuit, kept=at_start, options=QUICK)))
    for other, told in (("When Mary", "equally long"), (circuit.prompt, "the prompt itself")):
        options = replace(QUICK, substitutes=tuple(Substitute), counterfactual=other)
        work = verify_on(hosted, VerifyCircuit(circuit=circuit, kept=features(circuit)[:30], options=options))
        stages: list[Any] = []
        with pytest.raises(InvalidRequestError, match=told):
            stages.extend(work)
        assert not any(stages)  # nothing was ablated yet


@pytest.mark.parametrize(
    ("empty", "alone", "random", "p"),
    [
        (-2.0, -0.1, -1.0, 1 / 21),  # nearer to the model than random circuits
        (2.0, 0.1, 1.0, 1 / 21),  # so where ablating everything raises the target,
        (2.0, -2.7, 1.0, 1.0),  # where far below the model is no more of it,
        (-2.0, 2.0, -1.0, 1.0),  # and where far beyond is not
    ],
)
def test_sufficient_is_near_to_the_model_and_necessary_takes_away(monkeypatch, empty, alone, random, p):
    """Wherever ablating everything leads; what is ablated counts by what it takes off the target."""
    hosted, circuit = found(NEURONS)
    subject = finish(open_subject(hosted, QUICK, circuit, features(circuit)[:30]))
    at = subject.prompt.baseline
    unit = 0.2 * abs(at) * (1 if at >= 0 else -1)

    def told(*offsets: float) -> torch.Tensor:
        return at + unit * torch.tensor([*offsets[:-1], *([offsets[-1]] * 20)])

    def measured(*runs: torch.Tensor):
        waiting = iter(runs)

        def run(prompt, masks, become, stage):
            yield Progress(stage=stage, done=1, total=1)
            return next(waiting)

        monkeypatch.setattr(faithfulness, "_run", run)
        return finish(faithfulness.measure_faithfulness(subject, QUICK, Substitute.ZERO, None))

    one = measured(told(empty, alone, random), told(-1.5, 0.2))
    assert (one.p_sufficient, one.p_necessary) == pytest.approx((p, 1 / 21))
    assert (one.faithfulness is None) == (one.necessity is None) == (empty > 0)
    said = rising_caveats(replace(verified(NEURONS).given, faithfulness=(one,)))
    assert len(said) == (empty > 0)
    assert all("away from 0" in each for each in said)
    assert measured(told(empty, alone, random), told(1.5, 0.2)).p_necessary == 1.0
    nothing = measured(told(0.0, 0.0, 0.0), told(0.0, 0.0))
    assert isnan(nothing.p_sufficient)
    assert isnan(nothing.p_necessary)


@pytest.mark.parametrize(
    ("field", "value"),
    [("nodes", 99), ("random_circuits", 19), ("adversary_steps", -1), ("bootstrap", 0), ("substitutes", ())],
)
def test_too_little_to_mean_anything_is_refused(field, value):
    """Fewer ablations or random circuits than a verdict needs."""
    with pytest.raises(InvalidRequestError) as refused:
        VerificationOptions(**{field: value})
    assert refused.value.context["field"] == field


def test_resampling_needs_a_counterfactual():
    """Said before any work."""
    with pytest.raises(InvalidRequestError, match="counterfactual"):
        VerificationOptions(substitutes=(Substitute.RESAMPLE,))
