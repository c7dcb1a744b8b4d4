"""Run alone in a clean process: tokens and logits of texts, by stock transformers. No Trephine here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the request, load tokenizer and classifier, print the result.

    `ids` are the tokens of every text, `logits` those of every text alone, `padded_logits` those of the same
    texts in padded batches of different lengths.
    """
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
    padded = _padded(model, tokenizer, request, [len(one) for one in ids])
    told = {"ids": ids, "logits": logits, "padded_logits": padded}
    sys.stdout.write(json.dumps({"result": told}) + "\n")


def _padded(model: Any, tokenizer: Any, request: dict[str, Any], lengths: list[int]) -> list[list[float]]:
    """Return logits in batches of short and long texts, every text padded where the context has room."""
    import torch

    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    texts, found = request["texts"], dict[int, list[float]]()
    ascending = sorted(range(len(texts)), key=lengths.__getitem__)
    n_batches = -(-len(texts) // request["batch"])
    for start in range(n_batches):
        batch = ascending[start::n_batches]
        longest = min(lengths[batch[-1]] + 1, request["context"])
        rows = tokenizer(
            [texts[number] for number in batch],
            padding="max_length",
            max_length=longest,
            return_tensors="pt",
        )
        with torch.inference_mode():
            logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
        found |= zip(batch, logits.float().tolist(), strict=True)
    return [found[number] for number in range(len(texts))]


if __name__ == "__main__":
    main()
