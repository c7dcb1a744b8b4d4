"""The model's own text: sampled at temperature 1 from BOS and from single tokens, kept batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache

from trephine.domain.commands import Progress
from trephine.engine.fitting.contexts import MAX_HELD_OUT, bos_of, load_rows, save_rows
from trephine.engine.fitting.sizes import MAX_SAMPLED_TOKENS, SAMPLED_ROWS
from trephine.engine.models.hosted import HostedModel


def sample_rows(
    hosted: HostedModel,
    folder: Path,
    *,
    length: int,
    wanted_tokens: int,
    seed: int,
    say: Callable[[Progress], None],
) -> Tensor:
    """Sample contexts `(n, length)`; batches that were kept are not sampled again."""
    wanted = -(-min(wanted_tokens, MAX_SAMPLED_TOKENS) // (length - 1)) + MAX_HELD_OUT
    batches = -(-wanted // SAMPLED_ROWS)
    parts = []
    for number in range(batches):
        path = folder / f"batch-{number:05d}.safetensors"
        kept = load_rows(path)
        if kept is None:
            kept = _batch(hosted, length, torch.Generator().manual_seed(seed * 100_003 + number))
            save_rows(path, kept)
        parts.append(kept)
        tokens = SAMPLED_ROWS * length
        say(Progress(stage="sample", done=(number + 1) * tokens, total=batches * tokens))
    return torch.cat(parts)[:wanted]


@torch.no_grad()
def _batch(hosted: HostedModel, length: int, generator: torch.Generator) -> Tensor:
    """Sample a batch of rows `(SAMPLED_ROWS, length)`; half of them begin with a random token after BOS."""
    rows = _beginnings(hosted, generator)
    cache = DynamicCache(config=hosted.model.config)
    fed = rows
    while rows.shape[1] < length:
        positions = torch.arange(rows.shape[1] - fed.shape[1], rows.shape[1], device=rows.device)
        logits = hosted.model(
            input_ids=fed,
            attention_mask=torch.ones_like(rows),
            position_ids=positions.expand(len(rows), -1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        fed = torch.multinomial(logits.float().softmax(-1).cpu(), 1, generator=generator).to(rows.device)
        rows = torch.cat([rows, fed], dim=1)
    return rows[:, :length].cpu()


def _beginnings(hosted: HostedModel, generator: torch.Generator) -> Tensor:
    """Begin rows with BOS where there is one, and a random token; without BOS, with that token alone."""
    tokens = _ordinary_tokens(hosted)
    chosen = tokens[torch.randint(len(tokens), (SAMPLED_ROWS, 1), generator=generator)]
    bos = bos_of(hosted)
    if bos is not None:
        chosen = torch.cat([torch.full_like(chosen, bos), chosen], dim=1)
    return chosen.to(hosted.model.device)


def _ordinary_tokens(hosted: HostedModel) -> Tensor:
    """Return ids that begin texts: no special tokens, no half characters."""
    special = set(hosted.tokenizer.all_special_ids)
    known = min(len(hosted.tokenizer), hosted.info.d_vocab)
    texts = hosted.tokenizer.batch_decode([[i] for i in range(known)])
    usable = [i for i, text in enumerate(texts) if i not in special and text.strip() and "�" not in text]
    return torch.tensor(usable or [0])
