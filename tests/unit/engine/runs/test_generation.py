"""Generation: exact continuations, streaming, seeds, interventions in both phases, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from tests.builders import FAMILIES, hosted_from, tiny_hosted, tiny_model
from tests.unit.engine.interventions import at, direction, neuron
from tests.unit.engine.test_law6_reverting import hooks
from trephine.domain.errors import (
    EmptyPromptError,
    NonFiniteValueError,
    NothingMatchedError,
    PositionOutOfRangeError,
    PromptTooLongError,
    UnsupportedInterventionError,
)
from trephine.domain.generation import Generate, Row, Sampling, TokenEvent
from trephine.domain.interventions import (
    Ablate,
    Add,
    AddNormScaled,
    Clamp,
    MeanAblate,
    Mode,
    PatternMode,
    Phase,
    Resample,
    Selector,
    SetTo,
)
from trephine.domain.sites import SiteKind
from trephine.engine.models.session import Session
from trephine.engine.runs.generation import generate
from trephine.engine.runs.rows import RowInput, run_rows

PROMPTS = ("When Mary and John🙂 went", " the", "The cat gave a drink to the dog")


def run(hosted, rows: Any, **options: Any) -> tuple[list[TokenEvent], Any]:
    """Generate; return the events and the result."""
    rows = tuple(row if isinstance(row, Row) else Row(prompt=row) for row in rows)
    work, events = generate(Session(hosted=hosted), Generate(rows=rows, **options)), []
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            return events, stop.value
        if event is not None:
            events.append(event)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_rows_equal_transformers_generate(family):
    """A ragged greedy batch writes what `generate` writes for each prompt alone."""
    hosted, reference = tiny_hosted(family), tiny_model(family)
    completions = run(hosted, PROMPTS, max_new_tokens=32)[1].completions
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids = torch.tensor([hosted.encode(prompt)])
        expected = reference.generate(ids, max_new_tokens=32, do_sample=False, pad_token_id=1)[0].tolist()
        assert completion.token_ids == tuple(expected[ids.shape[1] :])
        assert completion.n_prompt_tokens == ids.shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_interventions_act_in_every_phase_as_without_a_cache(family):
    """Greedy decoding over a cache agrees with running the whole text anew for every token."""
    hosted = tiny_hosted(family)
    push = [float(i % 4) - 1.5 for i in range(32)]
    plans = [
        (
            neuron(0, 3, SetTo(value=3.0)),
            neuron(0, 4, Clamp(low=0.0)),
            direction(SiteKind.RESID_POST, 1, push, AddNormScaled(fraction=0.5)),
        ),
        (neuron(1, 5, Add(amount=4.0), selector=Selector(phases=(Phase.GENERATION,))),),
        (neuron(1, 5, Add(amount=4.0), selector=Selector(phases=(Phase.PROMPT,), exclude_positions=(0,))),),
    ]
    rows = [Row(prompt=p, interventions=plan) for p, plan in zip(PROMPTS, plans, strict=True)]
    completions = run(hosted, rows, max_new_tokens=8)[1].completions
    for row, completion in zip(rows, completions, strict=True):
        prompt, new = hosted.encode(row.prompt), list(completion.token_ids)
        full = RowInput([*prompt, *new], row.interventions, len(prompt))
        output = run_rows(hosted, [full])
        assert output.logits[0][len(prompt) - 1 : -1].argmax(-1).tolist() == new
        short = RowInput(full.ids[:-1], full.interventions, len(prompt))
        for streamed, whole in zip(completion.applied, run_rows(hosted, [short]).applied[0], strict=True):
            assert (streamed.index, streamed.layer, streamed.positions, streamed.changed) == (
                whole.index,
                whole.layer,
                whole.positions,
                whole.changed,
            )
            assert streamed.mean_change == pytest.approx(whole.mean_change, rel=1e-3)
    plain = run(hosted, PROMPTS, max_new_tokens=8)[1].completions
    assert [c.token_ids for c in plain] != [c.token_ids for c in completions]


def test_events_stream_and_join_to_the_completion():
    """Each row's pieces, joined, are its text; steps count up; no event follows the end."""
    hosted = tiny_hosted("llama")
    events, result = run(hosted, PROMPTS, max_new_tokens=24, sampling=Sampling(temperature=2.0, seed=3))
    for row, completion in enumerate(result.completions):
        mine = [e for e in events if e.row == row]
        assert [e.step for e in mine] == list(range(len(completion.token_ids)))
        assert tuple(e.token.id for e in mine) == completion.token_ids
        assert "".join(e.text for e in mine) == completion.text
        raw = b"".join(e.token.raw for e in mine if e.token.id > 2)
        assert completion.text == raw.decode("utf-8", "replace")
    assert (result.model, result.weight_hash) == (hosted.info.name, hosted.info.weight_hash)


