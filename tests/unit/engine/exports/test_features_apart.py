"""One feature of several that an export does not carry: it hides in no average."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.resident_sets import resident_set
from tests.unit.engine.exporting import compiling, edit_of, planned
from tests.unit.engine.interventions import direction
from tests.unit.engine.weights.folders import feature, parent
from trephine.domain.errors import GateMissedError
from trephine.domain.interventions import Ablate, Clamp, Scale
from trephine.domain.sites import Site, SiteKind
from trephine.engine.certificates.firing import firing_masks, masks_by_feature, name_of
from trephine.engine.certificates.firing_floor import FeatureFloor, FiringFloor
from trephine.engine.certificates.gates import planned_gates
from trephine.engine.certificates.leaving_out import MOST_TOKENS, among_others, places_of
from trephine.engine.certificates.noise import NoiseFloor, Spread
from trephine.engine.exports import planning
from trephine.engine.models.quanta import finish
from trephine.engine.models.shards import read_entries
from trephine.engine.replacements.sets import opened
from trephine.engine.runs.retain import retain_text
from trephine.engine.runs.rows import RowInput, run_rows
from trephine.engine.weights.compiling import compile_weights
from trephine.engine.weights.operations import FeatureOp

STRONG, WEAK = feature(0, 3, Scale(factor=-4.0)), feature(1, 5, Scale(factor=0.7))
NAMES = ("set:0:3", "set:1:5")
"""The weak one is a few hundredths of what both do together."""


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    """A Llama with a set of features, of which neurons can be made."""
    hosted = parent("llama", tmp_path_factory.mktemp("apart") / "parent", biases=False)
    resident_set(hosted, "relu")
    return hosted


def made(hosted, edit, folder):
    """Plan and export; what missed a gate is kept."""
    with torch.inference_mode():
        return finish(compiling(hosted, edit, planned(hosted, edit), folder, keep_rejected=True))


@pytest.mark.integration
def test_each_of_several_features_is_measured_alone(hosted, tmp_path):
    """On its own tokens, in the certificate and on the card; all of each is carried."""
    edit = edit_of(hosted, STRONG, WEAK)
    certificate = made(hosted, edit, tmp_path / "edited").certificate
    found = {one.name: one.value for one in certificate.measurements}
    assert certificate.verdict == "passed"
    card = (tmp_path / "edited" / "README.md").read_text()
    for name in NAMES:
        assert found[f"recovery_firing:{name}"] > 0.99
        assert found[f"carried:{name}"] == pytest.approx(1.0, abs=0.01)
        assert 0 < found[f"firing_tokens:{name}"] < certificate.n_tokens
        assert f"| `{name}` | {found[f'firing_tokens:{name}']:.0f} |" in card
    gates = {result.gate.name for result in certificate.gates}
    assert {f"{kind}:{name}" for kind in ("uncarried", "unrecovered_firing") for name in NAMES} <= gates


@pytest.mark.integration
def test_a_feature_that_is_left_out_of_an_export_fails_it_by_name(hosted, tmp_path, monkeypatch):
    """Of a fit, which promises a share: beside a strong one it is lost in what is measured of both."""
    whole = edit_of(hosted, STRONG, WEAK)

    def forgetful(hosted, entries, edit, windows, keep_shapes, kind):
        how = {"keep_shapes": keep_shapes, "kind": kind}
        program = yield from compile_weights(hosted, entries, edit, windows, **how)
        partial = yield from compile_weights(hosted, entries, edit_of(hosted, STRONG), windows, **how)
        written = {change.name: change for change in (*program.changes, *partial.changes)}
        return replace(program, changes=tuple(written.values()), fitted=True)

    monkeypatch.setattr(planning, "compile_weights", forgetful)
    planning._KEPT.clear()
    try:
        with pytest.raises(GateMissedError) as caught:
            made(hosted, whole, tmp_path / "edited")
    finally:
        planning._KEPT.clear()
    missed = caught.value.context["gates"].split(", ")
    assert "uncarried:set:1:5" in missed
    assert not any(name.endswith(":set:0:3") for name in missed)
    assert not {"unrecovered", "unrecovered_firing"} & set(missed)  # the averages have nothing to say
    assert "leave this feature out" in caught.value.message
    certificate = json.loads((tmp_path / "edited.rejected" / "certificate.json").read_text())
    figures = {one["name"]: one["value"] for one in certificate["measurements"]}
    assert abs(figures["carried:set:1:5"]) < 0.2 < 0.8 < figures["carried:set:0:3"]


@torch.inference_mode()
def test_a_feature_fires_where_it_did_before_it_was_edited(tmp_path):
    """An SAE writes where it reads: behind its own edit a feature answers something else, or nothing."""
    hosted = parent("llama", tmp_path / "parent")
    resident_set(hosted, "resid_post")
    site = Site(kind=SiteKind.RESID_POST, layer=0)
    with opened(hosted, "set", [0]) as layers:
        index = int((layers[0].encoder.W_enc.T * layers[0].W_dec).sum(1).argmax())
    edit, retain = (feature(0, index, Scale(factor=-20.0)),), retain_text(hosted)
    op = FeatureOp(feature=edit[0].target.feature, numbers=[0])
    masks = torch.cat(finish(firing_masks(hosted, retain.windows, [op], edit)))
    fires = []
    for given in ((), edit):
        rows = [RowInput(ids=window, interventions=given) for window in retain.windows]
        values = torch.cat(
            [v[site] for v in run_rows(hosted, rows, reads=[site], allow_unmatched=True).values]
        )
        with opened(hosted, "set", [0]) as layers:
            fires.append(layers[0].encode_features(values, [index])[:, 0] != 0)
    assert torch.equal(masks, fires[0])
    assert int(masks.sum()) > 20
    assert not torch.equal(*fires)


@torch.inference_mode()
def test_a_bound_on_a_direction_fires_where_it_changes_something(tmp_path):
    """It has tokens of its own as a feature has, and stands beside features under a name of its own."""
    hosted = parent("llama", tmp_path / "parent")
    resident_set(hosted, "topk")
    v = torch.randn(32, generator=torch.Generator().manual_seed(3))
    bound = direction(SiteKind.MLP_OUT, 1, v.tolist(), Clamp(low=-0.3, high=0.3))
    edit, windows = (feature(0, 3, Ablate()), bound), retain_text(hosted).windows
    program = finish(compile_weights(hosted, read_entries(hosted.folder), edit_of(hosted, *edit), windows))
    assert {name_of(op) for op in program.features} == {"set:0:3", "mlp_out:1:interventions[1]"}
    masks = finish(masks_by_feature(hosted, windows, program.features, edit))
    site = Site(kind=SiteKind.MLP_OUT, layer=1)
    rows = [RowInput(ids=window, interventions=edit[:1]) for window in windows]
    values = torch.cat([v[site] for v in run_rows(hosted, rows, reads=[site]).values])
    outside = (values.double() @ (v / v.norm()).double()).abs() > 0.3
    assert torch.equal(torch.cat(masks["mlp_out:1:interventions[1]"]), outside)
    assert 0 < int(outside.sum()) < len(outside)
    assert len(among_others(program.features, edit)) == 2


@torch.inference_mode()
def test_fits_say_where_their_features_do_not_fire_and_what_they_were_fitted_on(tmp_path):
    """As grafts do; and a fit on what is measured is no judge of itself."""
    hosted = parent("llama", tmp_path / "parent")
    resident_set(hosted, "topk")
    edit = edit_of(hosted, feature(0, 3, Ablate()), feature(1, 7, Ablate()))
    plan = planned(hosted, edit)
    assert {step.tier for step in plan.steps} == {"ridge"}
    assert "fitted on the very text that is measured" in plan.doubt
    gates = {gate.name: gate.limit for gate in plan.gates}
    assert gates["unrecovered_firing"] == pytest.approx(0.1, abs=1e-3)
    with opened(hosted, "set", [1]) as layers:
        layers[1].encoder.b_enc[7] = -1e4
    silent = planned(hosted, edit_of(hosted, feature(0, 3, Ablate()), feature(1, 7, Ablate()), name="again"))
    assert "nothing is certified about set:1:7, active on no measured token" in silent.doubt
    assert "set:0:3" not in silent.doubt


NONE = Spread(mean=0.0, p99=0.0)
SOME = FeatureFloor(name="set:0:3", tokens=40, floor=1e-4, edit=2e-2, alone=1e-2, floor_alone=1e-4)


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (SOME, True),
        (replace(SOME, alone=2e-4), False),  # beside a strong feature: what the edit moves here is another's
        (replace(SOME, alone=0.0, floor_alone=0.0), False),
        (replace(SOME, tokens=3), False),  # rounding of three tokens has no mean
        (replace(SOME, tokens=3, floor_alone=1e-9), True),
    ],
)
def test_what_one_feature_does_must_stand_above_rounding(one, told):
    """Else no gate is planned on it, and the plan names it as what nothing is certified about."""
    firing = FiringFloor(tokens=50, floor=1e-4, edit=2e-2, apart=(one,))
    floor = NoiseFloor(attention=NONE, dtype=NONE)
    for kind in ({"grafted": True}, {"fitted": True, "min_recovery": 0.01}):
        gates = {gate.name: gate for gate in planned_gates("bfloat16", floor, firing=firing, **kind)}
        assert ("uncarried:set:0:3" in gates) == told
        assert "unrecovered_firing:set:0:3" in gates
        assert not told or gates["uncarried:set:0:3"].limit <= 0.9  # one that is not carried at all misses it
    assert ("nothing is certified about set:0:3" in firing.doubt) == (not told)


@pytest.mark.parametrize(("tokens", "limit"), [(40, 6e-3), (3, None)])
def test_each_feature_is_held_as_stored_too_where_its_tokens_have_a_mean(tokens, limit):
    """Of grafts in narrower files: an average over all features may hide one whose knee was rounded away."""
    one = replace(SOME, tokens=tokens, stored=2e-3, floor_alone=1e-9)
    firing = FiringFloor(tokens=50, floor=1e-4, edit=2e-2, stored=1e-3, apart=(one,))
    floor = NoiseFloor(attention=NONE, dtype=NONE, stored=Spread(mean=1e-3, p99=1e-2))
    gates = {g.name: g.limit for g in planned_gates("float32", floor, grafted=True, firing=firing)}
    name = "kl_intervened_exported_in_stored_dtype_firing_mean:set:0:3"
    assert gates.get(name) == (None if limit is None else pytest.approx(limit))
    assert name not in {g.name for g in planned_gates("float32", floor, fitted=True, firing=firing)}


def test_tokens_are_chosen_where_a_feature_fires_most():
    """From two windows, and no more than are kept; position 0, an attention sink, only for want of others."""
    masks = [torch.zeros(100, dtype=torch.bool) for _ in range(4)]
    masks[0][0] = masks[1][:] = masks[3][10:50] = masks[2][5] = True
    chosen = places_of(masks)
    assert list(chosen) == [1]
    assert len(chosen[1]) == MOST_TOKENS
    assert 0 not in chosen[1]
    assert {n: p.tolist() for n, p in places_of([masks[0], masks[2]]).items()} == {1: [5]}
    assert {n: p.tolist() for n, p in places_of([masks[0]]).items()} == {0: [0]}
    assert places_of([masks[0][1:]]) == {}


def test_a_feature_that_is_all_of_an_edit_is_not_measured_twice():
    """Its tokens are those that are measured anyway; what several operations make of one feature is one."""
    first, second = (
        FeatureOp(feature=one.target.feature, numbers=[n]) for n, one in enumerate((STRONG, WEAK))
    )
    assert among_others([first], (STRONG,)) == []
    assert among_others([first, second], (STRONG, WEAK)) == [first, second]
    both = FeatureOp(feature=first.feature, numbers=[0, 1])
    assert among_others([both], (STRONG, STRONG)) == []
    assert name_of(first) == NAMES[0]
