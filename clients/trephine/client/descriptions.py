"""What handles say of themselves in a notebook, a debugger or a log: one line, no server asked."""

from __future__ import annotations

from reprlib import Repr

from trephine.client.types import (
    CircuitInfo,
    EvaluationInfo,
    ModelInfo,
    OperationMetadata,
    ReplacementSetInfo,
)

_SHORTENING = Repr()
_SHORTENING.maxstring = 60


def described(handle: object, text: str) -> str:
    """The `repr` of a handle."""
    return f"<{type(handle).__name__} {text}>"


def of_model(info: ModelInfo) -> str:
    """Its name, and what is loaded under it."""
    placed = f"{info.dtype} on {info.device}" if info.dtype else ""  # empty where it is on disk alone
    return f"{info.name}: {', '.join(filter(None, (info.state.value, info.architecture, placed)))}"


def of_circuit(info: CircuitInfo) -> str:
    """What it explains, and its size."""
    explained = f"{info.target_label.strip()} after {_SHORTENING.repr(info.prompt)}"
    if info.across is not None:
        explained = f"global, over {info.across.training} texts"
    return f"{info.name or 'not stored'}: {explained}, {info.n_nodes} nodes, {info.n_edges} edges"


def of_set(info: ReplacementSetInfo) -> str:
    """Its name, and how it stands."""
    degraded = ", degraded" if info.degraded else ""
    return f"{info.name}: {info.state.value}{degraded}, {len(info.layers)} layers"


def of_evaluation(info: EvaluationInfo) -> str:
    """Which set was measured, and on what."""
    measured = f"{info.replacement_set.name} on {_SHORTENING.repr(info.text)}"
    return f"{info.name or 'not stored'}: {measured}, {info.tokens} tokens"


def of_operation(name: str, metadata: OperationMetadata) -> str:
    """Where it was when last heard of."""
    progress = metadata.progress
    at = f", {progress.stage} {progress.done}/{progress.total}" if progress.stage else ""
    return f"{name}: {metadata.method} {metadata.state}{'' if metadata.is_final else at}"
