"""The scorecard: verdicts that intervals allow, figures with planted answers, a card that hides nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf, nan, sqrt
from pathlib import Path

import pytest
import torch

from benchmarks.export_features import Drawn
from benchmarks.export_parents import TIERS, Distances
from benchmarks.scorecard import card, utility
from benchmarks.scorecard.attention import error, pearson
from benchmarks.scorecard.attention import resampled as compared
from benchmarks.scorecard.card import Measured, Suite, lines, measured, record, shown, verdict_of, write
from benchmarks.scorecard.entries import (
    Entry,
    above_zero,
    at_least,
    at_most,
    by_chance,
    counted,
    mean_of,
    together,
)
from benchmarks.scorecard.fidelity import predictions, transferred
from benchmarks.scorecard.groups import planted_groups, quality_entry
from benchmarks.scorecard.scale import slope
from benchmarks.scorecard.subject import Sizes, Subject
from benchmarks.shift_figures import Table
from trephine.domain.findings import Figure, Verdict
from trephine.domain.global_figures import BaselineComparison, GlobalBaseline, HeldOutTransfer
from trephine.domain.global_figures import Measured as AblatedTokens
from trephine.domain.group_scores import (
    ControlRange,
    GroupingScores,
    GroupQuality,
    PictureFigures,
    ScoredQuality,
)
from trephine.domain.sites import FeatureRef
from trephine.domain.standings import Standing
from trephine.domain.verification import (
    Agreement,
    Comparison,
    Examination,
    Faithfulness,
    Predictor,
    Substitute,
    VerificationReport,
)

PASS, FAIL, DOUBT = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


def figure(low: float | None, high: float | None, value: float = 0.5) -> Figure:
    """A figure with that interval."""
    return Figure(name="planted", value=value, low=low, high=high)


def entry(verdict: Verdict, value: float = 1.0, figure: str = "planted") -> Entry:
    """A line with that verdict."""
    return Entry(
        figure=figure, of="the set", value=counted("own", value), bar="at least 1", verdict=verdict, how="so"
    )


# --- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [(0.5, 0.9, PASS), (0.1, 0.5, DOUBT), (0.1, 0.4, FAIL), (nan, nan, DOUBT), (None, None, DOUBT)],
)
def test_a_verdict_needs_the_whole_interval(low, high, told):
    """Half of it, or none, is a doubt; the other bound and the mirrored figure say the opposite."""
    assert at_least(figure(low, high), 0.5) is told
    mirrored = figure(None if high is None else -high, None if low is None else -low)
    assert at_most(mirrored, -0.5) is told


def test_no_number_is_a_doubt_whatever_its_bounds():
    """NaN with an interval is a fault of what measured it."""
    assert at_least(figure(0.6, 0.9, nan), 0.5) is DOUBT
    assert at_most(figure(-inf, inf, nan), 0.5) is DOUBT


def test_a_difference_that_may_be_zero_is_a_doubt():
    """One in doubt leaves all in doubt, one below 0 fails them all, and none at all shows nothing."""
    sure, touching, below = figure(0.1, 0.2), figure(0.0, 0.2), figure(-0.2, -0.1)
    assert above_zero([sure, sure]) is PASS
    assert above_zero([sure, touching]) is DOUBT
    assert above_zero([touching, below]) is FAIL
    assert above_zero([]) is DOUBT
    assert together([]) is DOUBT


def test_a_large_p_value_proves_nothing():
    """It never fails; what is no number and no p-value at all are doubts as well."""
    assert by_chance([0.01, 0.05]) is PASS
    assert by_chance([0.01, 0.06]) is DOUBT
    assert by_chance([nan]) is DOUBT
    assert by_chance([]) is DOUBT


def test_the_mean_of_independent_figures_has_their_combined_interval():
    """Half widths add in squares, each side by itself; a figure without an interval leaves none."""
    found = mean_of("mean", [figure(0.2, 0.8, 0.4), figure(0.5, 0.7, 0.6)])
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5 - sqrt(0.2**2 + 0.1**2) / 2)
    assert found.high == pytest.approx(0.5 + sqrt(0.4**2 + 0.1**2) / 2)
    assert at_least(mean_of("mean", [figure(0.6, 0.7), figure(None, None)]), 0.1) is DOUBT
    assert at_least(mean_of("mean", []), -inf) is DOUBT


def test_the_interval_of_a_mean_holds_as_often_as_it_says():
    """95 of 100 with three figures of ten draws each."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        draws = torch.randn(3, 40, generator=generator, dtype=torch.float64)
        means, half = draws.mean(1), 1.96 * draws.std(1) / sqrt(40)
        parts = [figure(float(m - h), float(m + h), float(m)) for m, h in zip(means, half, strict=True)]
        whole = mean_of("mean", parts)
        held += (whole.low or 0) <= 0 <= (whole.high or 0)
    assert 0.92 <= held / 400 <= 0.98


