"""Changes of the stream in the end-to-end phase: put to both models alike, answered, learnt from."""

import pytest
import torch
from torch import Tensor

from tests.builders import tiny_hosted
from tests.unit.engine.fitting.fits import copying, random_dictionary
from trephine.domain.fitting import EndToEnd, FitRecipe
from trephine.domain.sites import Site, SiteKind
from trephine.engine.admission.splice import resumed
from trephine.engine.fitting import end_to_end
from trephine.engine.fitting.activations import ContextStream, seeded
from trephine.engine.fitting.changes import Change, drawn, streams_behind
from trephine.engine.fitting.contexts import Contexts
from trephine.engine.fitting.dictionary import Dictionary
from trephine.engine.fitting.end_to_end import EndToEndTrainee
from trephine.engine.fitting.gap import Tuning
from trephine.engine.fitting.optimiser import Rate
from trephine.engine.fitting.reconstruction import SplicedPass, batchwise, plain_logits
from trephine.engine.fitting.stage import Stage
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import touching

ROWS = torch.randint(3, 200, (8, 24), generator=torch.Generator().manual_seed(0))
LAYERS = 3


@pytest.fixture(scope="module")
def hosted() -> HostedModel:
    """A three-layer Llama."""
    return tiny_hosted("llama", n_layers=LAYERS)


def change(layer: int = 0, *, rows: int = 4, seed: int = 0) -> Change:
    """Change the stream of some rows behind a layer."""
    return Change(layer=layer, rows=rows, generator=seeded(seed))


def nmse(hosted: HostedModel, dictionaries: list[Dictionary], asked: Change, k: float = 6) -> Tensor:
    """Return a set's error in a change."""
    behind = range(asked.layer, LAYERS)
    with torch.no_grad(), streams_behind(hosted, behind) as plain:
        plain_logits(hosted, ROWS)
    run = SplicedPass(dictionaries=dictionaries, support=batchwise(k))
    with streams_behind(hosted, behind) as spliced:
        run.run(hosted, ROWS)
    return asked.error(hosted, ROWS, plain, spliced, run)


def test_changes_are_sparse_and_spare_the_attention_sink():
    """A quarter of the positions of every context is changed, at position 0 nothing is; the seed decides."""
    stream = torch.randn(3, 17, 5, generator=torch.Generator().manual_seed(1))
    made = drawn(stream, seeded(4))
    changed = made.abs().sum(-1) > 0
    assert not changed[:, 0].any()
    assert changed.sum(-1).tolist() == [4, 4, 4]
    assert torch.equal(made, drawn(stream, seeded(4)))
    assert not torch.equal(made, drawn(stream, seeded(5)))


def test_a_perfect_set_makes_no_error(hosted: HostedModel):
    """Dictionaries that copy what they read answer every change as the true model does."""
    perfect = [copying(layer) for layer in range(LAYERS)]
    assert float(nmse(hosted, perfect, change(), k=64).detach()) < 1e-9


def test_a_set_that_passes_nothing_on_errs_by_what_the_replaced_modules_add(hosted: HostedModel):
    """With MLPs that write a constant, the error is the MLPs' part of the true change; recomputed by hand."""
    mute = [random_dictionary(layer) for layer in range(LAYERS)]
    for dictionary in mute:
        for weight in (dictionary.W_enc, dictionary.W_dec, dictionary.W_skip):
            assert weight is not None
            weight.data.zero_()
    behind = range(1, LAYERS)
    with torch.no_grad():
        with streams_behind(hosted, behind) as plain:
            plain_logits(hosted, ROWS)
        delta = drawn(plain[1][:4], seeded(0))
        streams: list[Tensor] = []
        for start in (plain[1][:4], plain[1][:4] + delta):
            with resumed(hosted.architecture, 2, start), streams_behind(hosted, range(2, 3)) as kept:
                plain_logits(hosted, ROWS[:4])
            streams.append(kept[2])
        run = SplicedPass(dictionaries=mute, support=batchwise(6))
        with streams_behind(hosted, behind) as own:
            run.run(hosted, ROWS)
        silent = {Site(kind=SiteKind.MLP_OUT, layer=2): lambda x: x.zero_()}
        ours: list[Tensor] = []
        for start in (own[1][:4], own[1][:4] + delta):
            with (
                resumed(hosted.architecture, 2, start),
                touching(hosted.architecture, silent),
                streams_behind(hosted, range(2, 3)) as kept,
            ):
                plain_logits(hosted, ROWS[:4])
            ours.append(kept[2])
        wanted, given = streams[1] - streams[0], ours[1] - ours[0]
        expected = (given - wanted).square().sum() / wanted.square().sum()
        assert float(expected) > 1e-4
        assert float(nmse(hosted, mute, change(1))) == pytest.approx(float(expected), rel=1e-3)


