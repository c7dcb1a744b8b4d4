"""Commands: requests to an engine, typed by what they return and what they stream meanwhile.

A command is a frozen value. `Engine.run(command)` is the one way into an engine, so that adding a
capability is one command and one handler, and every command crosses the process border the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar, get_args, get_origin

from trephine.domain.partials import PartialCircuit

ResultT = TypeVar("ResultT")
EventT = TypeVar("EventT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a piece of long work is."""

    stage: str
    """What is being done, in a few words: `attribution`, `certify`."""
    done: int
    total: int
    """Units of the stage; 0 when it is not known."""
    detail: str = ""
    partial: PartialCircuit | None = None
    """What there is of the result so far, where it can be shown."""


class Command(Generic[ResultT, EventT]):
    """Base of every command. `interactive` commands run before those of Operations (DESIGN 5.10)."""

    __slots__ = ()
    interactive: ClassVar[bool] = True

    @classmethod
    def result_type(cls) -> type[ResultT]:
        """The type that the engine answers with."""
        return _parameters(cls)[0]

    @classmethod
    def event_type(cls) -> type[EventT]:
        """The type of what is streamed before the answer."""
        return _parameters(cls)[1]


def _parameters(cls: type) -> tuple[type, type]:
    for base in getattr(cls, "__orig_bases__", ()):
        if get_origin(base) is Command:
            result, event = get_args(base)
            return result, event
    raise TypeError(f"{cls.__name__} must subclass Command[Result, Event] directly")
