"""Trephine's Python client.

    from trephine.client import connect

    with connect() as trephine:
        model = trephine.load_model("smollm2")
        circuit = model.discover(prompt, target=" Mary", against=" John")
        edit = trephine.edits.create("no-mary", circuit.shippable().ablate())
        trephine.export(edit, "out/edited")

`connect()` shares the server of your state folder, or starts one that ends with its last client.
`connect("host:port", token=...)` uses a server elsewhere. `trephine.client.aio` has the same with `await`.
`verify_folder`, `make_delta` and `apply_delta` work on exported folders and need no server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trephine.client.circuit import Circuit
from trephine.client.connection import connect
from trephine.client.errors import ErrorKind, TrephineError
from trephine.client.evaluation import Evaluation
from trephine.client.interventions import Where, activation, direction, feature, site
from trephine.client.model import Model
from trephine.client.operations import Operation
from trephine.client.replacements import ReplacementSet
from trephine.client.requests import Row, ScoreRow
from trephine.client.selection import EditDraft, Selection
from trephine.client.trephine import Trephine

if TYPE_CHECKING:
    from trephine.client.deltas import apply_delta, make_delta
    from trephine.client.verification import Verification, verify_folder

__all__ = [
    "Circuit",
    "EditDraft",
    "ErrorKind",
    "Evaluation",
    "Model",
    "Operation",
    "ReplacementSet",
    "Row",
    "ScoreRow",
    "Selection",
    "Trephine",
    "TrephineError",
    "Verification",
    "Where",
    "activation",
    "apply_delta",
    "connect",
    "direction",
    "feature",
    "make_delta",
    "site",
    "verify_folder",
]

_OFFLINE = {
    "Verification": "verification",
    "apply_delta": "deltas",
    "make_delta": "deltas",
    "verify_folder": "verification",
}


def __getattr__(name: str) -> Any:
    """Import what works on folders when it is asked for: `python -m trephine.client.verification` runs it."""
    if name not in _OFFLINE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_OFFLINE[name]}"), name)
