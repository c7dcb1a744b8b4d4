"""A shipped classifier beside the runtime: who decides otherwise is told, and the reload is a stock one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForSequenceClassification

from benchmarks.shift_export import SAME, at_the_stock_site, differences, reloaded, same_decisions
from benchmarks.shift_figures import Table
from benchmarks.shift_tasks import tasks
from tests.builders import tiny_folder
from trephine.engine.spurious.heads import STOCK
from trephine.engine.spurious.pooling import Readout

LABELS = [[y for y in (0, 1) for _ in range(20)]]
ATTRIBUTES = [[a for _ in (0, 1) for a in (0, 1) for _ in range(10)]]


def shipped(exported: list[int]) -> tuple[Table, list[dict[str, object]]]:
    """A runtime that is right everywhere, beside a folder."""
    table = Table({"erased, with hooks": LABELS[0:1], "erased, exported": [exported]}, LABELS, ATTRIBUTES)
    agreeing = sum(one == other for one, other in zip(LABELS[0], exported, strict=True))
    return table, [{"shipped": {"erased": {"agreeing": agreeing, "texts": len(exported), "apart": 1e-5}}}]


def test_a_folder_that_decides_otherwise_misses_both_gates():
    """The same decisions hold; two others of forty, one in each label, do not."""
    assert [gate.holds for gate in same_decisions(*_asked(shipped(LABELS[0])))] == [True, True]
    turned = [1 - y if row in (0, 20) else y for row, y in enumerate(LABELS[0])]
    assert [gate.holds for gate in same_decisions(*_asked(shipped(turned)))] == [False, False]
    assert SAME > 38 / 40


def _asked(found):
    table, runs = found
    return table, "erased", runs


def test_differences_are_of_logits_and_of_decisions():
    """A logit that is off, a decision that turned, and what the edit itself moves."""
    hooked = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    exported = torch.tensor([[1.0, 0.5], [0.0, 2.0], [0.0, 0.25]])
    found = differences(hooked, exported, hooked + 4)
    assert found == {"texts": 3, "agreeing": 2, "apart": 3.0, "largest": 3.0, "edit": 4.0}


def test_a_task_reads_where_stock_classifiers_do(tmp_path):
    """Final norm, last token: the stock form of the product."""
    (tmp_path / "agreement").mkdir()
    for name in ("simple", "within_rc"):
        (tmp_path / "agreement" / f"{name}.jsonl").write_text("")
    moved = at_the_stock_site(tasks(tmp_path)["biographies"])
    assert Readout(layer=moved.layer, pooling=moved.pooling) == STOCK


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A tiny stock classifier with a tokenizer."""
    base, folder = tiny_folder("llama", tmp_path / "base"), tmp_path / "classifier"
    torch.manual_seed(0)
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=2, pad_token_id=1)
    model.config.id2label = {0: "one", 1: "two"}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def test_a_clean_process_reads_every_text_at_its_own_last_token(classifier: Path, tmp_path: Path):
    """Texts of unequal lengths in one batch have the logits that each has alone."""
    texts = ["abcdef", "ab", "abcabcabcabc", "dbca"]
    found, labels = reloaded(classifier, texts, tmp_path)
    assert labels == ["one", "two"]
    alone = torch.cat([reloaded(classifier, [text], tmp_path)[0] for text in texts[:2]])
    assert torch.allclose(found[:2], alone, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
