"""Who may call, over what, and what happens while the server drains."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2 as longrunning
from google.longrunning.operations_pb2_grpc import OperationsStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.fakes.engine import Script
from tests.integration.server_house import edge, loaded_engine, reason
from tests.self_signed import self_signed
from trephine.client import aio
from trephine.client.errors import HandshakeFailedError
from trephine.domain.errors import InvalidRequestError
from trephine.domain.generation import Generate
from trephine.rpc.registration import SERVICES
from trephine.v1 import generation_service_pb2 as generation
from trephine.v1 import model_service_pb2 as models
from trephine.v1.generation_service_pb2_grpc import GenerationServiceStub
from trephine.v1.model_service_pb2_grpc import ModelServiceStub

pytestmark = pytest.mark.integration
LIST = models.ListModelsRequest()


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", token),)


async def refused(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_network_calls_need_the_token(tmp_path):
    """Over TCP: no, wrong or misnamed token is UNAUTHENTICATED, the right one passes; the file is 0600."""
    token_file = tmp_path / "token"
    async with edge(tmp_path, listen="127.0.0.1:0", token_file=token_file) as server:
        token = token_file.read_text().strip()
        assert token_file.stat().st_mode & 0o777 == 0o600
        assert len(token) >= 32
        async with grpc.aio.insecure_channel(server.listen) as channel:
            stub = ModelServiceStub(channel)
            for wrong in ((), bearer("Bearer nope"), bearer(token), bearer(f"Basic {token}"), bearer("")):
                error = await refused(stub.ListModels(LIST, metadata=wrong))
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                assert reason(error) == "UNAUTHENTICATED"
            assert await stub.ListModels(LIST, metadata=bearer(f"Bearer {token}"))


async def test_a_port_without_a_token_file_makes_its_own(tmp_path):
    """No TCP port is ever open to everyone: the token is made in the state folder."""
    async with edge(tmp_path, listen="127.0.0.1:0") as server:
        token = (server.state / "token").read_text().strip()
        async with grpc.aio.insecure_channel(server.listen) as channel:
            stub = ModelServiceStub(channel)
            assert reason(await refused(stub.ListModels(LIST))) == "UNAUTHENTICATED"
            assert await stub.ListModels(LIST, metadata=bearer(f"Bearer {token}"))


async def test_health_and_the_unix_socket_need_no_token(tmp_path):
    """Probes carry no token; the socket's folder lets nobody else in."""
    async with edge(tmp_path, listen="127.0.0.1:0", token_file=tmp_path / "token") as server:
        async with grpc.aio.insecure_channel(server.listen) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest())
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            stream = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest()]))
            assert (await refused(stream.read())).code() is grpc.StatusCode.UNAUTHENTICATED
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert await server.stub(ModelServiceStub).ListModels(LIST)
        folder = Path(server.address.removeprefix("unix:")).parent
        assert folder.stat().st_mode & 0o777 == 0o700


async def test_a_token_that_others_can_read_is_refused(tmp_path):
    """A token file of mode 0644 stops the start, naming the file."""
    (tmp_path / "token").write_text("x" * 32)
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(InvalidRequestError, match="chmod 600"):
        async with edge(tmp_path, listen="127.0.0.1:0", token_file=tmp_path / "token"):
            pass


async def test_reflection_lists_what_is_served(tmp_path):
    """Tools find every service by reflection."""
    async with edge(tmp_path) as server:
        stub = server.stub(reflection_pb2_grpc.ServerReflectionStub)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = [one async for one in stub.ServerReflectionInfo(iter([request]))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert set(SERVICES) | {"grpc.health.v1.Health"} <= names


async def test_draining_refuses_the_new_and_finishes_the_old(tmp_path):
    """While draining, a running stream ends well, new work is UNAVAILABLE, health says NOT_SERVING."""
    hold = asyncio.Event()
    engine = loaded_engine(also={Generate: Script(hold=hold, result=_finished())})
    async with edge(tmp_path, [engine]) as server:
        await server.load()
        row = generation.GenerationRow(prompt="a")
        call = server.stub(GenerationServiceStub).Generate(
            generation.GenerateRequest(model="models/tiny", rows=[row])
        )
        while not any(isinstance(one, Generate) for one in engine.commands):
            await asyncio.sleep(0.01)
        await server.listener.health.enter_graceful_shutdown()
        server.listener.drain.begin()
        error = await refused(server.stub(ModelServiceStub).ListModels(LIST))
        health = await server.stub(health_pb2_grpc.HealthStub).Check(health_pb2.HealthCheckRequest())
        listed = await server.stub(OperationsStub).ListOperations(longrunning.ListOperationsRequest())
        hold.set()
        messages = [one async for one in call]
    assert (error.code(), reason(error)) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert len(listed.operations) == 1
    assert messages[-1].HasField("finished")


async def test_tls_serves_and_plaintext_fails(tmp_path):
    """With a certificate the port speaks TLS only."""
    cert, key = self_signed(tmp_path)
    flags = {"listen": "127.0.0.1:0", "token_file": tmp_path / "token", "tls_cert": cert, "tls_key": key}
    async with edge(tmp_path, **flags) as server:
        token = bearer(f"Bearer {(tmp_path / 'token').read_text().strip()}")
        credentials = grpc.ssl_channel_credentials(cert.read_bytes())
        async with grpc.aio.secure_channel(server.listen, credentials) as channel:
            assert await ModelServiceStub(channel).ListModels(LIST, metadata=token)
        async with grpc.aio.insecure_channel(server.listen) as channel:
            error = await refused(ModelServiceStub(channel).ListModels(LIST, metadata=token, timeout=5))
            assert error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


async def test_the_client_speaks_tls_on_loopback_where_it_is_given_the_authority(tmp_path):
    """A tunnel or a published port ends there. What does not fit is told in words of its own."""
    cert, key = self_signed(tmp_path)
    flags = {"listen": "127.0.0.1:0", "token_file": tmp_path / "token", "tls_cert": cert, "tls_key": key}

    async def answers(server: str, **how: Any) -> bool:
        token = (tmp_path / "token").read_text().strip()
        async with await aio.connect(server, token=token, **how) as trephine:
            return bool(await trephine.models.list())

    async with edge(tmp_path, **flags) as server:
        port = server.listen.rpartition(":")[2]
        assert await answers(server.listen, root_certificates=cert)
        assert await answers(f"localhost:{port}", root_certificates=cert, certificate_name="127.0.0.1")
        for how, words in (
            ({}, "give root_certificates"),
            ({"certificate_name": "127.0.0.1"}, "of no authority that is trusted here"),
            ({"root_certificates": cert, "certificate_name": "example.org"}, "is for another host"),
        ):
            with pytest.raises(HandshakeFailedError, match=words):
                await answers(server.listen, **how)
    del flags["tls_cert"], flags["tls_key"]
    async with edge(tmp_path, **flags) as server:
        assert await answers(server.listen)
        with pytest.raises(HandshakeFailedError, match="speaks without TLS"):
            await answers(server.listen, root_certificates=cert)


def _finished():
    from trephine.domain.generation import Completion, Generation

    said = Completion(text=" b", token_ids=(1,), finish_reason="stop", applied=(), n_prompt_tokens=1)
    return Generation(completions=(said,), model="tiny", weight_hash="w")