def test_the_gradient_reaches_below_the_change_through_both_runs(hosted: HostedModel):
    """What moves the stream below a change moves both runs: the gradient is that of their difference."""
    dictionaries = [random_dictionary(layer) for layer in range(LAYERS)]
    for dictionary in dictionaries:
        dictionary.W_enc.data.zero_()  # only the skip path is left: no feature switches on or off
        dictionary.b_enc.data.zero_()
    bias = dictionaries[0].b_dec
    nmse(hosted, dictionaries, change(1)).backward()
    assert bias.grad is not None
    direction = bias.grad / bias.grad.norm()
    ends = []
    for step in (1e-2, -2e-2):
        bias.data += step * direction
        ends.append(float(nmse(hosted, dictionaries, change(1)).detach()))
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(bias.grad.norm()), rel=0.05)


def test_cross_layer_writes_are_carried_over_the_change(hosted: HostedModel):
    """Without a change of its own start, the pass above gives what the whole spliced pass gave."""
    dictionaries = [random_dictionary(layer, outputs=LAYERS - layer) for layer in range(LAYERS)]
    run = SplicedPass(dictionaries=dictionaries, support=batchwise(6))
    with torch.no_grad():
        with streams_behind(hosted, range(LAYERS)) as whole:
            run.run(hosted, ROWS)
        with resumed(hosted.architecture, 1, whole[0][:4]), streams_behind(hosted, range(1, LAYERS)) as again:
            run.above(0, 4).run(hosted, ROWS[:4])
    for layer in range(1, LAYERS):
        assert torch.allclose(again[layer], whole[layer][:4], atol=1e-5)


def test_the_phase_learns_to_answer_changes(hosted: HostedModel, monkeypatch: pytest.MonkeyPatch):
    """Changes that training does not see are answered better than with the weight at 0."""

    def after(weight: float) -> float:
        monkeypatch.setattr(end_to_end, "CHANGES", weight)
        dictionaries = [random_dictionary(layer) for layer in range(LAYERS)]
        trainee = trainee_of(hosted, dictionaries, seed=0)
        for _ in range(40):
            trainee.step(ROWS)
        with torch.no_grad():
            return float(nmse(hosted, dictionaries, change(1, seed=99), k=12))

    assert after(4.0) < 0.95 * after(0.0)


def trainee_of(hosted: HostedModel, dictionaries: list[Dictionary], seed: int) -> EndToEndTrainee:
    """Train dictionaries end to end."""
    return EndToEndTrainee(
        hosted, dictionaries, k=12, rate=Rate(peak=1e-2, steps=40), dead_after_tokens=10**6, seed=seed
    )


def test_a_recipes_seed_decides_on_the_changes(hosted: HostedModel):
    """Two phases of one seed end at the same weights; with another seed for the changes alone they do not."""
    contexts = Contexts(train=ROWS, calibration=ROWS, held_out=ROWS, prepends_bos=False)
    seeds = []

    def weights(seed: int, shift: int = 0) -> Tensor:
        def run(name: str, trainee: EndToEndTrainee, source: ContextStream) -> Stage:
            seeds.append(trainee._seed)
            trainee._seed += shift
            for number in range(source.plan.chunks):
                for batch in source.chunk(number):
                    trainee.step(batch)
            return None  # type: ignore[return-value]

        recipe = FitRecipe(
            d_sae=24, k=6, batch_tokens=92, end_to_end=EndToEnd(tokens=400, lr=1e-3), seed=seed
        )
        tuning = Tuning(hosted=hosted, recipe=recipe, contexts=contexts, run=run)  # type: ignore[arg-type]
        start = [random_dictionary(layer) for layer in range(LAYERS)]
        return tuning.end_to_end(start, tuning.plan(start))[0][2].W_enc.detach()

    once = weights(0)
    assert torch.equal(once, weights(0))
    assert not torch.equal(once, weights(0, shift=1))
    weights(1)
    assert seeds[0] != seeds[-1]


@pytest.mark.parametrize(("layers", "behind"), [([0], set()), ([1], {0}), ([0, 1, 2], {0, 1}), ([2], {1})])
def test_changes_lie_right_below_what_is_covered(hosted: HostedModel, layers: list[int], behind: set[int]):
    """They are made where a dictionary is still to come, and nowhere if there is no such place."""
    trainee = trainee_of(hosted, [random_dictionary(layer) for layer in layers], seed=0)
    drawn_behind = [trainee._change(8, seeded(i)) for i in range(30)]
    assert {each.layer for each in drawn_behind if each is not None} == behind
    trainee.step(ROWS)
