"""The same client for event loops. The sync one is generated from it.

from trephine.client.aio import connect

async with await connect() as trephine:
    model = await trephine.load_model("smollm2")
    circuit = await model.discover(prompt, target=" Mary", against=" John")
"""

from trephine.client.aio.circuit import AsyncCircuit
from trephine.client.aio.connection import connect
from trephine.client.aio.evaluation import AsyncEvaluation
from trephine.client.aio.model import AsyncModel
from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.replacements import AsyncReplacementSet
from trephine.client.aio.trephine import AsyncTrephine

__all__ = [
    "AsyncCircuit",
    "AsyncEvaluation",
    "AsyncModel",
    "AsyncOperation",
    "AsyncReplacementSet",
    "AsyncTrephine",
    "connect",
]
