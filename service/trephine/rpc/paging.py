"""Pages of lists: opaque tokens that are bound to the question they continue (AIP-158)."""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

from trephine.domain.errors import InvalidRequestError

ItemT = TypeVar("ItemT")
_CHECK_BYTES = 12
_ANCHORS = 4
"""Last items, the last first, by which the next page is found: some may be gone by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """One list's rule: a page size of 0 means `default`, one above `largest` means `largest`."""

    default: int = 50
    largest: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[ItemT]):
    """Some items and the token of the next page, empty on the last one."""

    items: Sequence[ItemT]
    next_token: str


def page(
    items: Sequence[ItemT],
    *,
    size: int,
    token: str,
    question: tuple[object, ...],
    rule: Paging = Paging(),
    key: Callable[[ItemT], str] = lambda item: "",
) -> Page[ItemT]:
    """Cut one page out of a list.

    Args:
        items: The whole list, in its order.
        size: As asked for.
        token: From the page before, or empty.
        question: Method and filters; a token only continues the question that it came from.
        rule: Default and largest size.
        key: What an item is found again by when the list grew or shrank meanwhile; empty: its place.

    Raises:
        InvalidRequestError: If the size is negative, or the token is not one of this question.
    """
    if size < 0:
        raise InvalidRequestError(f"page_size must not be negative, got {size}", field="page_size")
    count = min(size or rule.default, rule.largest)
    start = _start(items, token, question, key) if token else 0
    kept = items[start : start + count]
    end = start + len(kept)
    following = ""
    if kept and end < len(items):
        anchors = [key(item) for item in reversed(items[max(0, end - _ANCHORS) : end])]
        following = _seal(end, anchors if all(anchors) else [], question)
    return Page(items=kept, next_token=following)


def _start(
    items: Sequence[ItemT], token: str, question: tuple[object, ...], key: Callable[[ItemT], str]
) -> int:
    offset, anchors = _open(token, question)
    if not anchors or (0 < offset <= len(items) and key(items[offset - 1]) == anchors[0]):
        return offset
    places = {key(item): place for place, item in enumerate(items)}
    return next((places[anchor] + 1 for anchor in anchors if anchor in places), offset)


def _seal(offset: int, anchors: list[str], question: tuple[object, ...]) -> str:
    body = json.dumps([offset, *anchors]).encode()
    return urlsafe_b64encode(_check(body, question) + body).decode().rstrip("=")


def _open(token: str, question: tuple[object, ...]) -> tuple[int, list[str]]:
    try:
        data = urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
    except (UnicodeEncodeError, binascii.Error):
        data = b""
    check, body = data[:_CHECK_BYTES], data[_CHECK_BYTES:]
    if not body or check != _check(body, question):
        raise InvalidRequestError(
            "page_token is not one that this question returned; start again without it", field="page_token"
        )
    offset, *anchors = json.loads(body)
    return int(offset), [str(anchor) for anchor in anchors if anchor]


def _check(body: bytes, question: tuple[object, ...]) -> bytes:
    seed = body + b"\0" + repr(question).encode("utf-8", "replace")
    return blake2b(seed, digest_size=_CHECK_BYTES, person=b"trephine-page").digest()