def test_log_probabilities_are_of_the_plain_distribution():
    """The log-probability is before temperature, in nats."""
    hosted = tiny_hosted("llama")
    events, _ = run(hosted, [" Mary"], max_new_tokens=3, sampling=Sampling(temperature=0.5, seed=1))
    ids = hosted.encode(" Mary")
    for event in events:
        expected = run_rows(hosted, [RowInput(ids)]).logits[0][-1].double().log_softmax(-1)[event.token.id]
        assert event.log_probability == pytest.approx(float(expected), abs=1e-5)
        ids = [*ids, event.token.id]


def test_seeds_belong_to_rows():
    """The same seed writes the same; equal prompts in two rows differ; the global generator is left alone."""
    hosted, sampling = tiny_hosted("gpt2"), Sampling(temperature=1.5, top_p=0.9, seed=7)
    state = torch.random.get_rng_state()
    first = run(hosted, [" the", " the"], max_new_tokens=12, sampling=sampling)[1].completions
    torch.manual_seed(99)
    again = run(hosted, [" the", " the"], max_new_tokens=12, sampling=sampling)[1].completions
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    assert first[0].token_ids != first[1].token_ids
    other = run(hosted, [" the"], max_new_tokens=12, sampling=Sampling(temperature=1.5, seed=8))[1]
    assert other.completions[0].token_ids != first[0].token_ids
    torch.random.set_rng_state(state)


def stopping(hosted, prompt: str, step: int) -> int:
    """Return the token that greedy decoding writes at a step."""
    return run(hosted, [prompt], max_new_tokens=step + 1)[1].completions[0].token_ids[step]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_rows_stop_one_by_one(family):
    """A row ends at its end token, sends nothing more, and the others go on as if alone."""
    model = tiny_model(family)
    plain = tiny_hosted(family)
    end = stopping(plain, PROMPTS[0], 2)
    model.generation_config.eos_token_id = [end]
    hosted = hosted_from(model)
    events, result = run(hosted, PROMPTS, max_new_tokens=12)
    ended = result.completions[0]
    assert ended.finish_reason == "stop"
    assert ended.token_ids[-1] == end
    assert len(ended.token_ids) <= 3
    assert sum(e.row == 0 for e in events) == len(ended.token_ids)
    longest = max(len(c.token_ids) for c in result.completions)
    assert longest > len(ended.token_ids)
    alone = [run(hosted, [p], max_new_tokens=12)[1].completions[0] for p in PROMPTS]
    assert [c.token_ids for c in result.completions] == [c.token_ids for c in alone]


def test_the_end_token_is_no_text():
    """The end token is among the ids and absent from the text."""
    model = tiny_model("llama")
    model.lm_head.weight[0] = 1e3 * model.model.norm.weight  # <|end|> wins or loses by far
    hosted = hosted_from(model)
    result = run(hosted, [" Mary", " the", " cat", " store"], max_new_tokens=6)[1]
    stopped = [c for c in result.completions if c.finish_reason == "stop"]
    assert stopped
    assert all(c.token_ids[-1] == 0 and "end" not in c.text for c in stopped)


def test_one_decode_step_is_one_quantum():
    """Between two quanta at most one forward pass runs, and no hook stays installed."""
    hosted, passes = tiny_hosted("llama"), []
    row = Row(prompt=" Mary", interventions=(neuron(0, 1, Ablate()),))
    handle = hosted.model.model.embed_tokens.register_forward_hook(lambda *_: passes.append(1))
    before = hooks(hosted.model)
    work = generate(Session(hosted=hosted), Generate(rows=(row, Row(prompt=" the cat")), max_new_tokens=5))
    counts = []
    for _ in work:
        counts.append(len(passes))
        assert hooks(hosted.model) == before
    handle.remove()
    assert max(b - a for a, b in zip([0, *counts], counts, strict=False)) == 1
    assert len(passes) == 5


