"""The attacks on planted behaviours: hidden, gone, too rare to tell."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch

from tests.builders import tiny_model
from tests.unit.engine.attack.organisms import (
    LAYER,
    LENGTH,
    TRIGGERS,
    planted,
    removed,
    request,
    rotated,
)
from trephine.domain.removal import AttackFigure
from trephine.engine.attack import relearning
from trephine.engine.attack.answers import Prefixes, Token, logits_of
from trephine.engine.attack.attack import attack
from trephine.engine.attack.behaviour import Behaviour, answers, behaviour, choose, share_of_kl, share_of_step
from trephine.engine.attack.intervals import figure
from trephine.engine.attack.recovery import _Attack
from trephine.engine.attack.relearning import Lessons, low_rank, stages
from trephine.engine.runs.divergence import kl_divergence

WINDOWS = [
    tuple(torch.randint(3, 400, (20,), generator=torch.Generator().manual_seed(seed)).tolist())
    for seed in range(3)
]
TOKENS = (Token(window=0, position=3), Token(window=2, position=11), Token(window=2, position=1))


def test_a_behaviour_that_only_moved_is_suppressed(tmp_path):
    """Its neuron still stands behind another direction, which a perturbation off the old one finds."""
    model, read = planted()
    found = attack(request(model, rotated(model, read), read, tmp_path), lambda _: None)
    assert found.verdict == "suppressed"
    strongest = found.figures[2]
    assert (strongest.kind, strongest.strength) == ("recovery", 0.1)
    assert strongest.excess.low > 0.2


def test_a_larger_perturbation_brings_back_no_less(tmp_path):
    """A smaller one lies within it: steps that are too large for what they find must not hide a way back."""
    model, read = planted()
    asked = request(model, rotated(model, read), read, tmp_path, budgets=(0.1, 20.0, 400.0))
    found = [one for one in attack(asked, lambda _: None).figures if one.kind == "recovery"]
    assert [one.strength for one in found] == [0.1, 20.0, 400.0]
    for one, larger in pairwise(found):
        assert larger.returned.value >= one.returned.value - 1e-3
        assert larger.unrelated.value >= one.unrelated.value - 1e-3


def test_an_attack_that_is_asked_for_the_word_alone_stops_where_it_is_certain(tmp_path):
    """The same word by fewer attacks: the last one that was run is the first that succeeded."""
    model, read = planted()
    brief = replace(request(model, rotated(model, read), read, tmp_path), until_decided=True)
    found = attack(brief, lambda _: None)
    assert found.verdict == "suppressed"
    assert [figure.succeeded for figure in found.figures] == [False] * (len(found.figures) - 1) + [True]
    assert {figure.kind for figure in found.figures} == {"recovery"}


def test_a_behaviour_without_another_path_is_removed(tmp_path):
    """Every attack does to it what it does to unrelated behaviours, and does something to those."""
    model, read = planted()
    found = attack(request(model, removed(model), read, tmp_path), lambda _: None)
    assert found.verdict == "removed"
    assert {figure.kind for figure in found.figures} == {"recovery", "benign", "few_shot"}
    assert all(figure.excess.high < 0.25 for figure in found.figures)
    assert found.figures[2].unrelated.low > 0.1
    # Few-shot training too is held against all five, and its interval is over them.
    assert {figure.unrelated_behaviours for figure in found.figures} == {found.unrelated_behaviours} == {5}
    shots = [figure for figure in found.figures if figure.kind == "few_shot"]
    assert all(figure.unrelated_most > figure.unrelated.value for figure in shots)


@pytest.mark.parametrize(
    ("rate", "says"), [(0.0, "too weak to show anything"), (1e25, "diverged")], ids=["idle", "diverging"]
)
def test_training_that_does_nothing_or_diverges_proves_no_removal(tmp_path, monkeypatch, rate, says):
    """The very organism that withstands real training; what is kept is plain JSON."""
    monkeypatch.setattr(relearning, "LEARNING_RATE", rate)
    model, read = planted()
    found = attack(request(model, removed(model), read, tmp_path), lambda _: None)
    assert found.verdict == "inconclusive"
    assert says in found.why
    json.dumps(asdict(found), allow_nan=False)


def test_training_that_diverges_stops(monkeypatch):
    """At once, with no number for the stages that it did not reach."""
    model, told = tiny_model("llama"), list[int]()
    losses = iter([1.0, torch.nan, 1.0, 1.0])

    def loss(_: int) -> torch.Tensor:
        return next(losses) * model(torch.tensor([WINDOWS[0]])).logits.square().mean()

    start = torch.zeros(len(TOKENS), model.config.vocab_size)
    tested = Behaviour(tokens=TOKENS, edited=start, goals=(start,))
    lessons = Lessons(windows=WINDOWS, training=(0,), shots=tested, tested=tested)
    monkeypatch.setattr(relearning, "stages", lambda _: (1, 2, 4))
    found = relearning._trained(model, loss, lessons, 4, 0, lambda done, _: told.append(done))
    assert [bool(found[step].isfinite().all()) for step in (1, 2, 4)] == [True, False, False]
    assert next(losses) == 1.0  # the third step was not run
    assert told == [1, 4]


def test_a_perturbation_that_diverges_has_no_best_answer():
    """A row that overflowed on its way was attacked for fewer steps than were asked for."""
    model = tiny_model("llama")
    with torch.no_grad():
        rows = Prefixes(model, WINDOWS, TOKENS)
        goal = rows.logits().roll(1, 0)
    attacker = _Attack(rows, [LAYER], torch.zeros(1, 32), torch.full((3, 1), 0.1))
    perturb, passes = attacker._perturb, iter(range(9))

    def overflowing(layer: int, x: torch.Tensor) -> torch.Tensor:
        factor = torch.ones(3, 1, 1)
        factor[1] = torch.nan if next(passes) == 2 else 1.0
        return perturb(layer, x) * factor

    attacker._perturb = overflowing
    found = attacker.optimised(goal, 4, lambda _: None)
    assert found.isfinite().all(-1).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("steps", "measured"), [(50, (20, 50)), (120, (20, 50, 100, 120)), (200, (20, 50, 100, 200)), (2, (1, 2))]
)
def test_longer_training_is_never_the_weaker_attack(steps, measured):
    """It is measured wherever a shorter one is, and at its end."""
    assert stages(steps) == measured


def test_an_interval_widens_with_what_unrelated_behaviours_differ_by():
    """Of equal ones no interval is left; of differing ones their most is said."""
    tokens = [Token(window=number, position=1) for number in range(8)]
    returned = torch.full((8,), 0.5)

    def excess(*shares: float) -> AttackFigure:
        unrelated = torch.tensor(shares)[:, None].expand(-1, 8)
        return figure("few_shot", 50, returned, unrelated, tokens, seed=0)

    equal, apart = excess(0.2, 0.2, 0.2), excess(0.0, 0.1, 0.5)
    assert equal.excess.high - equal.excess.low == pytest.approx(0.0, abs=1e-6)
    assert apart.excess.high - apart.excess.low > 0.2
    assert (apart.unrelated_most, apart.unrelated_behaviours) == (pytest.approx(0.5), 3)


def test_the_strongest_tokens_are_never_all_of_one_window():
    """Where others have some: the strongest of each of four windows, then the strongest of all."""
    effects = [torch.full((20,), strength) for strength in (9.0, 0.4, 0.3, 0.2, 0.1)]
    firing = [[True] * 20 for _ in effects]
    chosen = choose(effects, firing, range(5), 16)
    assert [sum(token.window == n for token in chosen) for n in range(5)] == [13, 1, 1, 1, 0]
    found = [effects[token.window][token.position].item() for token in chosen]
    assert found == sorted(found, reverse=True)
    assert {token.window for token in choose(effects, firing, range(2), 16)} == {0, 1}
    # Where the strongest stand in enough windows they are taken as they come.
    draw = torch.Generator().manual_seed(0)
    mixed = [torch.rand(20, generator=draw) + 0.1 for _ in range(5)]
    strongest = sorted((float(x) for each in mixed for x in each[1:]), reverse=True)[:16]
    assert [float(mixed[t.window][t.position]) for t in choose(mixed, firing, range(5), 16)] == strongest


def test_every_attack_says_on_how_much_it_was_measured(tmp_path):
    """Perturbations and training are measured on tokens of their own, each in enough contexts."""
    model, read = planted()
    whole = request(model, removed(model), read, tmp_path)
    window = tuple(int(TRIGGERS[n % len(TRIGGERS)]) for n in range(LENGTH))
    windows = (window, *whole.windows[1:])
    firing = ((True,) * LENGTH, *whole.firing[1:])
    brief = replace(whole, windows=windows, firing=firing, training_steps=2, recovery_steps=2, most_tokens=8)
    found = attack(brief, lambda _: None)
    assert {figure.kind for figure in found.figures} == {"recovery", "benign", "few_shot"}
    assert all(figure.n_tokens == 8 and figure.n_contexts >= 4 for figure in found.figures)
    trained = next(figure for figure in found.figures if figure.kind == "benign")
    assert (found.n_tokens, found.n_contexts) == (trained.n_tokens, trained.n_contexts)


def test_too_few_tokens_decide_nothing(tmp_path):
    """Nothing is attacked, and the sentence says what is missing."""
    model, read = planted()
    found = attack(request(model, removed(model), read, tmp_path, windows=4), lambda _: None)
    assert found.verdict == "inconclusive"
    assert found.figures == ()
    assert found.n_contexts == 2
    assert "more text" in found.why


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox", "gemma2"])
def test_tokens_behind_cached_prefixes_answer_as_in_their_windows(family):
    """Also with sliding windows and learned positions."""
    model = tiny_model(family)
    with torch.no_grad():
        found = Prefixes(model, WINDOWS, TOKENS).logits()
        expected = torch.stack([logits_of(model, WINDOWS[t.window])[t.position] for t in TOKENS])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_perturbations_keep_off_the_read_directions_and_within_their_budget():
    """After real steps of the optimiser, at every layer and row."""
    model = tiny_model("llama")
    read = torch.linalg.qr(torch.randn(32, 2, generator=torch.Generator().manual_seed(0)))[0].T
    radii = torch.tensor([[0.1, 0.2], [0.3, 0.1], [0.2, 0.2]])
    with torch.no_grad():
        rows = Prefixes(model, WINDOWS, TOKENS)
        goal = rows.logits().roll(1, 0)
    attacker = _Attack(rows, [0, LAYER], read, radii)
    before = kl_divergence(goal, rows.logits().detach())
    after = kl_divergence(goal, attacker.optimised(goal, 8, lambda _: None))
    added = attacker.perturbations().detach()
    assert bool((after < before).all())
    assert float((added @ read.T).abs().max()) < 1e-6
    assert bool((added.norm(dim=-1) <= radii + 1e-6).all())
    assert bool((added.norm(dim=-1) > 0.2 * radii).all())


def test_unrelated_behaviours_have_the_size_of_the_ablated_one():
    """In nats, per token; and none of them is the original's answer."""
    model, _ = planted()
    edited = removed(model)
    ids = [tuple([10, 40, 11, 60, 12, 80, 13, 90])]
    tokens = tuple(Token(window=0, position=position) for position in (2, 4, 6))
    with torch.no_grad():
        before, after = ([answers(each, window) for window in ids] for each in (model, edited))
        found = behaviour(tokens, before, after, edited.lm_head.weight, unrelated=3, seed=1)
    for goal in found.goals[1:]:
        size = kl_divergence(goal, found.edited)
        torch.testing.assert_close(size, found.effect, rtol=0.05, atol=1e-6)
        assert float(kl_divergence(goal, found.goals[0]).min()) > 0.5 * float(found.effect.min())


