"""The draw of an export bench's features: the condition holds on the tokens that their figures are of."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks import export_features, export_parents
from benchmarks.export import cells_of
from benchmarks.export_draw import drawn
from benchmarks.export_features import DENSITY, ENOUGH, FITTABLE, Texts, draw, firing, heard, intervention
from benchmarks.export_parents import Parent
from benchmarks.export_rows import Row, rows_of, targets
from benchmarks.kept_runs import KeptRuns
from benchmarks.laws import load_model
from benchmarks.replacements import NAME
from tests.builders import tiny_folder, tiny_hosted
from tests.resident_sets import resident_set
from trephine.domain.interventions import Ablate
from trephine.engine.runs.retain import windows_logits


@pytest.fixture(scope="module")
def model():
    """A tiny model of six layers with a transcoder at each."""
    hosted = tiny_hosted("llama", n_layers=6)
    resident_set(hosted, "jumprelu", name=NAME)
    return hosted


@pytest.fixture(scope="module")
def texts(model):
    """Random windows."""
    ids = random.Random(3)
    windows = [tuple(ids.randrange(5, model.info.d_vocab) for _ in range(32)) for _ in range(16)]
    return Texts(fit=windows[:4], measured=windows[4:])


def kl_where_it_fires(hosted, windows, feature, fires):
    """KL(original || ablated) and KL(ablated || original), straight from the logits."""
    ablation = (intervention(feature, Ablate()),)
    p, q = (
        torch.stack(windows_logits(hosted, windows, each)).double().log_softmax(-1) for each in ((), ablation)
    )
    return [float((a.exp() * (a - b)).sum(-1)[fires].mean()) for a, b in ((p, q), (q, p))]


def test_what_is_drawn_fulfils_the_condition_where_it_is_measured(model, texts, monkeypatch):
    """Density over both texts, firing tokens and nats wherever it fires, thirds of layers."""
    least = 1.9e-2
    monkeypatch.setattr(export_features, "LEAST_KL", least)  # at which some candidates fail
    said = []
    found = draw(model, texts, 5, 0, say=said.append)
    assert [each.feature.layer * 3 // 6 for each in found] == [0, 0, 1, 1, 2]
    assert len({each.feature for each in found}) == 5
    features = [each.feature for each in found]
    fit, measured = (firing(model, windows, features) for windows in (texts.fit, texts.measured))
    for each in found:
        fires = measured[each.feature]
        density = float(torch.cat([fit[each.feature], fires]).double().mean())
        assert density == pytest.approx(each.density)
        assert DENSITY[0] <= density <= DENSITY[1]
        assert int(fit[each.feature].sum()) >= FITTABLE
        assert int(fires.sum()) == each.tokens >= ENOUGH
        kl = kl_where_it_fires(model, texts.measured, each.feature, fires)
        assert kl == pytest.approx([each.kl, each.kl_of_edit], rel=1e-3)
        assert min(kl) >= least
    assert any(f"feature {found[0].feature.index}," in line for line in said)


def test_a_seed_draws_the_same_features_and_another_one_others(model, texts):
    """Nothing but the seed decides among those that fit."""
    first, again, other = (draw(model, texts, 5, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_too_few_features_that_matter_are_an_error(model, texts, monkeypatch):
    """Rather than a table of fewer features than it says."""
    monkeypatch.setattr(export_features, "LEAST_KL", 1e3)
    with pytest.raises(LookupError, match="0 of 2 features that matter in layers 0, 1"):
        draw(model, texts, 5, 0)


def test_a_draw_is_kept_and_its_figures_with_it(model, texts, tmp_path, monkeypatch):
    """A second bench takes it from the file; another seed is another draw."""
    kept = KeptRuns(tmp_path / "kept.json")
    first = drawn(model, texts, 3, 0, kept, lambda _: None)
    monkeypatch.setattr("benchmarks.export_draw.draw", lambda *_, **__: pytest.fail("drawn again"))
    assert drawn(model, texts, 3, 0, KeptRuns(tmp_path / "kept.json"), lambda _: None) == first
    with pytest.raises(pytest.fail.Exception, match="drawn again"):
        drawn(model, texts, 3, 1, kept, lambda _: None)


def test_cells_hold_the_tokens_of_the_draw(model, texts):
    """A single feature's cell has the tokens that the condition was held against; all at once have all."""
    found = draw(model, texts, 3, 0)
    (features, fires), *alone = cells_of(model, texts, found)
    assert features == [each.feature for each in found]
    assert torch.equal(fires, torch.stack([mask for _, mask in alone]).any(0))
    assert [(ref, int(mask.sum())) for (ref,), mask in alone] == [
        (each.feature, each.tokens) for each in found
    ]


