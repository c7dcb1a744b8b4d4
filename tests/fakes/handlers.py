"""Handlers without torch, for a real engine process: `--handlers tests.fakes.handlers:HANDLERS`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from trephine.domain.activations import Activations, ReadActivations
from trephine.domain.arrays import Array
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.commands import Progress
from trephine.domain.edits import ProposeEdit
from trephine.domain.generation import Generate, Generation, TokenEvent
from trephine.domain.models import AskStatus
from trephine.domain.tokens import RenderChat, ResolveTarget, Text, Token, Tokenize, Tokens
from trephine.engine.models.session import Session, ask_status

QUANTUM_SECONDS = 0.002


def tokenize(session: Session, command: Tokenize) -> Generator[None, None, Tokens]:
    """One quantum, then one token per character."""
    yield None
    return Tokens(tokens=tuple(Token(id=ord(c), raw=c.encode(), display=c) for c in command.text))


def discover(session: Session, command: DiscoverCircuit) -> Generator[None, None, Any]:
    """Works for ever; a prompt that names a file gets `closed` written there when it is ended."""
    try:
        while True:
            time.sleep(QUANTUM_SECONDS)
            yield None
    finally:
        if command.prompt.startswith("/"):
            Path(command.prompt).write_text("closed", encoding="utf-8")


def generate(session: Session, command: Generate) -> Generator[TokenEvent, None, Generation]:
    """Streams `max_new_tokens` events."""
    for step in range(command.max_new_tokens):
        token = Token(id=step, raw=b"\xff", display="x")
        yield TokenEvent(row=0, step=step, token=token, text="x", log_probability=-1.0)
    return Generation(completions=(), model="fake", weight_hash="0")


def activations(session: Session, command: ReadActivations) -> Generator[None, None, Activations]:
    """Returns an array of as many MiB as the text says."""
    yield None
    size = int(command.text) << 20
    return Activations(tokens=(), values=Array(dtype="uint8", shape=(size,), data=b"\x07" * size))


def crash(session: Session, command: ResolveTarget) -> Generator[None, None, Token]:
    """Raises what the text says, in its second quantum."""
    yield None
    if command.text == "memory":
        raise MemoryError
    if command.text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError(f"secret prompt {command.text}")


def propose(session: Session, command: ProposeEdit) -> Generator[Progress, None, Any]:
    """Blocks a single quantum for as many seconds as the prompt says."""
    yield Progress(stage="sleep", done=0, total=1)
    time.sleep(float(command.prompt))
    yield Progress(stage="sleep", done=1, total=1)


def environment(session: Session, command: RenderChat) -> Generator[None, None, Text]:
    """Names of the environment variables, and whether torch was imported."""
    import sys

    yield None
    return Text(text="\n".join([*sorted(os.environ), f"torch={'torch' in sys.modules}"]))


HANDLERS = {
    Tokenize: tokenize,
    DiscoverCircuit: discover,
    Generate: generate,
    ReadActivations: activations,
    ResolveTarget: crash,
    ProposeEdit: propose,
    RenderChat: environment,
    AskStatus: ask_status,
}