# --- figures -------------------------------------------------------------------------------------


def test_a_planted_power_is_found():
    """Without noise the interval is the power itself; with noise it holds it; two points leave it open."""
    x = [1.0, 2.0, 3.0, 4.0]
    clean = slope(x, [1.2 * each + 5 for each in x])
    assert (clean.value, clean.low, clean.high) == pytest.approx((1.2, 1.2, 1.2))
    noisy = slope(x, [1.2 * each + off for each, off in zip(x, (0.1, -0.1, 0.1, -0.1), strict=True)])
    assert noisy.low is not None
    assert noisy.high is not None
    assert noisy.low < 1.2 < noisy.high
    assert at_most(slope(x[:2], x[:2]), 1.3) is DOUBT


def test_estimators_are_compared_on_the_same_pairs():
    """A perfect one has 1 and leads a noisy one; the error of predicting nothing is 1."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(12):
        true = torch.randn(30, generator=generator, dtype=torch.float64)
        noise = torch.randn(30, generator=generator, dtype=torch.float64)
        found.append({"true": true.tolist(), "own": true.tolist(), "other": (true + noise).tolist()})
    ours, theirs, lead = compared(found, "own", "other", pearson)
    assert ours.value == pytest.approx(1)
    assert theirs.high is not None
    assert theirs.high < 0.85
    assert above_zero([lead]) is PASS
    assert above_zero([compared(found, "other", "own", pearson)[2]]) is FAIL
    assert error(torch.tensor([1.0, 2.0]), torch.zeros(2)) == 1


def distances(left: float) -> Distances:
    """Three windows whose exports leave a share of an edit's KL, the no-op all of it."""
    edit = torch.full((3 * 128,), 0.2, dtype=torch.float64)
    fires = torch.zeros(3 * 128, dtype=torch.bool)
    fires[::64] = True
    exports = {tier: edit * left for tier in TIERS} | {"no-op": edit}
    return Distances(
        fires=fires, edit=edit, edit_same=edit, floor=edit, floor_edited=edit, exports=exports,
        exports_same=exports,
    )  # fmt: skip


@pytest.mark.parametrize(("left", "told"), [(0.001, PASS), (0.02, FAIL)])
def test_recovery_is_held_to_its_bar(left: float, told: Verdict):
    """What the weights leave of an ablation; the no-op stands beside it with nothing."""
    feature = FeatureRef(replacement="measured", layer=3, index=7)
    drawn = Drawn(feature=feature, density=0.01, tokens=6, kl=0.2, kl_of_edit=0.2)
    found = utility.recovered(drawn, distances(left))
    assert found.value.value == pytest.approx(1 - left)
    assert found.verdict is told
    assert {each.name: each.value for each in found.beside}["no-op"] == pytest.approx(0)
    assert "6 firing tokens" in found.how


def fair_table(ours: float) -> Table:
    """The original follows the attribute; the oracle is right; ours is right on a share of each group."""
    per_group = 200
    groups = [(y, a) for y in (0, 1) for a in (0, 1) for _ in range(per_group)]
    labels, attributes = [y for y, _ in groups], [a for _, a in groups]
    right = [y if n % per_group < ours * per_group else 1 - y for n, y in enumerate(labels)]
    arms = {"original": attributes, "oracle": labels, "LEACE": attributes, "token deletion": attributes}
    arms |= {"removed, neurons": right, "random, neurons": attributes}
    return Table({name: [values] for name, values in arms.items()}, [labels], [attributes])


@pytest.mark.parametrize(("ours", "told"), [(1.0, PASS), (0.985, DOUBT), (0.8, FAIL)])
def test_removal_is_held_to_the_oracle(ours: float, told: Verdict):
    """Two points of the worst group: a miss within noise is a doubt."""
    worst, agreement = utility.fair(fair_table(ours), "neurons", 200)
    assert worst.verdict is told
    assert worst.value.value == pytest.approx(ours, abs=0.006)
    assert agreement.verdict is PASS  # it errs alike in all groups
    assert {each.name: each.value for each in worst.beside}["original"] == 0


SINGLE = "single nodes"
PREDICTORS = {Predictor.SHOWN: 0.9, Predictor.PATHS: 0.6}