def test_shares_run_from_the_edited_to_the_original_answer():
    """0 and 1 at the ends for both measures; half the step is half by the step."""
    draw = torch.Generator().manual_seed(0)
    start, step = torch.randn(4, 50, generator=draw), 0.1 * torch.randn(4, 50, generator=draw)
    goal = start + step
    for measure in (share_of_kl, share_of_step):
        torch.testing.assert_close(
            measure(goal, start, start).double(), torch.zeros(4).double(), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            measure(goal, start, goal).double(), torch.ones(4).double(), atol=1e-5, rtol=0
        )
    torch.testing.assert_close(
        share_of_step(goal, start, start + step / 2), torch.full((4,), 0.5), atol=0.02, rtol=0
    )


def test_training_leaves_the_model_as_it_was():
    """Low-rank updates begin at zero and are taken off."""
    model = tiny_model("gpt2")
    plain = logits_of(model, WINDOWS[0])
    with low_rank(model, 0) as weights:
        torch.testing.assert_close(logits_of(model, WINDOWS[0]).detach(), plain)
        for weight in weights:
            weight.data += 0.1
        assert float((logits_of(model, WINDOWS[0]) - plain).detach().abs().max()) > 1e-3
    torch.testing.assert_close(logits_of(model, WINDOWS[0]), plain, atol=0, rtol=0)


