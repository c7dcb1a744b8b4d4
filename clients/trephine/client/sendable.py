"""Text that the contract can carry: half an emoji has no UTF-8, so it is refused before it is sent."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from trephine.client.errors import InvalidRequestError

RequestT = TypeVar("RequestT")
ArgumentsP = ParamSpec("ArgumentsP")

_SHOWN = 20
"""Characters around the broken one that the error quotes."""


def sendable(build: Callable[ArgumentsP, RequestT]) -> Callable[ArgumentsP, RequestT]:
    """Let a builder of requests refuse text with half a character by a typed error.

    The builder then raises InvalidRequestError, which quotes the place; without this it would be the
    UnicodeEncodeError of protobuf.
    """

    @wraps(build)
    def checked(*args: ArgumentsP.args, **kwargs: ArgumentsP.kwargs) -> RequestT:
        try:
            return build(*args, **kwargs)
        except UnicodeEncodeError as failure:
            raise _refusal(failure) from None

    return checked


def _refusal(failure: UnicodeEncodeError) -> InvalidRequestError:
    text = failure.object
    quoted = text[max(0, failure.start - _SHOWN) : failure.end + _SHOWN]
    return InvalidRequestError(
        f"a text holds half a character (a lone surrogate, or bytes that are not UTF-8) near {quoted!r}; "
        "remove it or write the whole character"
    )
