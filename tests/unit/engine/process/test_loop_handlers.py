"""The table of handlers: complete, and without doubles."""

from __future__ import annotations

import pytest

from trephine.domain.models import AskStatus
from trephine.domain.tokens import Tokenize
from trephine.engine.models.session import ask_status
from trephine.engine.process.handlers import HANDLERS, merge
from trephine.ipc.codec import ENGINE_COMMANDS


def test_every_command_that_can_cross_has_a_handler() -> None:
    """What the codec lets in, the engine carries out, and nothing else."""
    assert set(HANDLERS) == set(ENGINE_COMMANDS)


def test_two_handlers_for_one_command_are_refused() -> None:
    """Neither of two modules silently wins."""
    with pytest.raises(TypeError, match="AskStatus"):
        merge([{AskStatus: ask_status}, {Tokenize: ask_status}, {AskStatus: ask_status}])
