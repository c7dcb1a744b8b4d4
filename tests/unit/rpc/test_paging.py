"""Pages of lists."""

from __future__ import annotations

import pytest

from trephine.domain.errors import InvalidRequestError
from trephine.rpc.paging import Paging, page

NAMES = [f"n{number:03}" for number in range(120)]
ASKED = ("List", None)
DEFAULT = Paging()


def cut(items=NAMES, size=0, token="", question=ASKED, rule=DEFAULT):
    return page(items, size=size, token=token, question=question, rule=rule, key=lambda name: name)


def walk(size: int) -> list[str]:
    names, token = [], ""
    while True:
        found = cut(size=size, token=token)
        names += found.items
        token = found.next_token
        if not token:
            return names


@pytest.mark.parametrize("size", [1, 7, 60, 119, 120, 121, 500])
def test_walking_visits_everything_once(size: int):
    """Whatever the size, pages join to the list, and the last one has no token."""
    assert walk(size) == NAMES


def test_sizes_are_defaulted_and_capped():
    """0 means the default, too much means the largest."""
    rule = Paging(default=50, largest=100)
    assert len(cut(rule=rule).items) == 50
    assert len(cut(size=5000, rule=rule).items) == 100


def test_negative_size_is_refused():
    """AIP-158."""
    with pytest.raises(InvalidRequestError) as caught:
        cut(size=-1)
    assert caught.value.context["field"] == "page_size"


def test_tampered_tokens_are_refused():
    """Every single changed, dropped or added character is noticed, and so is plain rubbish."""
    token = cut(size=10).next_token
    rubbish = [token[:-1], token + "A", "rubbish", "é", "A" * 40, "====", "\ud83d"]
    swapped = [token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1 :] for i in range(len(token) - 1)]
    for bad in rubbish + swapped:
        with pytest.raises(InvalidRequestError) as caught:
            cut(size=10, token=bad)
        assert caught.value.context["field"] == "page_token"


def test_tokens_belong_to_their_question():
    """A token of one filter is refused under another."""
    token = cut(size=10).next_token
    with pytest.raises(InvalidRequestError):
        cut(size=10, token=token, question=("List", "other"))


def test_size_may_change_between_pages():
    """The page size is no part of the question."""
    assert cut(size=3, token=cut(size=10).next_token).items == NAMES[10:13]


def test_growing_lists_neither_skip_nor_repeat():
    """A new item in front does not shift the following page."""
    token = cut(size=10).next_token
    assert cut(["new", *NAMES], size=10, token=token).items == NAMES[10:20]


def test_shrinking_lists_do_not_skip():
    """An item deleted from an earlier page does not hide one of the next page."""
    token = cut(size=10).next_token
    assert cut(NAMES[1:], size=10, token=token).items == NAMES[10:20]


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("gone", [1, 3])
def test_the_last_items_of_a_page_may_go(size: int, gone: int):
    """The next page begins behind those that are left; nothing that was not seen yet is skipped."""
    seen, token = [], ""
    while len(seen) < 20:
        found = cut(size=size, token=token)
        seen += found.items
        token = found.next_token
    left = NAMES[: 20 - gone] + NAMES[20:]
    assert cut(left, size=size, token=token).items == NAMES[20 : 20 + size]
    assert cut(["new", *left], size=size, token=token).items == NAMES[20 : 20 + size]