def report(lead: Figure, p: float) -> VerificationReport:
    """A verification in which paths lead every baseline alike."""
    agreements = tuple(
        Agreement(
            ablations=SINGLE, predictor=one, count=100, spearman=figure(rank - 0.1, rank + 0.1, rank),
            slope=figure(0, 1), how="",
        )
        for one, rank in PREDICTORS.items()
    )  # fmt: skip
    comparisons = tuple(
        Comparison(
            predictor=one, baseline=baseline, difference=lead, standing=Standing.BEATS, how=""
        )
        for one in (Predictor.SHOWN, Predictor.PATHS)
        for baseline in (Predictor.MAGNITUDE, Predictor.ACTIVATION_GRADIENT, Predictor.PERMUTED)
    )  # fmt: skip
    faithfulness = Faithfulness(
        substitute=Substitute.ZERO, baseline=1, empty=0, kept=1, removed=0, faithfulness=1, necessity=1,
        random_circuits=20, random_kept=0, random_removed=1, p_sufficient=p, p_necessary=0.04, how="",
    )  # fmt: skip
    given = Examination(
        title="", replacement="neurons", graph_features=100, circuit_features=40, first_position=0,
        baseline=1, agreements=agreements, comparisons=comparisons, depths=(), faithfulness=(faithfulness,),
        worst_case=None, measurements=(),
    )  # fmt: skip
    return VerificationReport(
        prompt="", target="", model="", weight_hash="", given=given, control=None, control_note="",
        caveats=(), seed=0, seconds=0, peak_extra_bytes=0,
    )  # fmt: skip


def test_predictions_are_held_against_their_baselines():
    """Means over prompts; a difference that may be 0 and a p-value above 0.05 are doubts."""
    clear = list(predictions("neurons", [report(figure(0.1, 0.3, 0.2), 0.04)] * 4, 100))
    assert [each.verdict for each in clear] == [PASS] * 4
    shown_effect, paths, *_ = clear
    assert (shown_effect.value.value, paths.value.value) == pytest.approx((0.9, 0.6))
    assert paths.value.low == pytest.approx(0.55)  # four prompts halve the interval
    leads = {each.name: each.value for each in paths.beside}
    assert leads["less that of activation x gradient"] == pytest.approx(0.2)
    assert len(leads) == 3
    assert "activation x gradient" in paths.bar
    assert "activation x gradient" not in shown_effect.bar  # they are the same
    unsure = list(predictions("neurons", [report(figure(-0.3, 0.3, 0.1), 0.2)] * 4, 100))
    assert [each.verdict for each in unsure] == [DOUBT, DOUBT, DOUBT, PASS]
    worse = list(predictions("neurons", [report(figure(-0.3, -0.2, -0.25), 0.04)] * 4, 100))
    assert [each.verdict for each in worse] == [FAIL, FAIL, PASS, PASS]


def test_groups_on_fewer_prompts_are_a_doubt():
    """What has no groups says nothing; planted ones are found."""
    drawn = ControlRange(median=0.4, low=0.3, high=0.5, p=0.01, p_worse=1)
    quality = ScoredQuality(
        quality=GroupQuality.SHOWN, value=0.8, random=drawn, by_layer=drawn, standing=Standing.BEATS
    )
    picture = PictureFigures(nodes=10, edges=20, replacement=None, completeness=None)
    scores = GroupingScores(
        groups=(), whole=(quality,), standing=Standing.BEATS, verdict="", inside=0.1, cancelled=0.1,
        before=picture, after=replace(picture, nodes=6), draws=199, seed=0,
    )  # fmt: skip
    of_all = quality_entry("neurons", GroupQuality.SHOWN, [scores, scores], 2)
    assert (of_all.verdict, of_all.value.value) == (PASS, pytest.approx(0.8))
    assert "20 nodes become 12" in of_all.how
    assert quality_entry("neurons", GroupQuality.SHOWN, [scores], 2).verdict is DOUBT
    assert quality_entry("neurons", GroupQuality.SHOWN, [], 2).verdict is DOUBT
    worse = replace(drawn, p=0.9, p_worse=0.04)  # in one of eight comparisons that is chance
    lost = replace(quality, random=worse, standing=Standing.DOES_NOT_BEAT)
    chance = [replace(scores, whole=(each,)) for each in (quality, lost, quality, quality)]
    assert quality_entry("neurons", GroupQuality.SHOWN, chance, 4).verdict is DOUBT
    lost = replace(quality, random=replace(worse, p_worse=0.005), standing=Standing.DOES_NOT_BEAT)
    chance[1] = replace(scores, whole=(lost,))
    assert quality_entry("neurons", GroupQuality.SHOWN, chance, 4).verdict is FAIL
    found = planted_groups()
    assert found.verdict is PASS