def test_what_the_twin_loses_is_nothing_that_came_back(tmp_path):
    """Text that speaks against a behaviour drives it out of the twin; the edited model has none to lose."""
    model, read = planted(1)
    long = request(model, removed(model), read, tmp_path, training_steps=50, unrelated=3)
    found = attack(long, lambda _: None)
    benign = [one for one in found.figures if one.kind == "benign"]
    assert [one.strength for one in benign] == [20, 50]
    assert all(one.returned.value < 0.05 and not one.succeeded for one in benign)


def test_what_the_text_teaches_the_twin_as_well_is_taken_off():
    """Half of the way in both is nothing; what the twin goes back is not added."""
    draw = torch.Generator().manual_seed(0)
    start, step = torch.randn(4, 50, generator=draw), 0.01 * torch.randn(4, 50, generator=draw)
    half, back = start + step / 2, start - step / 2
    for twin, wanted in ((start, 0.5), (half, 0.0), (back, 0.5)):
        found = relearning._returned(start + step, start, half, twin)
        torch.testing.assert_close(found, torch.full((4,), wanted), atol=0.01, rtol=0)
    # A twin that moves either way, and nowhere over all, was taught nothing.
    either = start + torch.tensor([0.5, -0.5, 0.5, -0.5])[:, None] * step
    for twin in (either, start + (start - either)):
        found = relearning._returned(start + step, start, half, twin)
        assert abs(float(found.mean()) - 0.5) < 0.02


@pytest.mark.parametrize(("behaviours", "contexts"), [(3, 6), (5, 8), (3, 16)])
def test_an_interval_over_a_handful_holds_what_it_says(behaviours, contexts):
    """Of shares that are drawn, it holds the true excess about 95 times in 100; resampling alone, 80."""
    draw = torch.Generator().manual_seed(0)
    tokens = [Token(window=number // 2, position=number % 2 + 1) for number in range(2 * contexts)]
    held = 0
    for seed in range(200):
        by_context = 0.05 * torch.randn(1 + behaviours, contexts, generator=draw)
        shares = (0.2 + by_context).repeat_interleave(2, 1)
        shares[1:] += 0.1 * torch.randn(behaviours, 1, generator=draw)
        excess = figure("few_shot", 50, shares[0], shares[1:], tokens, seed=seed).excess
        held += excess.low <= 0.0 <= excess.high
    assert 0.92 * 200 <= held <= 0.995 * 200
