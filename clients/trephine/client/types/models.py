from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue
from trephine.client.types.replacements import Residency


class ModelState(StrEnum):
    """Where a model is in its life."""

    UNSPECIFIED = "unspecified"
    AVAILABLE = "available"
    LOADING = "loading"
    LOADED = "loaded"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo(WireValue):
    """A model. The fields after `state` are set once it is loaded."""

    name: str
    """Resource name, `models/smollm2`."""
    state: ModelState
    architecture: str
    weight_hash: str
    """sha256 over names, types, shapes and bytes of what is loaded."""
    parent_hash: str
    """The same before an adapter was merged."""
    dtype: str
    device: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_mlp: int
    d_vocab: int
    context_length: int
    n_parameters: int
    tied_embeddings: bool
    has_mlp_bias: bool
    has_chat_template: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability(WireValue):
    """One thing that can be asked of a model, or why it cannot."""

    name: str
    available: bool
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSet(WireValue):
    """A replacement set beside the model, and where its weights are."""

    name: str
    layers: int
    degraded: bool
    """True if it failed admission and was accepted all the same."""
    residency: Residency


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities(WireValue):
    """What works for one loaded model."""

    model: ModelInfo
    capabilities: tuple[Capability, ...]
    max_prompt_tokens: int
    max_rows: int
    memory_budget_bytes: int
    replacements: tuple[LoadedSet, ...]
