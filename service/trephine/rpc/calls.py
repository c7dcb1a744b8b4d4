"""What the interceptors know of one call: method, peer, request id, named resources."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf.message import Message

REQUEST_ID_KEY = "x-request-id"
_RESOURCE_FIELDS = ("name", "model", "edit", "circuit", "source", "auditor", "edit_id", "export_id")
_WORD = re.compile(r"[A-Za-z0-9._:/#-]{1,160}")
_RESOURCE = re.compile(r"[A-Za-z0-9._:/#@=+-]{1,160}")
"""Names with their versions, `edits/no-mary@2`; no space, quote or control character: a line stays one."""

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True, kw_only=True)
class Call:
    """One call on its way through the interceptors."""

    method: str
    context: Context
    request_id: str
    over_network: bool
    """True unless the client came through the Unix socket, which only its owner can open."""
    resources: dict[str, str] = field(default_factory=dict)
    messages: int = 0
    """Messages sent to the client."""

    @property
    def is_health(self) -> bool:
        """True for grpc.health.v1, which answers without a token and while draining."""
        return self.method.startswith("/grpc.health.v1.Health/")

    @property
    def trailers(self) -> tuple[tuple[str, str], ...]:
        """Trailing metadata of every call, refused ones included."""
        return ((REQUEST_ID_KEY, self.request_id),)

    def saw(self, request: object) -> None:
        """Remember the resources that a request names; never its texts."""
        if isinstance(request, Message):
            for name in _RESOURCE_FIELDS:
                value = getattr(request, name, None)
                if isinstance(value, str) and value:
                    self.resources[name] = value if _RESOURCE.fullmatch(value) else "(unprintable)"


def begin(method: str, context: Context) -> Call:
    """Start a call; its request id is the client's, if that is a plain word, or a new one."""
    given = metadata(context).get(REQUEST_ID_KEY, "")
    plain = isinstance(given, str) and _WORD.fullmatch(given)
    return Call(
        method=method,
        context=context,
        request_id=str(given) if plain else uuid4().hex,
        over_network=not context.peer().startswith("unix:"),
    )


def metadata(context: Context) -> dict[str, str | bytes]:
    """The client's metadata; of a repeated key the last value."""
    return {str(key): value for key, value in context.invocation_metadata() or ()}
