"""Texts are read as a stock classifier reads them, where one decides; a folder is held to its tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForSequenceClassification,
)

from tests.builders import tiny_folder, tiny_tokenizer
from tests.spurious_texts import ambiguous, attribute_texts, balanced
from trephine.domain.classifier_exports import ExportClassifier
from trephine.domain.errors import GateMissedError, HeadNotStockError, PromptTooLongError
from trephine.domain.spurious_arms import Arm
from trephine.domain.spurious_heads import (
    ClassifierHead,
    DecisionHead,
    HeadWeights,
    LabelToken,
    Pooling,
    ProbeHead,
    TokenHead,
)
from trephine.domain.spurious_removal import RemovalBudget, RemoveSpuriousFeatures, SpuriousRemoval
from trephine.engine.exports import classifier
from trephine.engine.exports.classifier import export_classifier
from trephine.engine.models.hosted import HostedModel, host
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.spurious.examples import read_data
from trephine.engine.spurious.reading import read_text
from trephine.engine.spurious.removal import remove_spurious_features

START = 2
TEST = balanced(15, seed=77)
WORDS = tuple(LabelToken(label=label, token=f"#{ord(label) - 30}") for label in "QW")
HEAD = HeadWeights(
    labels=("Q", "W"),
    weight=tuple(
        tuple(row) for row in torch.randn(2, 32, generator=torch.Generator().manual_seed(5)).tolist()
    ),
    bias=(0.0, 0.0),
    layer=None,
    pooling=Pooling.LAST,
)


def _hosted(folder: Path, single: str = "<|start|> $A") -> HostedModel:
    """Host a tiny Llama whose tokenizer adds special tokens by itself, as those of Llama 3 and Gemma do."""
    base, tokenizer = tiny_folder("llama", folder), tiny_tokenizer()
    ends = [("<|start|>", START), ("<|end|>", 0)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ends)
    tokenizer.save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    return host(model, AutoTokenizer.from_pretrained(base), name="tiny", folder=base)


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> HostedModel:
    """One with a first token."""
    return _hosted(tmp_path_factory.mktemp("begins") / "base")


def _removal(hosted: HostedModel, decision: DecisionHead) -> SpuriousRemoval:
    budget = RemovalBudget(candidates=8, exact=0, counts=(1,), effect_texts=16, fit_texts=32, random_sets=0)
    command = RemoveSpuriousFeatures(
        training=ambiguous(24, seed=5),
        test=TEST,
        attribute_texts=attribute_texts(8),
        decision=decision,
        refit=not isinstance(decision, TokenHead),
        budget=budget,
        resamples=20,
    )
    return finish(remove_spurious_features(Session(hosted=hosted), command))


def _export(hosted: HostedModel, head: HeadWeights, folder: Path) -> Any:
    command = ExportClassifier(
        name="judge",
        removal="removals/r",
        export="",
        parent="",
        folder=str(folder),
        head=head,
        removed=(),
        texts=tuple(one.text for one in TEST),
    )
    return finish(export_classifier(Session(hosted=hosted), command))


def _stock_accuracy(folder: Path) -> float:
    """Return what a user of the folder sees: the mean of the four groups, which are of one size."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer, right = AutoTokenizer.from_pretrained(folder), 0
    for one in TEST:
        with torch.inference_mode():
            logits = model(input_ids=tokenizer(one.text, return_tensors="pt")["input_ids"]).logits
        right += model.config.id2label[int(logits.argmax())] == one.label
    return right / len(TEST)


def _accuracy(found: SpuriousRemoval) -> float:
    arm = found.arm(Arm.ORIGINAL)
    figure = arm.figure("label_accuracy") if arm else None
    assert figure is not None
    return figure.value


def test_a_probe_is_measured_on_what_its_classifier_will_read(hosted: HostedModel, tmp_path: Path):
    """With the tokenizer's first token, and a stock user of the folder gets the reported accuracy."""
    found = _removal(hosted, ProbeHead())
    made = _export(hosted, found.original_head, tmp_path / "judge")
    assert made.agreeing == made.checked_texts == len(TEST)
    assert _stock_accuracy(tmp_path / "judge") == pytest.approx(_accuracy(found), abs=1e-6)
    assert any("with <|start|>" in one for one in found.caveats)


def test_a_given_classifier_is_measured_on_what_it_reads(hosted: HostedModel, tmp_path: Path):
    """As stock transformers decide with the same folder."""
    names: dict[str, Any] = {"id2label": {0: "Q", 1: "W"}, "label2id": {"Q": 0, "W": 1}}
    model = LlamaForSequenceClassification.from_pretrained(hosted.folder, num_labels=2, **names).eval()
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(2, 32, generator=torch.Generator().manual_seed(5)))
    model.save_pretrained(tmp_path)
    hosted.tokenizer.save_pretrained(tmp_path)
    found = _removal(hosted, ClassifierHead(folder=str(tmp_path)))
    assert _accuracy(found) == pytest.approx(_stock_accuracy(tmp_path), abs=1e-6)