@pytest.mark.parametrize(
    ("low", "standing", "told"),
    [(0.75, Standing.BEATS, PASS), (0.6, Standing.BEATS, DOUBT), (0.75, Standing.DOES_NOT_BEAT, FAIL)],
)
def test_global_edges_need_their_bar_and_their_baselines(low: float, standing: Standing, told: Verdict):
    """Either can leave them in doubt or fail them."""
    comparison = BaselineComparison(
        baseline=GlobalBaseline.PERMUTED, spearman=figure(0.1, 0.3), difference=figure(0.1, 0.3),
        standing=standing, how="",
    )  # fmt: skip
    one = HeldOutTransfer(
        measured=AblatedTokens.TARGET,
        edges=48,
        spearman=figure(low, 0.9, 0.8),
        comparisons=(comparison,),
        how="",
    )
    assert transferred(one, "texts").verdict is told


# --- the card ------------------------------------------------------------------------------------


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """Folders with something in them; no model is loaded for what is planted."""
    for name in ("model", "set"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(name.encode())
    (tmp_path / "text.txt").write_text("held out")
    return Subject(
        model=tmp_path / "model",
        folder=tmp_path / "set",
        data=tmp_path,
        text=tmp_path / "text.txt",
        out=tmp_path / "out",
    )


def found(*verdicts: Verdict) -> Measured:
    """A suite with such lines."""
    return Measured(name="scale", entries=tuple(map(entry, verdicts)), seconds=1.0)


def test_one_line_decides_the_card():
    """A FAIL fails it, a doubt leaves it in doubt, and so does a suite that gave nothing."""
    assert verdict_of([found(PASS), found(PASS)]) is PASS
    assert verdict_of([found(PASS), found(DOUBT)]) is DOUBT
    assert verdict_of([found(DOUBT), found(PASS, FAIL)]) is FAIL
    assert verdict_of([found(PASS), found()]) is DOUBT
    assert verdict_of([]) is DOUBT


def test_the_card_names_what_was_not_measured(subject: Subject):
    """Suites that were left out, figures that are no numbers, and how each was measured."""
    text = "\n".join(lines(subject, [Measured(name="scale", entries=(entry(DOUBT, nan),), seconds=2.0)]))
    assert "not measured" in text
    assert "| INCONCLUSIVE |" in text
    assert "Not measured: reconstruction, attention" in text
    assert "planted (the set): so" in text
    assert "**INCONCLUSIVE**: 1 INCONCLUSIVE" in text


def test_figures_are_shown_with_their_intervals():
    """An exact number has none."""
    assert shown(figure(0.25, 0.75)) == "0.5 [0.25, 0.75]"
    assert shown(counted("n", 3)) == "3"
    assert shown(figure(None, None)) == "0.5"


def test_the_file_is_plain_json(subject: Subject):
    """What is no number is null; the card is written beside it."""
    each = Measured(
        name="scale", entries=(entry(DOUBT, nan), replace(entry(PASS), beside=(figure(0, inf),))), seconds=1.0
    )
    folder = write(subject, [each])
    body = json.loads((folder / "scorecard.json").read_text())
    assert body == json.loads(json.dumps(record(subject, [each])))
    first, second = body["suites"]["scale"]["entries"]
    assert first["value"]["value"] is None
    assert second["beside"][0] == {"name": "planted", "unit": "", "value": 0.5, "low": 0, "high": None}
    assert (body["verdict"], body["version"]) == ("inconclusive", 1)
    assert (folder / "scorecard.md").read_text().startswith("# Scorecard")


def test_suites_are_measured_once(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    """The same code, model, set, text and sizes are kept; any other is run again."""
    runs = []

    def run(of: Subject):
        runs.append(of.sizes.seed)
        yield entry(PASS, float(of.sizes.seed))

    monkeypatch.setattr(card, "SUITES", {"planted": Suite(title="Planted", run=run, whole="none")})
    monkeypatch.setattr(card, "code_of", lambda *names: "code")
    first = list(measured(subject, ["planted"], lambda _: None))
    assert list(measured(subject, ["planted"], lambda _: None)) == first
    assert runs == [0]
    other = replace(subject, sizes=Sizes(seed=1))
    assert next(measured(other, ["planted"], lambda _: None)).entries[0].value.value == 1
    (subject.folder / "weights.safetensors").write_bytes(b"another set")
    list(measured(replace(other), ["planted"], lambda _: None))
    assert runs == [0, 1, 1]
    monkeypatch.setattr(card, "code_of", lambda *names: "other code")
    list(measured(replace(other), ["planted"], lambda _: None))
    assert runs == [0, 1, 1, 1]


def test_a_suite_is_kept_under_every_source_that_its_lines_come_from():
    """Suites ask other benches and use cases: a change there is another card."""
    for name in ("benchmarks.attention_effects", "benchmarks.shift_arms", "trephine.app.circuits.pruning"):
        assert name.startswith(card._CODE)
    assert card.code_of(*card._CODE) != card.code_of(*card._CODE[1:])
