"""What the contract can carry: half an emoji has no UTF-8, and a number may be larger than its field."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import signature
from reprlib import repr as shortened
from typing import ParamSpec, TypeVar

from trephine.client.errors import InvalidRequestError

RequestT = TypeVar("RequestT")
ArgumentsP = ParamSpec("ArgumentsP")
ValueT = TypeVar("ValueT")

_TOO_LARGE = "out of range"
"""In the words of protobuf."""
_SHOWN = 20
"""Characters around the broken one that the error quotes."""


def sendable(build: Callable[ArgumentsP, RequestT]) -> Callable[ArgumentsP, RequestT]:
    """Let a builder refuse text with half a character, and numbers that do not fit, by a typed error.

    The builder then raises InvalidRequestError, which quotes them; without this it would be the
    UnicodeEncodeError or ValueError of protobuf. A value of a wrong type stays the TypeError that it is, with
    a note of what was given: protobuf does not say which argument it means.
    """

    @wraps(build)
    def checked(*args: ArgumentsP.args, **kwargs: ArgumentsP.kwargs) -> RequestT:
        try:
            return build(*args, **kwargs)
        except UnicodeEncodeError as failure:
            raise _refusal(failure) from None
        except ValueError as failure:
            if _TOO_LARGE not in str(failure):
                failure.add_note(_given_to(build, args, kwargs))
                raise
            raise InvalidRequestError(
                f"a number does not fit into its field of the request: {failure}"
            ) from None
        except TypeError as failure:
            failure.add_note(_given_to(build, args, kwargs))
            raise

    return checked


def listed(values: Iterable[ValueT], field: str) -> tuple[ValueT, ...]:
    """Return the values of an argument that takes several.

    Raises:
        InvalidRequestError: If one value was given alone: a text would be taken for its letters.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidRequestError(
            f"{field} takes several values and was given {shortened(values)}; put it into a list", field=field
        )
    return tuple(values)


def _given_to(build: Callable[..., RequestT], args: tuple[object, ...], kwargs: dict[str, object]) -> str:
    """What a request was to be built from, long texts shortened."""
    names = signature(build).parameters
    given = [*zip(names, args, strict=False), *kwargs.items()]
    return f"given were {', '.join(f'{name}={shortened(value)}' for name, value in given)}"


def _refusal(failure: UnicodeEncodeError) -> InvalidRequestError:
    text = failure.object
    quoted = text[max(0, failure.start - _SHOWN) : failure.end + _SHOWN]
    return InvalidRequestError(
        f"a text holds half a character (a lone surrogate, or bytes that are not UTF-8) near {quoted!r}; "
        "remove it or write the whole character"
    )
