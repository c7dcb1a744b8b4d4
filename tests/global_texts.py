"""Texts over the words of the tiny tokenizer, a request over them, and sets with a planted edge."""

from __future__ import annotations

import random
from typing import Any

import torch

from tests.builders import WORDS
from tests.resident_sets import reside, resident_set
from trephine.domain.global_circuits import DiscoverGlobalCircuit, GlobalBounds
from trephine.engine.models.hosted import HostedModel

SOURCE, TARGET = (0, 7), (2, 11)
"""Layer and index of the two ends of the planted edge."""


def texts(count: int, *, words: int = 9, seed: int = 0) -> tuple[str, ...]:
    """Different texts of so many words, one token each."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        found["".join(draw.choice(WORDS) for _ in range(words))] = None
    return tuple(found)


def request(count: int = 40, **options: Any) -> DiscoverGlobalCircuit:
    """Three quarters of the texts to find edges on, the others held out; everything small."""
    split, kept = texts(count), count * 3 // 4
    bounds = {"nodes": 24, "edges_per_node": 4, "tokens": 6, "logits": 6, "candidates": 60, "min_active": 5}
    options["bounds"] = GlobalBounds(**{**bounds, **options.pop("bounds", {})})
    options.setdefault("verify_edges", 16)
    options.setdefault("bootstrap", 50)
    return DiscoverGlobalCircuit(training=split[:kept], held_out=split[kept:], **options)


def planted_set(hosted: HostedModel) -> str:
    """Put transcoders beside a model, in which one feature writes what another one, two layers up, reads."""
    resident_set(hosted, "relu")
    layers = {layer.info.layer: layer for layer in _layers(hosted)}
    source, target = layers[SOURCE[0]], layers[TARGET[0]]
    norm = hosted.architecture.blocks[TARGET[0]].mlp_norm
    with torch.no_grad():
        read = norm.centre(target.encoder.W_enc[:, TARGET[1]] * norm.gain)
        source.W_dec[SOURCE[1]] = 40 * read / read.norm()
        source.encoder.b_enc[SOURCE[1]] = 1.0
        target.encoder.b_enc[TARGET[1]] = 1.0
    return reside(hosted, list(layers.values()))


def _layers(hosted: HostedModel) -> list[Any]:
    pager = hosted.replacements["set"].pager
    with pager.pinned(range(hosted.architecture.n_layers)) as resident:
        return list(resident.values())
