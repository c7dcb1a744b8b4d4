"""The whole edge in this process: a real gRPC server and real use cases over a scripted engine."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
from google.longrunning import operations_pb2 as longrunning
from google.longrunning.operations_pb2_grpc import OperationsStub
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from tests.fakes.engine import FakeEngine, FakeLauncher
from trephine.app.storage.state import StateFolder
from trephine.domain.circuits import CheckDiscovery
from trephine.domain.findings import AuditorInfo, Rule
from trephine.domain.models import LoadModel, ModelInfo
from trephine.domain.tokens import ResolveTarget, Token, Tokenize, Tokens
from trephine.rpc.registration import announce
from trephine.server.address import SocketFolder
from trephine.server.bootstrap import House, build
from trephine.server.listener import Listener
from trephine.server.settings import load_settings
from trephine.v1 import model_service_pb2 as models
from trephine.v1.model_service_pb2_grpc import ModelServiceStub

INFO = ModelInfo(
    name="tiny", architecture="LlamaForCausalLM", weight_hash="w" * 64, parent_hash="w" * 64,
    dtype="float32", device="cpu", n_layers=3, n_heads=4, n_kv_heads=2, d_model=32, d_mlp=64, d_vocab=400,
    context_length=256, n_parameters=16, tied_embeddings=True, has_mlp_bias=False, has_chat_template=False,
    eos_token_ids=(0,), bos_token_id=None, memory_bytes=64,
)  # fmt: skip
AUDITOR = AuditorInfo(
    name="asker", version="1", question="?", evidence="none", blind_spot="all",
    rules=(Rule(id="asker/rule", title="t", description="d", help="h"),),
)  # fmt: skip


def word(text: str) -> Token:
    """A token that stands for a text."""
    return Token(id=sum(text.encode()) % 400, raw=text.encode(), display=text)


def loaded_engine(**scripts: Any) -> FakeEngine:
    """An engine that loads, splits texts at blanks, and plays further scripts by command type."""
    engine = FakeEngine(
        {
            LoadModel: INFO,
            Tokenize: lambda command: Tokens(tokens=tuple(word(part) for part in command.text.split())),
            CheckDiscovery: lambda command: Tokens(
                tokens=tuple(word(part) for part in command.command.prompt.split())
            ),
            ResolveTarget: lambda command: word(command.text),
        }
    )
    engine.scripts.update(scripts.get("also", {}))
    return engine


def write_model(root: Path, name: str = "tiny") -> None:
    """Write a folder that passes every check of a checkpoint and holds one tensor of 16 numbers."""
    folder = root / name
    folder.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer.json").write_text("{}")


class FakeHost:
    """An auditor host with one auditor that is never run."""

    async def list_auditors(self) -> tuple[AuditorInfo, ...]:
        """The one auditor."""
        return (AUDITOR,)

    async def run_audit(self, *arguments: Any, **options: Any) -> Any:
        """Fail: no test here audits."""
        raise NotImplementedError


@dataclass
class Edge:
    """A running server and a channel to it."""

    channel: grpc.aio.Channel
    house: House
    listener: Listener
    address: str
    listen: str | None
    state: Path

    def stub(self, kind: Callable[[grpc.aio.Channel], Any]) -> Any:
        """A stub on the Unix socket."""
        return kind(self.channel)

    async def wait(self, operation: longrunning.Operation, seconds: int = 90) -> longrunning.Operation:
        """Wait until an operation is done."""
        request = longrunning.WaitOperationRequest(name=operation.name, timeout=Duration(seconds=seconds))
        return await OperationsStub(self.channel).WaitOperation(request)

    async def load(self, name: str = "tiny") -> models.Model:
        """Load the tiny model."""
        stub = ModelServiceStub(self.channel)
        started = await stub.LoadModel(models.LoadModelRequest(source=name, request_id=str(uuid4())))
        done = await self.wait(started)
        model = models.Model()
        assert done.response.Unpack(model), done
        return model


@asynccontextmanager
async def edge(
    folder: Path, engines: Iterable[FakeEngine] = (), launcher: Any = None, **flags: Any
) -> AsyncIterator[Edge]:
    """Serve on a fresh state folder below `folder`, with one tiny model on disk."""
    roots = folder / "roots"
    if not roots.exists():
        write_model(roots)
    settings = load_settings(
        {"state": folder / "state", "cache": folder / "cache", "model_roots": (roots,), **flags}, None
    )
    state, sockets = StateFolder.open(settings.state), SocketFolder()
    house = build(settings, state, launcher=launcher or FakeLauncher(engines), host=FakeHost())
    try:
        await house.open()
        async with _listening(Listener(house.service, settings), sockets) as listen:
            listener, address = listen[0], f"unix:{sockets.grpc}"
            async with grpc.aio.insecure_channel(address) as channel:
                yield Edge(channel, house, listener, address, listen[1], settings.state)
    finally:
        await house.close()
        state.close()
        sockets.remove()


@asynccontextmanager
async def _listening(listener: Listener, sockets: SocketFolder) -> AsyncIterator[tuple[Listener, str | None]]:
    listen = listener.bind(sockets.grpc)
    await listener.server.start()
    await announce(listener.health)
    try:
        yield listener, listen
    finally:
        await listener.server.stop(0)


def status_of(error: grpc.aio.AioRpcError) -> Status:
    """The rich status of a failed call."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    return status


def detail(status: Status, kind: type[Message]) -> Any:
    """The one detail of a type."""
    found = []
    for box in status.details:
        message = kind()
        if box.Unpack(message):
            found.append(message)
    (one,) = found
    return one


def reason(error: grpc.aio.AioRpcError) -> str:
    """The ErrorInfo's reason."""
    return str(detail(status_of(error), ErrorInfo).reason)


def field(error: grpc.aio.AioRpcError) -> str:
    """The path of the field that was refused."""
    (violation,) = detail(status_of(error), BadRequest).field_violations
    return str(violation.field)