def test_abandoning_a_generation_leaves_nothing_behind():
    """Closing the generator in the middle ends the work; the model is as before."""
    hosted = tiny_hosted("llama")
    before = hooks(hosted.model)
    rows = (Row(prompt=" Mary", interventions=(neuron(0, 1, Ablate()),)),)
    work = generate(Session(hosted=hosted), Generate(rows=rows, max_new_tokens=50))
    for _ in range(5):
        next(work)
    work.close()
    assert hooks(hosted.model) == before


def test_many_rows_are_split_into_batches():
    """More rows than a batch holds come back in order."""
    hosted = tiny_hosted("llama")
    prompts = [" the" + " cat" * (i % 3) for i in range(70)]
    completions = run(hosted, prompts, max_new_tokens=2)[1].completions
    assert [c.n_prompt_tokens for c in completions] == [1 + i % 3 for i in range(70)]
    assert completions[0].token_ids == completions[66].token_ids


def test_prompts_that_do_not_fit_are_refused():
    """Prompt and new tokens together must fit the context; the row's field is named."""
    hosted = tiny_hosted("llama")
    with pytest.raises(PromptTooLongError, match="250 prompt tokens and 7 more") as caught:
        run(hosted, [" the", "x" * 250], max_new_tokens=7)
    assert caught.value.context["field"] == "rows[1].prompt"
    assert len(run(hosted, ["x" * 250], max_new_tokens=6)[1].completions[0].token_ids) == 6
    with pytest.raises(EmptyPromptError):
        run(hosted, [""], max_new_tokens=1)


FROZEN = Mode(patterns=PatternMode.FROZEN)
PROMPT_ONLY = Selector(phases=(Phase.PROMPT,))


def test_what_needs_a_known_text_is_refused_for_generated_tokens():
    """Frozen patterns and donors exist for the prompt only; restricted to it they are carried out."""
    hosted = tiny_hosted("llama")
    for refused in (neuron(0, 1, Add(amount=2.0), mode=FROZEN), neuron(0, 1, Resample(donor=" the cat"))):
        with pytest.raises(UnsupportedInterventionError, match=r"restrict selector\.phases"):
            run(hosted, [Row(prompt=" Mary", interventions=(refused,))], max_new_tokens=2)
    fine = (
        neuron(0, 1, Add(amount=2.0), mode=FROZEN, selector=PROMPT_ONLY),
        neuron(1, 1, Resample(donor=" the cat"), mode=FROZEN, selector=PROMPT_ONLY),
    )
    completion = run(hosted, [Row(prompt=" Mary", interventions=fine)], max_new_tokens=3)[1].completions[0]
    assert [a.positions for a in completion.applied] == [1, 1]
    short = neuron(1, 1, Resample(donor=" the"), selector=PROMPT_ONLY)
    with pytest.raises(PositionOutOfRangeError, match="donor has 1 tokens") as refused:
        run(hosted, [Row(prompt=" Mary and", interventions=(short,))], max_new_tokens=3)
    assert refused.value.context["field"] == "operation.resample_donor"


def test_mean_ablation_holds_for_generated_tokens():
    """A mean needs no position, so it applies to every generated token."""
    hosted = tiny_hosted("llama")
    row = Row(prompt=" Mary", interventions=(neuron(0, 1, MeanAblate(text=" the cat is")),))
    assert run(hosted, [row], max_new_tokens=4)[1].completions[0].applied[0].positions == 4


def test_what_matched_nothing_is_an_error():
    """Of the prompt it is known before the first token is sent, of generated tokens at the end."""
    hosted = tiny_hosted("llama")
    absent = neuron(0, 1, Ablate(), selector=Selector(tokens=(5,), phases=(Phase.PROMPT,)))
    work = generate(
        Session(hosted=hosted),
        Generate(rows=(Row(prompt=" the"), Row(prompt=" Mary", interventions=(absent,))), max_new_tokens=3),
    )
    next(work)
    with pytest.raises(NothingMatchedError) as caught:
        next(work)
    assert caught.value.context["row"] == 1
    never = neuron(0, 1, Ablate(), selector=Selector(phases=(Phase.GENERATION,)))
    with pytest.raises(NothingMatchedError, match="intervention 0"):
        run(hosted, [Row(prompt=" Mary", interventions=(never,))], max_new_tokens=1)


