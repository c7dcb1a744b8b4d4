"""EvaluateEdit through a real gRPC server over a real engine process with a tiny model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.builders import tiny_folder
from tests.integration.server_house import edge
from trephine.client.aio.edits import AsyncEdits
from trephine.client.aio.wire import AsyncWire
from trephine.client.endpoint import Endpoint
from trephine.client.errors import InvalidRequestError, ResourceNotFoundError, TooFewItemsError
from trephine.client.evaluation_sets import item
from trephine.client.interventions import feature
from trephine.client.types import EditVerdict, EvaluationArm, EvaluationRole, EvaluationSet
from trephine.ipc.engine_proxy import SubprocessEngineLauncher

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
SUBJECTS = (" cat", " dog", " the cat", " the dog", " a cat", " a dog", " the store", " France")
NAMES = EvaluationSet(
    name="names",
    role=EvaluationRole.TARGET,
    items=tuple(item(f"When Mary and John went to{subject}", " Mary", " John") for subject in SUBJECTS),
)
TEXTS = EvaluationSet(
    name="texts",
    role=EvaluationRole.RETAIN,
    texts=tuple(f"The capital of France is{subject} and the drink" for subject in SUBJECTS),
)
QUICK = {"controls": 4, "wrong_layer_sets": 2, "tokens": 64, "resamples": 100, "shots": (1,)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edits(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncEdits]:
    """The edits of a server with a tiny Llama."""
    folder = tmp_path_factory.mktemp("edge")
    tiny_folder("llama", folder / "roots" / "tiny")
    async with edge(folder, launcher=SubprocessEngineLauncher(threads=1)) as server:
        await server.load()
        yield AsyncEdits(AsyncWire(Endpoint(address=server.address)))


async def test_an_evaluation_is_kept_with_its_edit_and_version(edits):
    """Progress is told; the result names the version, is listed by it, and goes with the edit."""
    told = []
    first = await edits.create("warm", [feature(1, 7).add(2.0)], model="tiny")
    found = await edits.evaluate(
        first, [NAMES, TEXTS], on_progress=lambda update: told.append(update), prompts=("Mary",), **QUICK
    )
    assert told
    assert found.name.startswith("edits/warm/evaluations/")
    assert (found.edit, found.content_hash) == ("edits/warm@1", first.content_hash)
    assert found.verdict is not EditVerdict.UNSPECIFIED
    names, texts = found.sets
    assert {one.arm for one in names.arms} == {EvaluationArm.EDIT, EvaluationArm.NO_OP}
    assert {one.arm for one in texts.arms} >= {EvaluationArm.EDIT, EvaluationArm.NO_OP}
    assert [len(one.values) for one in names.controls] == [4, 2]
    damage = [(one.arm, one.statistic, len(one.values), one.units) for one in texts.controls]
    of_texts = ("kl", "perplexity_ratio", "top1_agreement")
    kinds = ((EvaluationArm.RANDOM, 4), (EvaluationArm.WRONG_LAYER, 2))
    assert damage == [(arm, name, count, 8) for name in of_texts for arm, count in kinds]
    for one in (*names.controls, *texts.controls):
        assert one.tokens > 0
        assert one.p_value == (1 + one.reached) / (1 + len(one.values))
        assert min(one.values) <= one.quantiles[0] <= one.quantiles[1] <= one.quantiles[2] <= max(one.values)
    assert any("matched random sets stand beside the damage" in caveat for caveat in found.caveats)
    assert [one.label for one in found.prompting.candidates] == ["given 1", "1 example"]
    assert found.bounds.max_retain_kl == 0.1
    again = await edits.evaluation(found.name)
    assert json.loads(again.to_json()) == json.loads(found.to_json())
    second = await edits.update("warm", [feature(1, 7).add(1.0)])
    assert [one.name for one in await edits.evaluations("warm")] == [found.name]
    assert [one.name for one in await edits.evaluations(first)] == [found.name]
    assert await edits.evaluations(second) == ()
    await edits.delete("warm")
    with pytest.raises(ResourceNotFoundError):
        await edits.evaluation(found.name)


async def test_a_prediction_measures_nothing(edits):
    """`validate_only` says time and memory, and stores nothing."""
    await edits.create("cold", [feature(1, 7).ablate()], model="tiny")
    found = await edits.predict_evaluation("cold", [NAMES], **QUICK)
    more = await edits.predict_evaluation("cold", [NAMES], **{**QUICK, "controls": 99})
    assert more.seconds > found.seconds > 0
    less = await edits.predict_evaluation("cold", [NAMES], **QUICK, retain_tokens=0)
    assert found.seconds > less.seconds > 0
    assert found.peak_extra_bytes > 0
    assert found.name == ""
    assert await edits.evaluations("cold") == ()


async def test_bad_input_is_refused_before_an_operation(edits):
    """Unknown edits and versions, sets that decide nothing; a text that does not fit fails by its place."""
    await edits.create("quiet", [feature(1, 7).ablate()], model="tiny")
    for name in ("nobody", "quiet@2"):
        with pytest.raises(ResourceNotFoundError):
            await edits.start_evaluate(name, [NAMES])
    few = EvaluationSet(name="few", role=EvaluationRole.TARGET, items=NAMES.items[:3])
    with pytest.raises(
        TooFewItemsError, match="has 3 texts or items; an interval needs at least 8"
    ) as caught:
        await edits.start_evaluate("quiet", [few])
    assert caught.value.field == "sets[0].texts"
    with pytest.raises(InvalidRequestError) as caught:
        await edits.start_evaluate("quiet", [NAMES], retain_tokens=-1)
    assert caught.value.field == "controls.retain_tokens"
    with pytest.raises(InvalidRequestError, match="target set"):
        await edits.start_evaluate("quiet", [TEXTS])
    long = EvaluationSet(name="long", role=EvaluationRole.TARGET, texts=(*TEXTS.texts, " cat" * 300))
    with pytest.raises(InvalidRequestError) as caught:
        await edits.evaluate("quiet", [long], **QUICK)
    assert caught.value.field == "sets[0].texts[8]"
    with pytest.raises(InvalidRequestError):
        await edits.evaluation("evaluations/x")