def row(tier, dtype, *, recovery=1.0, kl=1e-3, edit=2e-2):
    """A cell whose floors are 1e-3 and 2e-3 nats."""
    return Row(
        dtype=dtype, what="1:2", tier=tier, edit_firing=edit, kl=kl, kl_firing=kl, kl_p999=kl,
        floor_firing=1e-3, floor_edited=2e-3,
        recovery=recovery, recovery_firing=recovery, recovery_same=recovery, tokens=16,
    )  # fmt: skip


def table(*, idle_kl=2e-2, edit=2e-2, narrow_kl=1e-3, recovery=1.0):
    """Rows of one feature."""
    return [
        row("graft", "float32", kl=1e-9, edit=edit, recovery=recovery),
        row("no-op", "float32", recovery=0.0, edit=edit),
        row("graft", "bfloat16", kl=narrow_kl),
        row("no-op", "bfloat16", kl=idle_kl),
    ]


def test_each_target_is_missed_by_what_it_is_there_for():
    """A graft too far off in either dtype, a copy that passes, features that do not matter."""

    def held(**changes: float) -> list[bool]:
        return [held for _, held in targets(table(**changes))]

    assert held() == [True] * 4
    assert held(recovery=0.98) == [False, True, True, True]
    assert held(narrow_kl=1.6e-3) == [True, False, True, True]
    assert held(idle_kl=1.4e-3) == [True, True, False, True]
    assert held(edit=9e-3) == [True, True, True, False]
    assert [each for _, each in targets([])] == [False] * 4


@pytest.mark.usefixtures("warm_cells")
def test_both_floors_stand_beside_a_graft_and_a_copy(model, texts, tmp_path, monkeypatch):
    """Wherever a feature fires, in parts: the graft lies with the floors, the no-op with the edit."""
    monkeypatch.setattr(export_parents, "PART", 7)  # twelve windows in two parts
    drawn_one = draw(model, texts, 3, 0)[0]
    fires = firing(model, texts.measured, [drawn_one.feature])[drawn_one.feature]
    stored = load_model(tiny_folder("llama", tmp_path / "tiny", n_layers=6))
    stored.replacements.update(model.replacements)
    parent = Parent(stored, "bfloat16", texts, tmp_path / "work")
    found = parent.distances([drawn_one.feature], fires)
    rows = {each.tier: each for each in rows_of("bfloat16", "1:2", found)}
    graft, idle = rows["graft"], rows["no-op"]
    assert graft.tokens == int(fires.sum()) == drawn_one.tokens
    assert len(found.fires) == 32 * len(heard(fires))
    floors = graft.floor_firing, graft.floor_edited, graft.kl_firing
    assert max(floors) < 0.01 * graft.edit_firing
    assert min(floors) > 1e-7
    assert idle.kl_firing == pytest.approx(graft.edit_firing, rel=0.02)
    changed = kl_where_it_fires(parent.hosted, texts.measured, drawn_one.feature, fires)
    assert graft.edit_firing == pytest.approx(changed[1], rel=1e-3)
