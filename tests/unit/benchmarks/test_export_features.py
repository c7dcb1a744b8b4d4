"""The draw of an export bench's features: the condition holds on the tokens that their figures are of."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks import export_features
from benchmarks.export import cells_of
from benchmarks.export_draw import drawn
from benchmarks.export_features import DENSITY, ENOUGH, FITTABLE, Texts, draw, firing, intervention, telling
from benchmarks.export_floors import Floors, RoundedParent, floors_targets
from benchmarks.export_rows import Row, good, targets
from benchmarks.kept_runs import KeptRuns
from benchmarks.laws import load_model
from benchmarks.replacements import NAME
from tests.builders import tiny_folder, tiny_hosted
from tests.resident_sets import resident_set
from trephine.domain.interventions import Ablate
from trephine.engine.retain import windows_logits


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
    """Density over both texts, firing tokens and nats in the feature's own windows, thirds of layers."""
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
        chosen = list(each.windows)
        assert chosen == telling([fires], 6)
        assert int(fires[chosen].sum()) == each.tokens >= ENOUGH
        kl = kl_where_it_fires(model, [texts.measured[n] for n in chosen], each.feature, fires[chosen])
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


def test_cells_hold_the_windows_and_tokens_of_the_draw(model, texts):
    """A single feature's cell has the tokens that the condition was held against, in the same windows."""
    found = draw(model, texts, 3, 0)
    left, cells = cells_of(model, texts, found, 8)
    (together, windows, mask), *alone = cells
    assert together == [each.feature for each in found]
    assert len(windows) == 8 == len(set(windows))
    assert mask.shape == (8 * 32,)
    for each, (features, chosen, fires) in zip(found, alone, strict=True):
        assert features == [each.feature]
        assert [left.measured[n] for n in chosen] == [texts.measured[n] for n in each.windows]
        assert int(fires.sum()) == each.tokens


def row(tier, dtype, *, recovery=1.0, kl=1e-3, edit=2e-2):
    """A cell whose floor is 1e-3 nats."""
    found = Row(
        dtype=dtype, what="1:2", tier=tier, edit_firing=edit, kl=kl, kl_firing=kl, kl_p999=kl,
        floor_firing=1e-3,
        recovery=recovery, recovery_firing=recovery, recovery_same=recovery, tokens=16, passed=False,
    )  # fmt: skip
    object.__setattr__(found, "passed", good(found))
    return found


def table(*, idle_kl=2e-2, edit=2e-2):
    """Rows of one feature."""
    return [
        row("graft", "float32", kl=1e-9, edit=edit),
        row("no-op", "float32", recovery=0.0, edit=edit),
        row("graft", "bfloat16"),
        row("no-op", "bfloat16", kl=idle_kl),
    ]


def test_the_targets_are_missed_by_a_copy_that_passes_in_either_dtype():
    """And by features that do not matter on the tokens of the table."""
    assert [held for _, held in targets(table())] == [True] * 4
    assert [held for _, held in targets(table(idle_kl=1.4e-3))] == [True, True, False, True]
    assert [held for _, held in targets(table(edit=9e-3))] == [True, True, True, False]


def test_rounding_is_measured_wherever_a_feature_fires(model, texts, tmp_path):
    """On every such token of the text: the graft lies with the two floors, the no-op with the edit."""
    found = draw(model, texts, 3, 0)[0]
    fires = firing(model, texts.measured, [found.feature])[found.feature]
    stored = load_model(tiny_folder("llama", tmp_path / "tiny", n_layers=6))
    stored.replacements.update(model.replacements)
    floors = RoundedParent(stored, texts, tmp_path / "work").floors([found.feature])
    assert floors.tokens == int(fires.sum()) >= found.tokens
    assert max(floors.unedited, floors.edited, floors.graft) < 0.01 * floors.edit
    assert min(floors.unedited, floors.edited, floors.graft) > 1e-7
    assert floors.idle == pytest.approx(floors.edit, rel=0.02)


def test_a_graft_is_held_against_the_unedited_model_s_rounding():
    """In its worst cell, with the no-op beside it; without cells nothing is met."""

    def held(**changes: float) -> list[bool]:
        given = {"edit": 1e-2, "unedited": 2e-3, "edited": 3e-3, "graft": 3e-3, "idle": 1e-2, **changes}
        return [held for _, held in floors_targets([Floors(what="0:1", tokens=50, **given)])]

    assert held() == [True, True]
    assert held(graft=3.1e-3) == [False, True]
    assert held(idle=2.9e-3) == [True, False]
    assert [each for _, each in floors_targets([])] == [False, False]
