"""Every operation on every target does what the language says, measured against independent oracles."""

from __future__ import annotations

import pytest
import torch

from tests.builders import FAMILIES, hosted_from, tiny_hosted, tiny_model
from tests.unit.engine.interventions import at, direction, neuron, whole
from trephine.domain.errors import NothingMatchedError
from trephine.domain.interventions import (
    Ablate,
    Add,
    AddNormScaled,
    Clamp,
    Condition,
    Intervention,
    MeanAblate,
    Mode,
    PatternMode,
    Phase,
    ProjectOut,
    Resample,
    Scale,
    Selector,
    SetTo,
)
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.models.architecture import describe_architecture
from trephine.engine.models.neurons import decoder_norms, decoders, neuron_site
from trephine.engine.runs.rows import RowInput, run_rows

PROMPT, DONOR = " Mary and John went to the store", " the capital of France is Paris"
F64 = torch.float64
NEURONS1 = neuron_site(1)


@pytest.fixture(scope="module")
def llama():
    """A tiny model in float64, so that oracles need no rounding allowance."""
    return tiny_hosted("llama", dtype=F64)


def read(hosted, site, *interventions: Intervention, prompt=PROMPT):
    """Read a site of a row under interventions."""
    row = RowInput(hosted.encode(prompt), interventions)
    return run_rows(hosted, [row], reads=[site]).values[0][site]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (Ablate(), lambda a: 0 * a),
        (Scale(factor=-1.5), lambda a: -1.5 * a),
        (SetTo(value=0.7), lambda a: 0 * a + 0.7),
        (Clamp(low=-0.1), lambda a: a.clamp(min=-0.1)),
        (Clamp(low=-0.05, high=0.05), lambda a: a.clamp(-0.05, 0.05)),
        (Add(amount=2.0), lambda a: a + 2.0),
    ],
)
def test_operations_on_a_neuron(llama, operation, expected):
    """A neuron's activation is changed as named; its neighbours are not touched."""
    plain, changed = read(llama, NEURONS1), read(llama, NEURONS1, neuron(1, 7, operation))
    torch.testing.assert_close(changed[:, 7], expected(plain[:, 7]), atol=1e-12, rtol=0)
    others = [i for i in range(64) if i != 7]
    assert torch.equal(changed[:, others], plain[:, others])


def test_mean_and_resample_of_a_neuron(llama):
    """The mean leaves out position 0 of its text; resampling takes the same positions."""
    donor = read(llama, NEURONS1, prompt=DONOR)[:, 3]
    mean = read(llama, NEURONS1, neuron(1, 3, MeanAblate(text=DONOR)))[:, 3]
    torch.testing.assert_close(mean, donor[1:].mean().expand_as(mean))
    plain = read(llama, NEURONS1)[:, 3]
    swapped = read(llama, NEURONS1, neuron(1, 3, Resample(donor=DONOR), selector=at(1, 4)))[:, 3]
    assert torch.equal(swapped[[1, 4]], donor[[1, 4]])
    assert torch.equal(swapped[[0, 2, 3, 5, 6]], plain[[0, 2, 3, 5, 6]])


