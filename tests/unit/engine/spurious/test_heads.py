"""Heads that are given: stock classifiers and rewards on the hosted weights, and label tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from tests.builders import FAMILIES, tiny_folder, tiny_hosted, tiny_tokenizer
from tests.spurious_texts import ambiguous, attribute_texts, balanced
from trephine.domain.errors import HeadNotStockError, ParentChangedError
from trephine.domain.spurious_arms import Arm
from trephine.domain.spurious_heads import ClassifierHead, RewardHead
from trephine.domain.spurious_removal import RemovalBudget, RemoveSpuriousFeatures
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.models.shards import SINGLE_NAME
from trephine.engine.spurious.heads import SCORE, best_threshold, given_head, reward_doubt
from trephine.engine.spurious.removal import remove_spurious_features

LABELS = ("Q", "W")
TEST = balanced(6)


def _saved(path: Path, outputs: int, *, seed: int = 0) -> tuple[Path, LlamaForSequenceClassification]:
    """Save a stock head on the weights of `tiny_hosted('llama')`; labels in the other order."""
    base = tiny_folder("llama", path / "base", seed=seed)
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=outputs, pad_token_id=1).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        model.score.weight.copy_(torch.randn(model.score.weight.shape, generator=generator))
    if outputs == 2:
        model.config.id2label, model.config.label2id = {0: "W", 1: "Q"}, {"W": 0, "Q": 1}
    model.save_pretrained(path / "head")
    tiny_tokenizer().save_pretrained(path / "head")
    return path / "head", model


def _run(hosted, decision, ending=""):
    training, test = (
        tuple(replace(one, text=one.text + ending) for one in texts) for texts in (ambiguous(16), TEST)
    )
    command = RemoveSpuriousFeatures(
        training=training,
        test=test,
        attribute_texts=attribute_texts(8),
        decision=decision,
        refit=False,
        budget=RemovalBudget(
            candidates=16, exact=0, counts=(1,), effect_texts=16, fit_texts=24, random_sets=0
        ),
        resamples=20,
    )
    return finish(remove_spurious_features(Session(hosted=hosted), command))


def _stock(hosted, model):
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([hosted.encode(one.text)])).logits for one in TEST])


def test_a_stock_classifier_decides_as_stock_transformers_do(tmp_path):
    """Its labels are taken from `id2label`, whatever their order."""
    hosted = tiny_hosted("llama")
    folder, model = _saved(tmp_path, 2)
    found = _run(hosted, ClassifierHead(folder=str(folder)))
    decided = [model.config.id2label[int(k)] for k in _stock(hosted, model).argmax(1)]
    right = sum(d == one.label for d, one in zip(decided, TEST, strict=True)) / len(TEST)
    assert found.arm(Arm.ORIGINAL).figure("label_accuracy").value == pytest.approx(right, abs=1e-6)


def test_labels_that_stock_configurations_leave_out_are_theirs(tmp_path):
    """`LABEL_0` and `LABEL_1` are in no file; a label that has no output is none."""
    hosted = tiny_hosted("llama")
    folder, model = _saved(tmp_path, 2)
    config = json.loads((folder / "config.json").read_text())
    head = ClassifierHead(folder=str(folder))
    del config["id2label"], config["label2id"]
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(finish(given_head(hosted, head, ("LABEL_1", "LABEL_0"))), model.score.weight.flip(0))
    config["id2label"] = {"0": "W", "1": "Q", "2": "third"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(HeadNotStockError, match="names W, Q; the labels are Q, third"):
        finish(given_head(hosted, head, ("Q", "third")))


def test_a_given_head_reads_what_stands_before_its_padding(tmp_path):
    """As stock transformers do, wherever a text ends: with padding behind it the report is the same."""
    hosted = tiny_hosted("llama")
    folder, model = _saved(tmp_path, 2)
    (model.config.pad_token_id,) = hosted.encode("k")
    model.save_pretrained(folder)
    with torch.inference_mode():
        for one in TEST[:4]:
            ids = hosted.encode(one.text.rstrip("k"))
            behind = model(torch.tensor([[*ids, *hosted.encode("kk")]])).logits
            torch.testing.assert_close(model(torch.tensor([ids])).logits, behind, atol=1e-5, rtol=0)
    plain, ended = (_run(hosted, ClassifierHead(folder=str(folder)), ending) for ending in ("", "kk"))
    assert ended.arms == plain.arms
    assert any(one.startswith("texts end with k, which the given head") for one in ended.caveats)
    folder, _ = _saved(tmp_path / "unreadable", 2)
    (folder / "config.json").unlink()
    with pytest.raises(HeadNotStockError, match="the configuration of head cannot be read"):
        _run(hosted, ClassifierHead(folder=str(folder)))


def test_a_reward_decides_by_its_threshold(tmp_path):
    """Above it is the positive label, whatever the alphabet; the wrong one of two is doubted."""
    hosted = tiny_hosted("llama")
    folder, model = _saved(tmp_path, 1)
    rewards = _stock(hosted, model)[:, 0]
    at = float(rewards.sort().values[11:13].mean())  # between two of the 24
    contradicted: dict[str, list[str]] = {}
    for positive in LABELS:
        found = _run(hosted, RewardHead(folder=str(folder), threshold=at, positive_label=positive))
        right = [(reward > at) == (one.label == positive) for reward, one in zip(rewards, TEST, strict=True)]
        accuracy = found.arm(Arm.ORIGINAL).figure("label_accuracy").value
        assert accuracy == pytest.approx(sum(map(bool, right)) / len(TEST), abs=1e-6)
        assert found.labels[1] == positive
        contradicted[positive] = [one for one in found.caveats if "contradicts its positive label" in one]
    ((positive, caveats),) = [(label, said) for label, said in contradicted.items() if said]
    assert caveats[0].startswith(f"the reward of {positive}, ")
    chosen = _run(hosted, RewardHead(folder=str(folder), positive_label="W"))
    assert chosen.arm(Arm.ORIGINAL).figure("ambiguous_accuracy") is not None


def test_a_head_of_other_weights_or_another_shape_is_refused(tmp_path):
    """By name of the tensor, by shape, by labels, and where there is no head at all."""
    hosted = tiny_hosted("llama")
    folder, _ = _saved(tmp_path / "own", 2)
    other, _ = _saved(tmp_path / "other", 2, seed=1)
    with pytest.raises(ParentChangedError, match="is not the hosted model's"):
        finish(given_head(hosted, ClassifierHead(folder=str(other)), LABELS))
    with pytest.raises(HeadNotStockError, match="1 x 32 is needed"):
        finish(given_head(hosted, RewardHead(folder=str(folder)), LABELS))
    with pytest.raises(HeadNotStockError, match="id2label"):
        finish(given_head(hosted, ClassifierHead(folder=str(folder)), ("Q", "third")))
    with pytest.raises(HeadNotStockError, match="no stock sequence classifier"):
        finish(given_head(hosted, ClassifierHead(folder=str(tmp_path / "own" / "base")), LABELS))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_classifier_of_every_family_is_read(family, tmp_path):
    """With the base model's prefix and without it; unembedding and ties make no difference."""
    hosted = tiny_hosted(family)
    base = tiny_folder(family, tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, id2label={0: "W", 1: "Q"})
    model.save_pretrained(tmp_path / "head")
    bare = {
        name.removeprefix(f"{model.base_model_prefix}."): tensor
        for name, tensor in load_file(tmp_path / "head" / SINGLE_NAME).items()
    }
    for tensors in (None, bare, bare | {"layers.0.attn.masked_bias": torch.zeros(())}):
        if tensors is not None:
            save_file(tensors, tmp_path / "head" / SINGLE_NAME)
        score = finish(given_head(hosted, ClassifierHead(folder=str(tmp_path / "head")), LABELS))
        assert torch.equal(score, model.score.weight[[1, 0]])


