"""What the contract can carry: half an emoji has no UTF-8, and a number may be larger than its field."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, wraps
from inspect import signature
from reprlib import repr as shortened
from typing import Any, ParamSpec, TypeVar

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
    a note of what was given: protobuf does not say which argument it means. A single value, or a text, for
    an argument that takes several is refused by the argument's name.
    """

    @wraps(build)
    def checked(*args: ArgumentsP.args, **kwargs: ArgumentsP.kwargs) -> RequestT:
        for name, value in _named(build, args, kwargs):
            if value is not None and name in _several(build):
                _check_listed(value, name)
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
    _check_listed(values, field)
    return tuple(values)


def _check_listed(values: object, field: str) -> None:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidRequestError(
            f"{field} takes several values and was given {shortened(values)}; put it into a list", field=field
        )


@cache
def _several(build: Callable[..., object]) -> frozenset[str]:
    """Arguments of a builder that take several values.

    Annotated so, or a repeated field of the message that it returns: `**options` are passed on as fields.
    """
    annotations = {name: str(kind) for name, kind in build.__annotations__.items()}
    module, _, message = annotations.get("return", "").partition(".")
    built: Any = getattr(build.__globals__.get(module), message.partition(" ")[0], None) if message else None
    fields = built.DESCRIPTOR.fields if hasattr(built, "DESCRIPTOR") else ()
    repeated = {field.name for field in fields if _is_repeated(field)}
    return frozenset(repeated | {name for name, kind in annotations.items() if kind.startswith("Sequence[")})


def _is_repeated(field: Any) -> bool:
    try:
        return bool(field.is_repeated)
    except AttributeError:  # before protobuf 6.31, which has no `label` any more
        return bool(field.label == field.LABEL_REPEATED)


def _named(
    build: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> list[tuple[str, object]]:
    return [*zip(signature(build).parameters, args, strict=False), *kwargs.items()]


def _given_to(build: Callable[..., RequestT], args: tuple[object, ...], kwargs: dict[str, object]) -> str:
    """What a request was to be built from, long texts shortened."""
    given = _named(build, args, kwargs)
    return f"given were {', '.join(f'{name}={shortened(value)}' for name, value in given)}"


def _refusal(failure: UnicodeEncodeError) -> InvalidRequestError:
    text = failure.object
    quoted = text[max(0, failure.start - _SHOWN) : failure.end + _SHOWN]
    return InvalidRequestError(
        f"a text holds half a character (a lone surrogate, or bytes that are not UTF-8) near {quoted!r}; "
        "remove it or write the whole character"
    )