@pytest.mark.parametrize("family", FAMILIES)
def test_ablating_neurons_equals_zeroing_their_columns(family):
    """Ablation at every position is the edit that zeroes the down projection's columns."""
    hosted = tiny_hosted(family, dtype=F64)
    edited = tiny_model(family, dtype=F64)
    chosen = [(0, 3), (1, 9), (1, 10), (2, 63)]
    blocks = describe_architecture(edited).blocks
    for layer, index in chosen:
        blocks[layer].mlp.W_down[:, index] = 0.0
    ids = hosted.encode(PROMPT)
    runtime = run_rows(hosted, [RowInput(ids, tuple(neuron(*place, Ablate()) for place in chosen))]).logits[0]
    exported = run_rows(hosted_from(edited), [RowInput(ids)]).logits[0]
    torch.testing.assert_close(runtime, exported, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_projecting_a_neuron_out_clears_its_decoder_from_the_output(family):
    """`project_out` of a feature removes the MLP output's whole component along its decoder."""
    hosted = tiny_hosted(family, dtype=F64)
    decoder = decoders(hosted.architecture, 1, [5])[0]
    out = Site(kind=SiteKind.MLP_OUT, layer=1)
    assert (read(hosted, out) @ decoder).abs().max() > 1e-3
    changed = read(hosted, out, neuron(1, 5, ProjectOut()))
    assert (changed @ decoder).abs().max() < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_write_what_the_neuron_adds(family):
    """Adding one unit to a neuron moves the MLP's output along its decoder, up to a post-norm's scale."""
    hosted = tiny_hosted(family, dtype=F64)
    site = Site(kind=SiteKind.MLP_OUT, layer=1)
    small = 1e-6
    moved = (read(hosted, site, neuron(1, 5, Add(amount=small))) - read(hosted, site)) / small
    decoder = decoders(hosted.architecture, 1, [5])[0]
    if hosted.architecture.blocks[1].mlp_post_norm is None:
        torch.testing.assert_close(moved, decoder.expand_as(moved), atol=1e-8, rtol=0)
        torch.testing.assert_close(decoder_norms(hosted.architecture, 1)[5], decoder.norm())
    else:
        scale = hosted.architecture.blocks[1].mlp_post_norm
        assert torch.isfinite(decoder_norms(hosted.architecture, 1)).all()
        gain = scale.gain
        raw = hosted.architecture.blocks[1].mlp.W_down[:, 5]
        torch.testing.assert_close(decoder, raw * gain)


VECTOR_SITES = [
    (family, kind)
    for family in FAMILIES
    for kind in SiteKind
    if kind is not SiteKind.NEURONS and (family, kind) != ("gpt_neox", SiteKind.RESID_MID)
]


@pytest.mark.parametrize(("family", "kind"), VECTOR_SITES)
def test_operations_on_a_direction(family, kind):
    """At every site the component along the vector becomes what is asked for; the rest stays."""
    hosted = tiny_hosted(family, dtype=F64)
    layer = 0 if kind is SiteKind.EMBED else 1
    site = Site(kind=kind, layer=layer)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=F64)
    unit, plain = vector / vector.norm(), read(hosted, site)
    component, rest = plain @ unit, plain - (plain @ unit)[:, None] * unit
    cases = [
        (Add(amount=0.5), component + 0.5 * vector.norm()),
        (AddNormScaled(fraction=-0.3), component - 0.3 * plain.norm(dim=-1)),
        (ProjectOut(), 0 * component),
        (Ablate(), 0 * component),
        (Scale(factor=2.0), 2 * component),
        (SetTo(value=1.5), 0 * component + 1.5),
        (Clamp(low=0.0), component.clamp(min=0)),
        (MeanAblate(text=DONOR), (read(hosted, site, prompt=DONOR) @ unit)[1:].mean().expand_as(component)),
    ]
    for operation, wanted in cases:
        changed = read(hosted, site, direction(kind, layer, vector.tolist(), operation))
        torch.testing.assert_close(changed @ unit, wanted, atol=1e-10, rtol=0, msg=operation.kind)
        torch.testing.assert_close(changed - (changed @ unit)[:, None] * unit, rest, atol=1e-10, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_writes_reach_everything_downstream(family):
    """The same vector added where streams meet gives the same logits, whichever site is named."""
    hosted = tiny_hosted(family, dtype=F64)
    vector = [0.3 * (i % 3 - 1) for i in range(32)]
    places = [(SiteKind.RESID_POST, 0), (SiteKind.RESID_PRE, 1)]
    if not hosted.architecture.blocks[0].parallel:
        places += [(SiteKind.MLP_OUT, 0)]
    ids = hosted.encode(PROMPT)
    rows = [RowInput(ids, (direction(kind, layer, vector, Add(amount=1.0)),)) for kind, layer in places]
    first, *others = run_rows(hosted, rows).logits
    assert not torch.allclose(first, run_rows(hosted, [RowInput(ids)]).logits[0], atol=1e-3)
    for logits in others:
        torch.testing.assert_close(logits, first, atol=1e-10, rtol=0)
    if not hosted.architecture.blocks[0].parallel:
        mid, out = (
            run_rows(hosted, [RowInput(ids, (direction(kind, 1, vector, Add(amount=1.0)),))]).logits[0]
            for kind in (SiteKind.RESID_MID, SiteKind.ATTN_OUT)
        )
        torch.testing.assert_close(mid, out, atol=1e-10, rtol=0)


def test_operations_on_a_whole_site(llama):
    """A whole activation can be zeroed, scaled, replaced by a mean or by another prompt's."""
    site = Site(kind=SiteKind.ATTN_OUT, layer=1)
    plain, donor = read(llama, site), read(llama, site, prompt=DONOR)
    assert not read(llama, site, whole(site.kind, 1, Ablate())).any()
    torch.testing.assert_close(read(llama, site, whole(site.kind, 1, Scale(factor=3.0))), 3 * plain)
    mean = read(llama, site, whole(site.kind, 1, MeanAblate(text=DONOR)))
    torch.testing.assert_close(mean, donor[1:].mean(0).expand_as(mean))
    swapped = read(llama, site, whole(site.kind, 1, Resample(donor=DONOR), selector=at(2)))
    assert torch.equal(swapped[2], donor[2])
    assert torch.equal(swapped[3], plain[3])


def test_order_within_a_site_is_the_requests(llama):
    """Set, then add, then scale: the list's order counts, also for one and the same neuron."""
    steps = (SetTo(value=1.0), Add(amount=2.0), Scale(factor=3.0))
    changed = read(llama, NEURONS1, *(neuron(1, 4, step) for step in steps))
    torch.testing.assert_close(changed[:, 4], torch.full_like(changed[:, 4], 9.0))
    backwards = read(llama, NEURONS1, *(neuron(1, 4, step) for step in reversed(steps)))
    torch.testing.assert_close(backwards[:, 4], torch.full_like(changed[:, 4], 1.0))


def test_selectors_say_where(llama):
    """Positions (from either end), tokens, phases and exclusions are intersected; exclusions win."""
    ids = llama.encode(PROMPT)
    mary, john = ids[0], ids[2]
    cases = [
        (Selector(positions=(0, -1)), {0, 6}),
        (Selector(tokens=(mary, john)), {0, 2}),
        (Selector(tokens=(mary, john), exclude_positions=(0,)), {2}),
        (Selector(exclude_positions=(-1, 0)), {1, 2, 3, 4, 5}),
        (Selector(exclude_tokens=(john,), positions=(1, 2, 3)), {1, 3}),
    ]
    plain = read(llama, NEURONS1)
    for selector, expected in cases:
        changed = read(llama, NEURONS1, neuron(1, 4, Add(amount=1.0), selector=selector))
        assert set((changed != plain)[:, 4].nonzero().flatten().tolist()) == expected, selector


def test_phases_split_a_row_at_its_prompt(llama):
    """Tokens after `n_prompt` are generated ones, and negative positions count from the prompt's end."""
    ids, plain = llama.encode(PROMPT), read(llama, NEURONS1)
    for selector, expected in [
        (Selector(phases=(Phase.PROMPT,)), {0, 1, 2, 3}),
        (Selector(phases=(Phase.GENERATION,)), {4, 5, 6}),
        (at(-1), {3}),
    ]:
        row = RowInput(ids, (neuron(1, 4, Add(amount=1.0), selector=selector),), n_prompt=4)
        changed = run_rows(llama, [row], reads=[NEURONS1]).values[0][NEURONS1]
        assert set((changed != plain)[:, 4].nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize("layer", [0, 1])
def test_a_condition_holds_back_a_write(llama, layer):
    """Only positions where the condition's neuron is large enough are written; earlier writes count."""
    gate = read(llama, neuron_site(layer))[:, 11]
    threshold = float(gate.median())
    condition = Condition(feature=FeatureRef(layer=layer, index=11), at_least=threshold)
    plain = read(llama, NEURONS1)
    row = RowInput(llama.encode(PROMPT), (neuron(1, 4, Add(amount=1.0), condition=condition),))
    output = run_rows(llama, [row], reads=[NEURONS1])
    changed = output.values[0][NEURONS1]
    assert torch.equal((changed != plain)[:, 4], gate >= threshold)
    assert output.applied[0][0].positions == int((gate >= threshold).sum())
    opened = (neuron(layer, 11, SetTo(value=99.0)), row.interventions[0])
    assert run_rows(llama, [RowInput(row.ids, opened)]).applied[0][1].positions == len(row.ids)


def test_frozen_patterns_stay_those_of_the_clean_run(llama):
    """Rows that freeze patterns keep the clean ones in every layer; live rows beside them do not."""
    ids = llama.encode(PROMPT)
    push = [1.0] * 32
    frozen = direction(SiteKind.RESID_PRE, 0, push, Add(amount=2.0), mode=Mode(patterns=PatternMode.FROZEN))
    live = direction(SiteKind.RESID_PRE, 0, push, Add(amount=2.0))
    rows = [RowInput(ids), RowInput(ids, (frozen,)), RowInput(ids, (live,)), RowInput(ids[:3], (frozen,))]
    output = run_rows(llama, rows, record_patterns=True)
    for layer in range(3):
        clean, held, moved, short = (patterns[layer] for patterns in output.patterns)
        assert torch.equal(held, clean)
        assert not torch.allclose(moved, clean, atol=1e-3)
        torch.testing.assert_close(short, clean[:, :3, :3], atol=1e-12, rtol=0)
    assert not torch.allclose(output.logits[1], output.logits[2], atol=1e-3)


def test_the_echo_counts_and_measures(llama):
    """Applied names layer, number of positions, and mean and largest L2 change, in the request's order."""
    plain = read(llama, NEURONS1)
    site = Site(kind=SiteKind.MLP_OUT, layer=2)
    row = RowInput(
        llama.encode(PROMPT),
        (whole(site.kind, 2, Ablate()), neuron(1, 4, Ablate()), neuron(1, 5, Ablate(), selector=at(1, 2))),
    )
    output = run_rows(llama, [RowInput(row.ids, row.interventions[1:]), row])
    site_echo, first, second = output.applied[1]
    assert (first.index, first.layer, first.positions) == (1, 1, 7)
    assert first.mean_change == pytest.approx(plain[:, 4].abs().mean().item())
    assert first.max_change == pytest.approx(plain[:, 4].abs().max().item())
    assert (second.positions, second.mean_change) == (2, pytest.approx(plain[1:3, 5].abs().mean().item()))
    before = read(llama, site, *row.interventions[1:])
    assert (site_echo.index, site_echo.layer) == (0, 2)
    assert site_echo.mean_change == pytest.approx(before.norm(dim=-1).mean().item())
    assert [echo.changed for echo in output.applied[1]] == [7, 7, 2]


def test_the_echo_tells_changes_from_writes(llama):
    """What is written as it was has not changed: a second clamp, strength 0 and factor 1 move nothing."""
    low = float(read(llama, NEURONS1)[:, 7].median())
    below = int((read(llama, NEURONS1)[:, 7] < low).sum())
    clamp = neuron(1, 7, Clamp(low=low))
    nothing = (neuron(1, 8, Scale(factor=1.0)), neuron(1, 9, SetTo(value=3.0), mode=Mode(strength=0.0)))
    rows = [
        RowInput(llama.encode(PROMPT), (*nothing, clamp, clamp)),
        RowInput(
            llama.encode(DONOR), (neuron(1, 7, Ablate()), whole(SiteKind.MLP_OUT, 0, Scale(factor=1.0)))
        ),
    ]
    first, second = run_rows(llama, rows).applied
    assert 0 < below < 7
    assert [(echo.positions, echo.changed) for echo in first] == [(7, 0), (7, 0), (7, below), (7, 0)]
    assert [echo.changed for echo in second] == [len(rows[1].ids), 0]
    assert all((echo.changed == 0) == (echo.max_change == 0) for echo in (*first, *second))


def test_what_matches_nothing_is_an_error(llama):
    """Silence would look like success; only callers that expect absence may ask for it."""
    absent = neuron(1, 4, Ablate(), selector=Selector(tokens=(5,)))
    row = RowInput(llama.encode(PROMPT), (neuron(0, 0, Ablate()), absent))
    with pytest.raises(NothingMatchedError, match="intervention 1 matched no position") as caught:
        run_rows(llama, [row])
    assert caught.value.context["field"] == "interventions[1].selector"
    applied = run_rows(llama, [row], allow_unmatched=True).applied[0]
    assert (applied[0].positions, applied[1].positions, applied[1].mean_change) == (7, 0, 0.0)
    beyond = RowInput(row.ids, (neuron(0, 0, Ablate()), neuron(0, 0, Ablate(), selector=at(20, -20))))
    assert [a.positions for a in run_rows(llama, [beyond], allow_unmatched=True).applied[0]] == [7, 0]


def test_bfloat16_is_written_with_one_rounding():
    """In half precision a value that is set is the nearest representable one."""
    hosted = tiny_hosted("llama", dtype=torch.bfloat16)
    changed = read(hosted, NEURONS1, neuron(1, 4, SetTo(value=0.1)))
    assert torch.equal(changed[:, 4], torch.full_like(changed[:, 4], 0.1))
