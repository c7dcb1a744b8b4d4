"""Leases."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from trephine.server.lease import Leases

GUARD = 60.0
MOMENT = 0.05
"""A patience that is to run out; where a client is to be in time, patience is the guard."""


@asynccontextmanager
async def leases(
    wish: Path | None = None, **seconds: float
) -> AsyncIterator[tuple[Leases, Path, list[Path]]]:
    roots: list[Path] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lease.sock"
        patience = {"first_seconds": GUARD, "linger_seconds": MOMENT, **seconds}
        found = Leases(
            add_root=roots.append,
            share_replacements=lambda folder: roots.append(folder / "shared"),
            wish=wish or Path(folder) / "detached",
            **patience,
        )
        await found.start(path)
        try:
            yield found, path, roots
        finally:
            await found.close()


def idle() -> int:
    return 0


async def count(found: Leases, open_leases: int) -> None:
    """Wait until the server sees so many leases."""
    async with asyncio.timeout(GUARD):
        while len(found._open) != open_leases:
            await asyncio.sleep(0.005)


async def say(path: Path, *lines: bytes) -> list[bytes]:
    reader, writer = await asyncio.open_unix_connection(path)
    answers = []
    for line in lines:
        writer.write(line)
        answers.append(await reader.readline())
    writer.close()
    return answers


async def test_a_server_that_nobody_wants_ends():
    """Without a single lease the wait ends after the first patience."""
    async with leases(first_seconds=MOMENT) as (found, _, _roots), asyncio.timeout(GUARD):
        await found.until_unused(idle)


async def test_open_leases_keep_it_alive_and_the_last_one_ends_it():
    """Two clients: it lives while either does, then lingers, then ends."""
    async with leases() as (found, path, _):
        ending = asyncio.create_task(found.until_unused(idle))
        first = (await asyncio.open_unix_connection(path))[1]
        second = (await asyncio.open_unix_connection(path))[1]
        await count(found, 2)
        first.close()
        await count(found, 1)
        await asyncio.sleep(4 * MOMENT)
        assert not ending.done()
        second.close()
        async with asyncio.timeout(GUARD):
            await ending


async def test_the_next_command_within_the_linger_keeps_it():
    """A command that comes right after another finds the server alive."""
    async with leases(linger_seconds=GUARD) as (found, path, _):
        ending = asyncio.create_task(found.until_unused(idle))
        before = (await asyncio.open_unix_connection(path))[1]
        await count(found, 1)
        before.close()
        await count(found, 0)
        assert not ending.done()
        found._linger = MOMENT  # of the next one, so that this test sees the end of it
        held = (await asyncio.open_unix_connection(path))[1]
        async with asyncio.timeout(GUARD):
            while found._patience != MOMENT:  # until it is seen to be used again
                await asyncio.sleep(0.005)
        await asyncio.sleep(4 * MOMENT)
        assert not ending.done()
        held.close()
        async with asyncio.timeout(GUARD):
            await ending


async def test_detached_work_is_finished_first():
    """After `detach` the server stays until its operations have ended; without it, it does not."""
    running = 1
    async with leases(first_seconds=MOMENT) as (found, path, _):
        assert await say(path, b"detach\n") == [b"ok\n"]
        ending = asyncio.create_task(found.until_unused(lambda: running))
        await count(found, 0)
        await asyncio.sleep(4 * MOMENT)
        assert not ending.done()
        running = 0
        async with asyncio.timeout(GUARD):
            await ending
    async with leases() as (found, path, _), asyncio.timeout(GUARD):
        held = (await asyncio.open_unix_connection(path))[1]
        await count(found, 1)
        ending = asyncio.create_task(found.until_unused(lambda: 1))
        held.close()
        await ending


async def test_detached_work_is_finished_after_a_crash_too(tmp_path):
    """The next server knows the wish without a client that says it, until everything has ended."""
    running, wish = 1, tmp_path / "detached"
    async with leases(wish=wish) as (_, path, _roots):
        assert await say(path, b"detach\n") == [b"ok\n"]
    async with leases(wish=wish, first_seconds=MOMENT) as (found, path, _):
        ending = asyncio.create_task(found.until_unused(lambda: running))
        await asyncio.sleep(4 * MOMENT)
        assert not ending.done()
        running = 0
        async with asyncio.timeout(GUARD):
            await ending
    assert not wish.exists()
    async with leases(wish=wish, first_seconds=MOMENT) as (found, _, _roots), asyncio.timeout(GUARD):
        await found.until_unused(lambda: 1)


async def test_roots_are_added_and_answered(tmp_path):
    """`root PATH` adds an absolute folder; anything else is answered with an error and adds nothing."""
    odd = tmp_path / "ein Ordner – ü"
    odd.mkdir()
    async with leases() as (_, path, roots):
        answers = await say(
            path, f"root {odd}\n".encode(), b"root relative\n", b"root /nowhere/at/all\n", b"dance\n"
        )
    assert answers[0] == b"ok\n"
    assert all(answer.startswith(b"error ") for answer in answers[1:])
    assert roots == [odd]


async def test_replacement_folders_are_shared_apart_from_model_roots(tmp_path):
    """`replacement PATH` lets sets be read from a folder; models are not looked for there."""
    async with leases() as (_, path, roots):
        answers = await say(path, f"replacement {tmp_path}\n".encode(), b"replacement relative\n")
    assert answers[0] == b"ok\n"
    assert answers[1].startswith(b"error replacement needs an absolute path")
    assert roots == [tmp_path / "shared"]


async def test_the_socket_is_its_owner_s_alone():
    """Mode 0600."""
    async with leases() as (_, path, _roots):
        assert path.stat().st_mode & 0o777 == 0o600


async def test_endless_lines_are_cut_off():
    """A client that sends a line beyond the limit loses its lease, the server goes on."""
    async with leases() as (_, path, _roots):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"x" * 100_000)
        async with asyncio.timeout(GUARD):
            assert await reader.read() == b""
        writer.close()
        assert await say(path, b"detach\n") == [b"ok\n"]


async def test_a_killed_client_gives_its_lease_back():
    """The kernel closes the connection of a process that was killed."""
    async with leases() as (found, path, _):
        code = (
            "import socket,sys,time\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ntime.sleep(600)"
        )
        client = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(path))
        ending = asyncio.create_task(found.until_unused(idle))
        await count(found, 1)
        assert not ending.done()
        client.kill()
        async with asyncio.timeout(GUARD):
            await ending
        await client.wait()


async def test_other_users_add_no_root(tmp_path, monkeypatch):
    """SO_PEERCRED decides: a connection of another user may not add a root."""
    monkeypatch.setattr("trephine.server.lease.os.getuid", lambda: 12345)
    async with leases() as (_, path, roots):
        assert (await say(path, f"root {tmp_path}\n".encode()))[0].startswith(b"error ")
    assert roots == []
