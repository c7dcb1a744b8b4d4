"""Run alone in a clean process: load a folder with stock transformers, say its logits. No Trephine here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the request, load the classifier, print `{"result": {"logits": ...}}`."""
    import torch
    from transformers import AutoModelForSequenceClassification

    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        request["folder"], dtype=getattr(torch, request["dtype"]), local_files_only=True
    ).eval()
    logits = []
    with torch.inference_mode():
        for ids in request["texts"]:
            logits.append(model(input_ids=torch.tensor([ids])).logits[0].float().tolist())
    sys.stdout.write(json.dumps({"result": {"logits": logits}}) + "\n")


if __name__ == "__main__":
    main()