def test_positions_may_name_tokens_to_come():
    """A position after the prompt is one of the generated tokens; beyond them it does not exist."""
    hosted = tiny_hosted("llama")
    later = Row(prompt=" Mary and", interventions=(neuron(0, 1, Add(amount=1.0), selector=at(3)),))
    assert run(hosted, [later], max_new_tokens=4)[1].completions[0].applied[0].positions == 1
    with pytest.raises(PositionOutOfRangeError, match="positions 0 to 3"):
        run(
            hosted,
            [Row(prompt=" Mary and", interventions=(neuron(0, 1, Ablate(), selector=at(4)),))],
            max_new_tokens=2,
        )


def test_generation_runs_beside_other_work_in_one_thread():
    """Quanta of two generations may alternate: no state is shared between them."""
    hosted = tiny_hosted("gemma2")
    alone = [run(hosted, [p], max_new_tokens=6)[1].completions[0].token_ids for p in PROMPTS[:2]]

    async def drive(prompt: str) -> Any:
        work = generate(Session(hosted=hosted), Generate(rows=(Row(prompt=prompt),), max_new_tokens=6))
        while True:
            try:
                next(work)
            except StopIteration as stop:
                return stop.value.completions[0].token_ids
            await asyncio.sleep(0)

    async def both() -> Any:
        return await asyncio.gather(*(drive(p) for p in PROMPTS[:2]))

    assert asyncio.run(both()) == alone


# --- overflow ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("size", [1e20, 3e38], ids=["a norm", "float32"])
def test_a_row_that_overflows_ends_and_its_neighbours_go_on(size, temperature):
    """Finite logits behind a norm that overflowed are no answer, either; neighbours write as alone."""
    hosted = tiny_hosted("llama")
    sampling = Sampling(temperature=temperature, seed=3)
    broken = Row(prompt=PROMPTS[1], interventions=(neuron(0, 3, SetTo(value=size)),))
    mild = Row(prompt=PROMPTS[2], interventions=(neuron(0, 3, SetTo(value=1.0)),))
    events, result = run(hosted, [PROMPTS[0], broken, mild], max_new_tokens=8, sampling=sampling)
    first, ended, last = result.completions
    assert (ended.text, ended.token_ids, ended.finish_reason) == ("", (), "overflow")
    (said,) = ended.caveats
    assert said.startswith(
        "rows[1]: under its interventions and edits the activations overflow float32 on its"
    )
    assert "lower the strength" in said
    assert {event.row for event in events} == {0, 2}
    alone = run(hosted, [PROMPTS[0], PROMPTS[1], mild], max_new_tokens=8, sampling=sampling)[1].completions
    assert (first, last) == (alone[0], alone[2])
    with pytest.raises(NonFiniteValueError, match=r"rows\[0\]: under its interventions"):
        run(hosted, [broken, broken], sampling=sampling)


def test_a_row_may_overflow_while_it_is_written():
    """What was written before stays, and the caveat counts it; what had no time to match is no error."""
    hosted = tiny_hosted("gpt2")
    begun = run(hosted, [PROMPTS[2]], max_new_tokens=3)[1].completions[0]
    late, never = (at(begun.n_prompt_tokens + place) for place in (1, 3))
    changes = (neuron(1, 2, SetTo(value=3e38), selector=late), neuron(1, 5, Ablate(), selector=never))
    rows = [PROMPTS[0], Row(prompt=PROMPTS[2], interventions=changes)]
    whole, ended = run(hosted, rows, max_new_tokens=6)[1].completions
    assert whole.finish_reason != "overflow"
    assert ended.finish_reason == "overflow"
    assert ended.token_ids == begun.token_ids[:2]
    assert "after 2 new tokens" in ended.caveats[0]


def test_a_model_that_overflows_by_itself_is_named():
    """Without interventions it is the weights or the type."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteValueError, match="Load it as float32, or check the checkpoint"):
        run(hosted_from(model), PROMPTS)
