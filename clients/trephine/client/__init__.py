"""Trephine's Python client.

    from trephine.client import connect

    with connect() as trephine:
        model = trephine.load_model("smollm2")
        circuit = model.discover(prompt, target=" Mary", against=" John")
        edit = trephine.edits.create("no-mary", circuit.shippable().ablate())
        trephine.export(edit, "out/edited")

`connect()` shares the server of your state folder, or starts one that ends with its last client.
`connect("host:port", token=...)` uses a server elsewhere. `trephine.client.aio` has the same with `await`.
"""

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
    "Where",
    "activation",
    "connect",
    "direction",
    "feature",
    "site",
]