OTHER_WEIGHTS = {
    "under another name": (
        lambda kept: {f"base_model.{name}": tensor + 1 for name, tensor in kept.items()},
        "base_model.model.embed_tokens.weight of head has no counterpart",
    ),
    "the head alone": (
        lambda kept: {},
        r"head lacks model.embed_tokens.weight, .* and \d+ more of the hosted",
    ),
    "one layer alone": (
        lambda kept: {name: tensor for name, tensor in kept.items() if ".layers.0." in name},
        "head lacks model.embed_tokens.weight, ",
    ),
    "all but one": (
        lambda kept: {name: tensor for name, tensor in kept.items() if name != "model.norm.weight"},
        "head lacks model.norm.weight of the hosted model, so that it cannot be told",
    ),
    "a layer more": (
        lambda kept: kept | {"model.layers.3.mlp.up_proj.bias": torch.zeros(64)},
        "model.layers.3.mlp.up_proj.bias of head has no counterpart",
    ),
    "another unembedding": (
        lambda kept: kept | {"lm_head.weight": torch.zeros(400, 32)},
        "lm_head.weight of head is not the hosted model's",
    ),
}


@pytest.mark.parametrize("what", OTHER_WEIGHTS)
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_head_whose_weights_cannot_all_be_compared_is_refused(what, outputs, tmp_path):
    """Whatever it is called: a head decides on the weights that it was trained on."""
    changed, said = OTHER_WEIGHTS[what]
    folder, _ = _saved(tmp_path, outputs)
    tensors = load_file(folder / SINGLE_NAME)
    score = tensors.pop(SCORE)
    save_file({**changed(tensors), SCORE: score}, folder / SINGLE_NAME)
    head = ClassifierHead(folder=str(folder)) if outputs == 2 else RewardHead(folder=str(folder))
    with pytest.raises(ParentChangedError, match=said):
        finish(given_head(tiny_hosted("llama"), head, LABELS))


