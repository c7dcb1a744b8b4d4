"""One aio interceptor around every call: log line, error translation, token, draining.

They are one chain in a fixed order, because the log line must see the status that the translation set,
and the translation must see what the token check and draining raise.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from hashlib import sha256
from time import perf_counter
from typing import Any

import grpc
import structlog

from trephine.domain.errors import (
    DrainingError,
    ErrorKind,
    InternalError,
    TrephineError,
    UnauthenticatedError,
)
from trephine.domain.frames import frames_of
from trephine.rpc.calls import Call, Context, begin, metadata
from trephine.rpc.errors import abort, code_of
from trephine.rpc.handlers import Handler, accepted, behaviour_of, rebuilt

_LOG = structlog.get_logger("trephine.rpc")


class Drain:
    """A switch: once begun, only health and operations are answered."""

    def __init__(self) -> None:
        self._draining = False

    def begin(self) -> None:
        """Refuse new work from now on."""
        self._draining = True

    def check(self, call: Call) -> None:
        """Let a call pass.

        Raises:
            DrainingError: If the server is shutting down.
        """
        if self._draining and not call.is_health and not call.method.startswith("/google.longrunning."):
            raise DrainingError("the server is shutting down; try again with its successor")


class BearerToken:
    """Checks the token of calls that come over the network, in constant time."""

    def __init__(self, token: str | None) -> None:
        self._digest = None if token is None else sha256(token.encode()).digest()

    def check(self, call: Call) -> None:
        """Let a call pass.

        Raises:
            UnauthenticatedError: If it came over the network without the right token.
        """
        if self._digest is None or call.is_health or not call.over_network:
            return
        given = metadata(call.context).get("authorization", "")
        scheme, _, token = str(given).partition(" ")
        presented = sha256(token.encode("utf-8", "surrogateescape")).digest()
        if not hmac.compare_digest(presented, self._digest) or scheme.lower() != "bearer":
            raise UnauthenticatedError("send the server's token as `authorization: Bearer TOKEN`")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler; see the module."""

    def __init__(self, *, token: BearerToken, drain: Drain, log_content: bool = False) -> None:
        self._token = token
        self._drain = drain
        self._log_content = log_content

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the next handler, wrapped."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return rebuilt(handler, partial(self._answer, handler_call_details.method, handler))

    async def _answer(self, method: str, handler: Handler, request: Any, context: Context) -> Any:
        async with self._around(method, context) as call:
            request = accepted(call, request)
            answer = behaviour_of(handler)(request, context)
            if inspect.isawaitable(answer):
                call.messages = 1
                return await answer
            # Written here, not yielded to gRPC, so that a client that leaves is noticed in this frame
            # and the generator's clean-up runs at once.
            async with aclosing(answer) as messages:
                async for message in messages:
                    await context.write(message)
                    call.messages += 1
            return None

    @asynccontextmanager
    async def _around(self, method: str, context: Context) -> AsyncIterator[Call]:
        call, began, code, reason = begin(method, context), perf_counter(), "OK", ""
        context.set_trailing_metadata(call.trailers)
        try:
            self._drain.check(call)
            self._token.check(call)
            yield call
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except grpc.aio.AbortError:
            code = _name(context.code())
            raise
        except Exception as error:
            shown = self._shown(call, error)
            code, reason = code_of(shown).name, shown.reason
            await abort(context, shown, call.trailers)
        finally:
            _log_call(call, perf_counter() - began, code, reason)

    def _shown(self, call: Call, error: Exception) -> TrephineError:
        """What the client may see: typed errors as they are, defects of ours only by their request id."""
        if isinstance(error, TrephineError) and error.kind is not ErrorKind.INTERNAL:
            return error
        frames = frames_of(error)
        # The message of an unexpected error may quote a prompt.
        quoted = {"message": str(error)} if self._log_content else {}
        _LOG.error("defect", request_id=call.request_id, error=type(error).__name__, frames=frames, **quoted)
        return InternalError(
            f"internal error; the server's log has it under request id {call.request_id}",
            request_id=call.request_id,
        )


def _log_call(call: Call, seconds: float, code: str, reason: str) -> None:
    log = _LOG.debug if call.is_health else _LOG.info
    log(
        "rpc",
        method=call.method,
        request_id=call.request_id,
        code=code,
        reason=reason,
        seconds=round(seconds, 6),
        messages=call.messages,
        over_network=call.over_network,
        **call.resources,
    )


def _name(code: Any) -> str:
    number = code if isinstance(code, int) else (code or grpc.StatusCode.OK).value[0]
    return next((one.name for one in grpc.StatusCode if one.value[0] == number), str(number))
