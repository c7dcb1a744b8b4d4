"""Spurious features through a real server: report, edit, page, export, classifier, stock reload."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from tests.builders import tiny_folder, tiny_tokenizer
from tests.integration.server_house import Edge, edge
from tests.spurious_texts import ambiguous, attribute_texts, balanced, paired
from trephine.client.aio.artifacts import AsyncArtifacts
from trephine.client.aio.edits import AsyncEdits, AsyncExports
from trephine.client.aio.model import AsyncModel
from trephine.client.aio.models import AsyncModels
from trephine.client.aio.spurious_removal import AsyncSpuriousRemovals
from trephine.client.aio.wire import AsyncWire
from trephine.client.endpoint import Endpoint
from trephine.client.errors import (
    AlreadyExistsError,
    AttributeConfoundedError,
    CancelledByCallerError,
    ExportTargetExistsError,
    HeadNotStockError,
    InvalidRequestError,
    LayerOutOfRangeError,
    ResourceNotFoundError,
    SplitLeakageError,
    TargetNotOneTokenError,
    TooFewItemsError,
)
from trephine.client.types import (
    AttributeText,
    FeatureOverride,
    FeatureRef,
    LabelledText,
    LabelTokens,
    OutcomeGround,
    Probe,
    RewardModel,
    SpuriousRemoval,
    StockClassifier,
    Verdict,
)
from trephine.ipc.engine_proxy import SubprocessEngineLauncher
from trephine.v1.spurious_removal_pb2 import ReadClassifierFileRequest

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


def _texts(rows: Any) -> list[LabelledText]:
    return [
        LabelledText(text=one.text, label=one.label, attribute=one.attribute, pair=one.pair) for one in rows
    ]


TRAINING, TEST = _texts(ambiguous(24)), _texts(balanced(8))
EXAMPLES = [AttributeText(text=one.text, attribute=one.attribute) for one in attribute_texts()]
SMALL: dict[str, Any] = {
    "test": TEST, "attribute_texts": EXAMPLES, "candidates": 96, "exact": 1, "counts": (2, 8),
    "effect_texts": 24, "fit_texts": 40, "random_sets": 1, "resamples": 20, "spurious_above": 0.3,
}  # fmt: skip
WORDS = [
    FeatureOverride(feature=FeatureRef(layer=layer, index=index), remove=True, reason="a person says so")
    for layer, index in ((0, 1), (1, 2), (2, 3))
]
"""So that something is removed whatever the judges of a random model say."""


def _save_reward(base: Path, target: Path) -> None:
    """Save a stock reward model on the weights of a folder."""
    reward = LlamaForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=1)
    with torch.no_grad():
        drawn = torch.randn(reward.score.weight.shape, generator=torch.Generator().manual_seed(5))
        reward.score.weight.copy_(drawn)
    reward.save_pretrained(target)
    tiny_tokenizer().save_pretrained(target)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """A server over a real engine process with a tiny Llama: one for the module."""
    folder = tmp_path_factory.mktemp("edge")
    _save_reward(tiny_folder("llama", folder / "roots" / "tiny"), folder / "roots" / "judge")
    async with edge(folder, launcher=SubprocessEngineLauncher(threads=1)) as house:
        await house.load()
        yield house


@pytest_asyncio.fixture(loop_scope="module")
async def wire(server: Edge) -> AsyncIterator[AsyncWire]:
    """A connection."""
    yield AsyncWire(Endpoint(address=server.address))


@pytest_asyncio.fixture(loop_scope="module")
async def model(wire: AsyncWire) -> AsyncIterator[AsyncModel]:
    """The tiny model."""
    yield AsyncModel(wire, await AsyncModels(wire).get("tiny"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def removal(server: Edge) -> SpuriousRemoval:
    """A report in the stock form, with an edit."""
    wire = AsyncWire(Endpoint(address=server.address))
    model = AsyncModel(wire, await AsyncModels(wire).get("tiny"))
    return await model.remove_spurious(
        TRAINING, edit_id="clean", unproven=True, author="us", overrides=WORDS, **SMALL
    )


async def test_a_report_is_stored_and_its_edit_names_it(wire: AsyncWire, removal: SpuriousRemoval):
    """Response, stored and listed report agree; the edit's evidence is the report."""
    stored = AsyncSpuriousRemovals(wire)
    again = await stored.get(removal.name)
    assert again == removal
    assert sum(one.removed and bool(one.override) for one in removal.features) == len(WORDS)
    listed = [one for one in await stored.list() if one.name == removal.name]
    assert (listed[0].features, listed[0].chosen) == ((), removal.chosen)
    edit = await AsyncEdits(wire).get("clean")
    assert edit.evidence == (removal.name,)
    assert removal.edit == edit.reference
    assert len(edit.interventions) == removal.chosen


