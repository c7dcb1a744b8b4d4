"""What the contract can carry: half an emoji has no UTF-8, and a number may be larger than its field."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from trephine.client.errors import InvalidRequestError

RequestT = TypeVar("RequestT")
ArgumentsP = ParamSpec("ArgumentsP")

_TOO_LARGE = "out of range"
"""In the words of protobuf."""
_SHOWN = 20
"""Characters around the broken one that the error quotes."""


def sendable(build: Callable[ArgumentsP, RequestT]) -> Callable[ArgumentsP, RequestT]:
    """Let a builder refuse text with half a character, and numbers that do not fit, by a typed error.

    The builder then raises InvalidRequestError, which quotes them; without this it would be the
    UnicodeEncodeError or ValueError of protobuf.
    """

    @wraps(build)
    def checked(*args: ArgumentsP.args, **kwargs: ArgumentsP.kwargs) -> RequestT:
        try:
            return build(*args, **kwargs)
        except UnicodeEncodeError as failure:
            raise _refusal(failure) from None
        except ValueError as failure:
            if _TOO_LARGE not in str(failure):
                raise
            raise InvalidRequestError(
                f"a number does not fit into its field of the request: {failure}"
            ) from None

    return checked


def _refusal(failure: UnicodeEncodeError) -> InvalidRequestError:
    text = failure.object
    quoted = text[max(0, failure.start - _SHOWN) : failure.end + _SHOWN]
    return InvalidRequestError(
        f"a text holds half a character (a lone surrogate, or bytes that are not UTF-8) near {quoted!r}; "
        "remove it or write the whole character"
    )
