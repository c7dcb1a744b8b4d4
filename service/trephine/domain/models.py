"""Models: where they come from, what they are, what can be done with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trephine.domain.commands import Command, Progress
from trephine.domain.replacements import Residency

DType = Literal["float32", "bfloat16", "float64"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """What to load. `folder` is a resolved server path inside a model root; it never leaves the server."""

    name: str
    """Resource id, `smollm2`; the resource is `models/smollm2`."""
    folder: str
    dtype: DType = "float32"
    device: str = "cpu"
    adapter: str | None = None
    """Optional PEFT adapter folder, merged in memory."""
    revision: str | None = None
    """The commit that `folder` is the snapshot of, where it is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A loaded model."""

    name: str
    architecture: str
    """transformers' class name: `LlamaForCausalLM`."""
    weight_hash: str
    """sha256 over the sorted (tensor name, dtype, shape, bytes) of what is loaded."""
    parent_hash: str
    """The same before an adapter was merged; equal to `weight_hash` without one."""
    dtype: DType
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
    """Resident bytes of the parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One thing that can be asked of a model, or why it cannot."""

    name: str
    """`discover.neurons`, `intervene.project_out`, `export.exact`."""
    available: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSet:
    """A replacement set beside the model, and where its weights are."""

    name: str
    """Its id, `smollm2-135m-tc`."""
    layers: int
    degraded: bool
    """True if it failed admission and was accepted all the same."""
    residency: Residency


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What works for one loaded model."""

    model: ModelInfo
    capabilities: tuple[Capability, ...]
    max_prompt_tokens: int
    max_rows: int
    """Rows of one Generate or Score call."""
    memory_budget_bytes: int
    replacements: tuple[LoadedSet, ...] = ()
    """Loaded sets, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadModel(Command[ModelInfo, Progress]):
    """Load a model into a fresh engine."""

    source: ModelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeCapabilities(Command[Capabilities, Progress]):
    """Say what works for the loaded model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """Counters of an engine's loop, for tests and health."""

    quanta: int
    """Quanta run since the engine started."""
    jobs: int
    """Jobs that are unfinished now, this one included."""
    longest_quantum_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AskStatus(Command[EngineStatus, Progress]):
    """Read the loop's counters."""