async def test_no_edit_is_made_of_a_removal_that_was_not_shown_to_hold(wire: AsyncWire, model: AsyncModel):
    """Without a text of a crossed group it cannot be told; what would tell stands in the report."""
    found = await model.remove_spurious(
        TRAINING, edit_id="doubted", overrides=WORDS, **{**SMALL, "test": (), "random_sets": 0}
    )
    assert found.chosen >= len(WORDS)
    assert (found.outcome.verdict, found.outcome.ground) == (Verdict.INCONCLUSIVE, OutcomeGround.NOTHING)
    assert "all four groups" in found.outcome.settles
    assert (found.edit, found.held) == ("", False)
    with pytest.raises(ResourceNotFoundError):
        await AsyncEdits(wire).get("doubted")
    with pytest.raises(InvalidRequestError, match="its outcome is inconclusive"):
        await AsyncSpuriousRemovals(wire).start_export_classifier(found, "doubt", ["abcdef"], export="none")


async def test_a_head_is_trained_on_pairs_and_shipped(wire: AsyncWire, model: AsyncModel):
    """In the stock form: every arm ranks the pairs of the test split, and a stock reload decides the same."""
    training, test = _texts(paired(ambiguous(24))), _texts(paired(balanced(8), "test pair"))
    found = await model.remove_spurious(
        training,
        edit_id="preferred",
        unproven=True,
        decision=Probe(pairs=True),
        overrides=WORDS,
        **{**SMALL, "test": test},
    )
    assert found.decision.probe is not None
    assert found.decision.probe.pairs
    for arm in found.arms:
        ranked = arm.figure("pair_accuracy")
        assert ranked is not None
        assert 0 <= (ranked.low or 0) <= ranked.value <= (ranked.high or 0) <= 1
    page = await AsyncArtifacts(wire).read(await AsyncSpuriousRemovals(wire).page(found))
    assert b"pairs whose better text is decided higher" in page
    await (await AsyncExports(wire).start("preferred", "preferred-export")).result()
    texts = [one.text for one in test]
    started = await AsyncSpuriousRemovals(wire).start_export_classifier(
        found, "preference", texts, export="preferred-export"
    )
    made = await started.result()
    assert (made.agreeing, made.checked_texts) == (len(texts), len(texts))
    with pytest.raises(InvalidRequestError, match="training text 0 is in no pair"):
        await model.remove_spurious(TRAINING, decision=Probe(pairs=True), **SMALL)
    with pytest.raises(SplitLeakageError, match="stands in two splits"):
        await model.remove_spurious(training, **{**SMALL, "test": _texts(paired(balanced(8)))})


async def test_the_decision_list_is_one_page(wire: AsyncWire, removal: SpuriousRemoval):
    """Self-contained, and every feature that is gone stands in it."""
    page = (await AsyncArtifacts(wire).read(await AsyncSpuriousRemovals(wire).page(removal))).decode()
    assert page.count('class="removed"') == removal.chosen
    assert "Content-Security-Policy" in page
    assert "<script" not in page


async def test_the_edited_classifier_is_reloaded_by_stock_transformers(
    server: Edge, wire: AsyncWire, model: AsyncModel, removal: SpuriousRemoval
):
    """Exported through the edit's own export; the worst group is the report's."""
    stored = AsyncSpuriousRemovals(wire)
    await (await AsyncExports(wire).start("clean", "clean-export")).result()
    texts = [one.text for one in TEST]
    started = await stored.start_export_classifier(removal, "judge", texts, export="clean-export")
    made = await started.result()
    assert (made.agreeing, made.checked_texts) == (len(texts), len(texts))
    assert made.largest_difference < 1e-4
    assert made.architecture == "LlamaForSequenceClassification"
    folder = server.state / "published" / "judge"
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    right: dict[tuple[str, str | None], list[bool]] = {}
    with torch.inference_mode():
        for one in TEST:
            ids = [token.id for token in await model.tokenize(one.text)]
            label = classifier.config.id2label[int(classifier(torch.tensor([ids])).logits.argmax())]
            right.setdefault((one.label, one.attribute), []).append(label == one.label)
    worst = min(sum(each) / len(each) for each in right.values())
    refitted = removal.arm("refitted")
    assert refitted is not None
    figure = refitted.figure("worst_group")
    assert figure is not None
    assert worst == pytest.approx(figure.value, abs=1e-6)


