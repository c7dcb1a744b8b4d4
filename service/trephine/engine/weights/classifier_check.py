"""Run alone in a clean process: tokens and logits of texts, by stock transformers. No Trephine here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the request, load tokenizer and classifier, print `{"result": {"ids": ..., "logits": ...}}`."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        request["folder"], dtype=getattr(torch, request["dtype"]), local_files_only=True
    ).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(request["folder"], local_files_only=True)
    ids = [tokenizer(text)["input_ids"] for text in request["texts"]]
    logits = []
    with torch.inference_mode():
        for one in ids:
            logits.append(model(input_ids=torch.tensor([one])).logits[0].float().tolist())
    sys.stdout.write(json.dumps({"result": {"ids": ids, "logits": logits}}) + "\n")


if __name__ == "__main__":
    main()
