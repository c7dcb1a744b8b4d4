"""Decisions of a classifier folder, by stock transformers in a clean process.

Run as `python -I shift_export_cell.py REQUEST`. The request names the folder, texts and threads; the folder's
own tokenizer splits the texts, in padded batches as a user's would be. One line of JSON holds the logits, the
labels' names and whether any module of Trephine was imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH = 16


def main() -> None:
    """Answer a request."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(
        request["folder"], local_files_only=True
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(request["folder"], local_files_only=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = classifier.config.pad_token_id
    logits: list[list[float]] = []
    with torch.inference_mode():
        for start in range(0, len(request["texts"]), BATCH):
            batch = tokenizer(request["texts"][start : start + BATCH], padding=True, return_tensors="pt")
            found = classifier(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            logits += found.logits.float().tolist()
    names = [classifier.config.id2label[number] for number in range(classifier.config.num_labels)]
    ours = sorted(name for name in sys.modules if name.partition(".")[0] == "trephine")
    told = {"logits": logits, "labels": names, "dtype": str(classifier.dtype), "imported": ours}
    sys.stdout.write(json.dumps({"result": told}) + "\n")


if __name__ == "__main__":
    main()