async def test_an_edited_reward_is_reloaded_by_stock_transformers(
    server: Edge, wire: AsyncWire, model: AsyncModel
):
    """With its own weight and one output; with the threshold beside it the worst group is the report's."""
    decision = RewardModel(source="judge", positive_label="Q")
    found = await model.remove_spurious(
        TRAINING, edit_id="fairer", unproven=True, decision=decision, overrides=WORDS, **SMALL
    )
    await (await AsyncExports(wire).start("fairer", "fairer-export")).result()
    texts = [one.text for one in TEST]
    stored = AsyncSpuriousRemovals(wire)
    made = await (
        await stored.start_export_classifier(found, "fairer", texts, export="fairer-export")
    ).result()
    assert (made.agreeing, made.checked_texts) == (len(texts), len(texts))
    assert made.largest_difference < 1e-4
    assert made.labels == ("W", "Q")
    assert made.threshold is not None
    folder = server.state / "published" / "fairer"
    told = json.loads((folder / "classifier.json").read_text())
    assert (told["threshold"], told["at_most_threshold"], told["above_threshold"]) == (
        made.threshold,
        "W",
        "Q",
    )
    given = AutoModelForSequenceClassification.from_pretrained(server.state.parent / "roots" / "judge")
    reward = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert (reward.config.num_labels, reward.config.id2label) == (1, {0: "reward"})
    assert torch.equal(reward.score.weight, given.score.weight)
    right: dict[tuple[str, str | None], list[bool]] = {}
    with torch.inference_mode():
        for one in TEST:
            ids = [token.id for token in await model.tokenize(one.text)]
            decided = "Q" if float(reward(torch.tensor([ids])).logits) > made.threshold else "W"
            right.setdefault((one.label, one.attribute), []).append(decided == one.label)
    removed = found.arm("removed")
    assert removed is not None
    figure = removed.figure("worst_group")
    assert figure is not None
    assert min(sum(each) / len(each) for each in right.values()) == pytest.approx(figure.value, abs=1e-6)


async def test_a_classifier_is_fetched_byte_for_byte(
    server: Edge, wire: AsyncWire, removal: SpuriousRemoval, tmp_path: Path
):
    """From any offset; a file that is not listed is refused."""
    stored = AsyncSpuriousRemovals(wire)
    await (await AsyncExports(wire).start("clean", "fetched-export")).result()
    texts = [one.text for one in TEST[:4]]
    started = await stored.start_export_classifier(removal, "fetched", texts, export="fetched-export")
    made = await started.result()
    folder, seen = server.state / "published" / "fetched", list[tuple[int, int]]()
    found = await stored.download_classifier(
        made, tmp_path / "awaited", on_bytes=lambda *done: seen.append(done)
    )
    for path in made.files:
        assert (found / path).read_bytes() == (folder / path).read_bytes()
    assert seen[-1] == (sum(made.sizes.values()),) * 2
    with pytest.raises(ExportTargetExistsError):
        await stored.download_classifier(made, found)
    request = ReadClassifierFileRequest(name=made.name, path="config.json", offset=5)
    pieces = [piece async for piece in wire.stream(wire.edits.ReadClassifierFile, request)]
    assert b"".join(piece.data for piece in pieces) == (folder / "config.json").read_bytes()[5:]
    for path, offset, error in (
        ("../server.json", 0, ResourceNotFoundError),
        ("config.json", 1 << 40, InvalidRequestError),
    ):
        request = ReadClassifierFileRequest(name=made.name, path=path, offset=offset)
        with pytest.raises(error):
            [piece async for piece in wire.stream(wire.edits.ReadClassifierFile, request)]


