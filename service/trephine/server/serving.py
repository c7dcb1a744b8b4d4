"""A server's life: own the state folder, open, answer, drain, close."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import structlog

from trephine.app.storage.state import StateFolder
from trephine.domain.errors import StateFolderBusyError
from trephine.rpc.registration import announce
from trephine.server import address
from trephine.server.address import ServerFile, SocketFolder
from trephine.server.bootstrap import House, build
from trephine.server.lease import Leases
from trephine.server.listener import Listener
from trephine.server.settings import Settings

_PREDECESSOR_SECONDS = 100.0
"""How long to wait for a server that has withdrawn its address and closes its engines, or has none yet."""
_LOG = structlog.get_logger("trephine.server")


async def serve(settings: Settings) -> None:
    """Serve until a signal, or until the last lease of an ephemeral server ends.

    Raises:
        StateFolderBusyError: If another server owns the state folder.
        InvalidRequestError: If an address or certificate cannot be used.
    """
    stop = _stop_on_signals()
    state = await _own(settings.state)
    try:
        address.sweep(state.path)
        house = build(settings, state)
        try:
            await house.open()
            await _serve_house(settings, state.path, house, stop)
        finally:
            await house.close()
    finally:
        state.close()
    _LOG.info("ended")


async def _serve_house(settings: Settings, state: Path, house: House, stop: asyncio.Event) -> None:
    async with _sockets() as sockets:
        listener = Listener(house.service, settings)
        listen = listener.bind(sockets.grpc)
        leases = Leases(
            add_root=house.service.models.add_root,
            share_replacements=house.service.replacements.share,
            wish=state / "detached",
        )
        await leases.start(sockets.lease)
        await listener.server.start()
        await announce(listener.health)
        here = ServerFile(
            address=f"unix:{sockets.grpc}",
            lease=str(sockets.lease),
            pid=os.getpid(),
            version=version("trephine"),
            listen=listen,
        )
        address.publish(state, here)
        _LOG.info("serving", **here.model_dump(exclude={"pid"}))
        try:
            await _until_end(settings, house, leases, stop)
        finally:
            await _drain(settings, state, house, listener, leases)


async def _until_end(settings: Settings, house: House, leases: Leases, stop: asyncio.Event) -> None:
    reasons: set[asyncio.Task[bool]] = {asyncio.create_task(_asked(stop))}
    if settings.ephemeral:
        reasons.add(asyncio.create_task(_unused(leases, house)))
    _, others = await asyncio.wait(reasons, return_when=asyncio.FIRST_COMPLETED)
    for other in others:
        other.cancel()


async def _asked(stop: asyncio.Event) -> bool:
    return await stop.wait()


async def _unused(leases: Leases, house: House) -> bool:
    await leases.until_unused(house.service.operations.running)
    return True


async def _drain(settings: Settings, state: Path, house: House, listener: Listener, leases: Leases) -> None:
    """Nobody finds us, health says so, new calls are refused, running ones may finish, then all ends."""
    _LOG.info("draining", grace_seconds=settings.grace_seconds)
    address.withdraw(state)
    await leases.close()
    await listener.health.enter_graceful_shutdown()
    listener.drain.begin()
    # Operations are durable: they stop here, which ends their watchers, and resume with the next server.
    await house.service.operations.close()
    await listener.server.stop(settings.grace_seconds)


@asynccontextmanager
async def _sockets() -> AsyncIterator[SocketFolder]:
    sockets = SocketFolder()
    try:
        yield sockets
    finally:
        sockets.remove()


async def _own(path: Path) -> StateFolder:
    """Take the state folder; one that drains already is waited for, and one that starts until it serves."""
    deadline = asyncio.get_running_loop().time() + _PREDECESSOR_SECONDS
    while True:
        try:
            return StateFolder.open(path)
        except StateFolderBusyError:
            serving = address.find(path) is not None
            if serving or asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(0.1)


def _stop_on_signals() -> asyncio.Event:
    """The first SIGTERM or SIGINT drains; a second one ends the process at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def asked() -> None:
        if stop.is_set():
            _LOG.warning("ended at once by a second signal")
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    return stop