def test_a_reward_that_is_higher_for_the_other_label_is_doubted():
    """By the means, with the labels' names; one that agrees is not."""
    score, pooled = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 9.0], [3.0, 9.0], [4.0, 9.0]])
    assert reward_doubt(score, pooled, torch.tensor([0, 0, 1]), LABELS) == ()
    (said,) = reward_doubt(score, pooled, torch.tensor([1, 1, 0]), LABELS)
    assert said.startswith(
        "the reward of W, which a high one is said to stand for, is 2 on average, that of Q 4"
    )


def test_the_best_threshold_is_between_two_values():
    """The most accurate one, counted by hand."""
    values, labels = torch.tensor([3.0, 1.0, 2.0, 5.0]), torch.tensor([1, 0, 0, 1])
    assert best_threshold(values, labels) == 2.5
    assert best_threshold(values, torch.ones(4)) < 1
    assert best_threshold(values, torch.zeros(4)) > 5


def test_no_threshold_parts_equal_values():
    """Five of six are right at 0.5, whatever the order of those at 1; at 1 only four are."""
    values, labels = torch.tensor([0.0, 1, 1, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 1, 1])
    assert best_threshold(values, labels) == 0.5
    values, labels = torch.tensor([0.0, 1, 1, 1, 1, 2]), torch.tensor([0, 0, 0, 0, 1, 1])
    assert best_threshold(values, labels) == 1.5


@pytest.mark.parametrize(
    ("outputs", "head", "said"),
    [
        (1, ClassifierHead, "2 x 32 is needed: one output is a reward; name it as one"),
        (2, RewardHead, "1 x 32 is needed: two outputs are a classifier"),
        (3, ClassifierHead, r"has shape \(3, 32\); 2 x 32 is needed: a decision is between two labels"),
        (3, RewardHead, "1 x 32 is needed: a decision is between two labels"),
    ],
)
def test_a_head_of_another_kind_says_what_it_is(tmp_path, outputs, head, said):
    """Whoever names a reward as a classifier is told so, and so is one of three labels."""
    folder, _ = _saved(tmp_path, outputs)
    with pytest.raises(HeadNotStockError, match=said):
        finish(given_head(tiny_hosted("llama"), head(folder=str(folder)), LABELS))


@pytest.mark.parametrize(("outputs", "head"), [(1, RewardHead), (2, ClassifierHead)])
def test_a_head_of_another_width_is_not_told_to_be_called_otherwise(tmp_path, outputs, head):
    """Its kind is right; what it reads is another model's."""
    folder, _ = _saved(tmp_path, outputs)
    save_file(
        {**load_file(folder / SINGLE_NAME), "score.weight": torch.ones(outputs, 8)}, folder / SINGLE_NAME
    )
    with pytest.raises(
        HeadNotStockError, match=f"{outputs} x 32 is needed: .* give a head of {outputs} on this"
    ):
        finish(given_head(tiny_hosted("llama"), head(folder=str(folder)), LABELS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_differ_by_their_precision_alone_are_told_so(tmp_path, dtype):
    """Of a folder that was saved in half: on its own weights it decides otherwise, if by little."""
    folder, _ = _saved(tmp_path, 2)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / SINGLE_NAME).items()}
    save_file(tensors, folder / SINGLE_NAME)
    said = "but that rounded to .*float16, and it is loaded as float32: .* with the weights of its base"
    with pytest.raises(ParentChangedError, match=said) as refused:
        finish(given_head(tiny_hosted("llama"), ClassifierHead(folder=str(folder)), LABELS))
    assert ("load the model as bfloat16" in refused.value.message) is (dtype is torch.bfloat16)