async def test_a_head_that_is_not_stock_is_not_exported(wire: AsyncWire, model: AsyncModel):
    """A probe in the middle of the model has no stock form; the message says which has."""
    found = await model.remove_spurious(
        TRAINING, edit_id="middle", decision=Probe(layer=1, pooling="mean"), overrides=WORDS[:2], **SMALL
    )
    stored = AsyncSpuriousRemovals(wire)
    with pytest.raises(HeadNotStockError, match="layer 1, pooled by mean, with a bias"):
        await stored.start_export_classifier(found, "middle-judge", ["abcdef"], export="clean-export")


async def test_a_decision_in_a_template_is_not_exported(wire: AsyncWire, model: AsyncModel):
    """A stock classifier is given the text alone; label tokens need nobody to say that they stay."""
    tokens = LabelTokens(tokens={"Q": "Q", "W": "W"}, template="{text} is")
    found = await model.remove_spurious(
        TRAINING, edit_id="worded", unproven=True, decision=tokens, overrides=WORDS[:1], **SMALL
    )
    with pytest.raises(HeadNotStockError, match=r"in the template '\{text\} is'") as refused:
        await AsyncSpuriousRemovals(wire).start_export_classifier(found, "worded-judge", ["abcdef"])
    assert refused.value.field == "decision.tokens.template"


async def test_a_classifier_needs_the_export_of_its_edit(wire: AsyncWire, removal: SpuriousRemoval):
    """Features were removed: the model's own weights do not lack them."""
    stored = AsyncSpuriousRemovals(wire)
    with pytest.raises(InvalidRequestError, match="export its edit first"):
        await stored.start_export_classifier(removal, "whole", ["abcdef"])
    with pytest.raises(InvalidRequestError, match="not reloaded and compared"):
        await stored.start_export_classifier(removal, "unread", [], export="clean-export")


async def test_a_removal_can_be_predicted_and_cancelled(model: AsyncModel):
    """A prediction removes nothing; a cancelled removal ends within a quantum and makes no edit."""
    predicted = await model.predict_remove_spurious(TRAINING, **SMALL)
    assert predicted.seconds > 0
    assert predicted.texts == (48, 0, 32)
    dear = await model.predict_remove_spurious(TRAINING, **{**SMALL, "fit_texts": 48, "random_sets": 50})
    assert dear.seconds > predicted.seconds
    long = {**SMALL, "exact": 4000, "random_sets": 100, "estimator": "integrated_gradients", "steps": 100}
    started = await model.start_remove_spurious(TRAINING, **long)
    await started.cancel()
    with pytest.raises(CancelledByCallerError):
        await started.result()


async def test_bad_requests_are_refused_at_once(model: AsyncModel, removal: SpuriousRemoval):
    """By the same errors as in the engine, before an operation is made of them."""
    with pytest.raises(AlreadyExistsError):
        await model.start_remove_spurious(TRAINING, edit_id="clean", **SMALL)
    with pytest.raises(SplitLeakageError) as leaked:
        await model.start_remove_spurious(TRAINING, **{**SMALL, "test": [*TEST, TRAINING[0]]})
    assert leaked.value.field == "test[32].text"
    with pytest.raises(AttributeConfoundedError):
        await model.start_remove_spurious(TRAINING, test=TEST)
    with pytest.raises(TooFewItemsError):
        await model.start_remove_spurious([*TRAINING[:24], TRAINING[30]], **SMALL)
    for ask in (model.start_remove_spurious, model.predict_remove_spurious):
        with pytest.raises(LayerOutOfRangeError, match="has layers 0 to 2") as beyond:
            await ask(TRAINING, decision=Probe(layer=40), **SMALL)
        assert beyond.value.field == "decision.layer"
        with pytest.raises(HeadNotStockError, match=r"tiny holds no score\.weight"):
            await ask(TRAINING, decision=StockClassifier(source="tiny"), refit=False, **SMALL)
        with pytest.raises(TargetNotOneTokenError):
            await ask(TRAINING, decision=LabelTokens(tokens={"Q": "QQ", "W": "W"}), **SMALL)
    with pytest.raises(InvalidRequestError, match="between 0 and 1") as rules:
        await model.start_remove_spurious(TRAINING, false_discoveries=2.0, **SMALL)
    assert rules.value.field