def test_a_given_head_whose_tokenizer_reads_otherwise_is_refused(hosted: HostedModel, tmp_path: Path):
    """The hosted model's adds a first token, the folder's does not: another decision would be measured."""
    names: dict[str, Any] = {"id2label": {0: "Q", 1: "W"}, "label2id": {"Q": 0, "W": 1}}
    model = LlamaForSequenceClassification.from_pretrained(hosted.folder, num_labels=2, **names)
    model.save_pretrained(tmp_path)
    plain = _hosted(tmp_path / "plain", "$A")
    plain.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(HeadNotStockError, match=r"reads 48 of 48 texts otherwise .* \(8 tokens\) and not as"):
        _removal(hosted, ClassifierHead(folder=str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(HeadNotStockError, match=r"tokenizer of .* cannot be loaded: .* Save it again"):
        _removal(hosted, ClassifierHead(folder=str(tmp_path)))
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    assert _removal(hosted, ClassifierHead(folder=str(tmp_path))).arm(Arm.ORIGINAL) is not None


def test_a_text_that_is_too_long_is_named_though_a_head_is_given(hosted: HostedModel, tmp_path: Path):
    """It is read before the folder's tokenizer is asked, and by its place."""
    model = LlamaForSequenceClassification.from_pretrained(hosted.folder, num_labels=2)
    model.save_pretrained(tmp_path)
    hosted.tokenizer.save_pretrained(tmp_path)
    texts = ambiguous(24, seed=5)
    long = replace(texts[3], text=texts[3].text * 400)
    with pytest.raises(PromptTooLongError) as refused:
        read_data(
            hosted,
            RemoveSpuriousFeatures(
                training=(*texts[:3], long, *texts[4:]),
                attribute_texts=attribute_texts(8),
                decision=ClassifierHead(folder=str(tmp_path)),
            ),
        )
    assert refused.value.context["field"] == "training[3].text"


def test_a_folder_that_reads_other_tokens_than_were_measured_is_not_published(
    hosted: HostedModel, tmp_path: Path
):
    """A head of a report from before texts were read as the tokenizer does is such a one."""
    head = replace(_removal(hosted, ProbeHead()).original_head, special_tokens=False)
    with pytest.raises(GateMissedError, match="reads 60 of 60 texts otherwise than they were measured"):
        _export(hosted, head, tmp_path / "judge")


def test_a_classifier_decides_in_batches_as_one_by_one(tmp_path: Path):
    """Though the model's configuration pads with another token than its tokenizer."""
    folder = tmp_path / "base"
    _hosted(folder, "$A")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 0}))
    loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    hosted = host(loaded, AutoTokenizer.from_pretrained(folder), name="tiny", folder=folder)
    _export(hosted, HEAD, tmp_path / "judge")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "judge")
    texts = [one.text + "abc" * (number % 4) for number, one in enumerate(TEST)]
    rows = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        together = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
        alone = torch.cat([model(torch.tensor([hosted.encode(text)])).logits for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_what_differs_in_batches_is_not_published(
    hosted: HostedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The reload is of padded batches as well, so that a wrong padding token is seen."""
    monkeypatch.setattr(classifier, "_padding", lambda *_: 0)
    with pytest.raises(GateMissedError, match=r"60 of 60 texts one by one, but on \d+ in padded batches"):
        _export(hosted, replace(HEAD, special_tokens=True), tmp_path / "judge")


def test_what_is_no_stock_classifier_says_what_it_reads_without(hosted: HostedModel):
    """A probe of the mean leaves the first token out, and its report says so."""
    found = _removal(hosted, ProbeHead(pooling=Pooling.MEAN))
    assert any("texts were read without <|start|>" in one for one in found.caveats)
    assert not found.original_head.special_tokens


def test_label_tokens_are_read_in_front_of_the_end(hosted: HostedModel, tmp_path: Path):
    """With a first token, without a last one; in a template, which no classifier reads, with neither."""
    plain = hosted.encode("abc")
    assert read_text(hosted, TokenHead(tokens=WORDS), "abc") == (START, *plain)
    assert read_text(hosted, TokenHead(tokens=WORDS, template="a{text}"), "bc") == tuple(plain)
    ends = _hosted(tmp_path / "ends", "$A <|end|>")
    assert read_text(ends, ProbeHead(), "abc") == (*plain, 0)
    assert read_text(ends, TokenHead(tokens=WORDS), "abc") == tuple(plain)
