"""Taking gRPC method handlers apart and putting them together around another behaviour."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from trephine.domain.errors import InvalidRequestError
from trephine.rpc.calls import Call, Context

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Answer = Callable[[Any, Context], Awaitable[Any]]


class Undecodable:
    """Stands for bytes that are no message of the request's type, so that they are refused by name."""


def behaviour_of(handler: Handler) -> Callable[[Any, Context], Any]:
    """The function of a handler, whichever of the four kinds it is."""
    behaviours: tuple[Any, ...] = (
        handler.unary_unary,
        handler.unary_stream,
        handler.stream_unary,
        handler.stream_stream,
    )
    found: Callable[[Any, Context], Any] = next(one for one in behaviours if one is not None)
    return found


def rebuilt(handler: Handler, answer: Answer) -> Handler:
    """The same handler with another behaviour, which also sees undecodable requests."""
    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make: Any = makers[handler.request_streaming, handler.response_streaming]

    async def behaviour(request: Any, context: Context) -> Any:
        return await answer(request, context)

    decode = handler.request_deserializer
    made: Handler = make(
        behaviour,
        request_deserializer=None if decode is None else _forgiving(decode),
        response_serializer=handler.response_serializer,
    )
    return made


def accepted(call: Call, request: Any) -> Any:
    """The request, or the stream of requests, once it is known to be decoded.

    Raises:
        InvalidRequestError: If it is not, for a stream as it is read.
    """
    if isinstance(request, Undecodable):
        raise InvalidRequestError("the request is no valid message: every text must be valid UTF-8")
    if hasattr(request, "__aiter__"):
        return _accepted_stream(call, request)
    call.saw(request)
    return request


async def _accepted_stream(call: Call, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield accepted(call, request)


def _forgiving(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decoded(data: bytes) -> Any:
        try:
            return decode(data)
        except (DecodeError, UnicodeDecodeError):
            return Undecodable()

    return decoded
