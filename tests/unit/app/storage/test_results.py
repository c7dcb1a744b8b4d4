"""Results: found once, got by name, listed newest first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from trephine.app.storage.records import RecordFolder
from trephine.app.storage.results import found_once, newest_first, stored_result
from trephine.domain.errors import EngineLostError, InvalidRequestError, ResourceNotFoundError


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    name: str
    create_time: str


def found(name: str, time: str) -> Found:
    return Found(name=name, create_time=time)


@pytest.fixture
def records(tmp_path: Path) -> RecordFolder[Found]:
    return RecordFolder(tmp_path / "found", Found)


async def test_what_is_stored_is_not_found_again(records: RecordFolder[Found]) -> None:
    """A second run of one operation returns what the first stored."""
    calls = []

    async def find() -> Found:
        calls.append(None)
        return found(f"found/{len(calls)}", "2026-01-01")

    first = await found_once(records, "a", find)
    assert await found_once(records, "a", find) == first == found("found/1", "2026-01-01")
    assert (await found_once(records, "b", find)).name == "found/2"


async def test_what_could_not_be_found_leaves_nothing_and_is_tried_again(
    records: RecordFolder[Found],
) -> None:
    """An engine that is lost leaves no record: the operation runs again."""

    async def fail() -> Found:
        raise EngineLostError("gone")

    async def find() -> Found:
        return found("found/a", "2026-01-01")

    with pytest.raises(EngineLostError):
        await found_once(records, "a", fail)
    assert records.ids() == ()
    assert await found_once(records, "a", find) == found("found/a", "2026-01-01")


async def test_results_are_got_by_name_or_id(records: RecordFolder[Found]) -> None:
    """Both forms of a name are understood; a missing one is told in people's word for it."""
    records.write("a", found("found/a", "2026-01-01"))
    for name in ("found/a", "a"):
        assert (await stored_result(records, "found", name, what="finding")).name == "found/a"
    with pytest.raises(ResourceNotFoundError, match="there is no finding b") as missing:
        await stored_result(records, "found", "found/b", what="finding")
    assert missing.value.context["name"] == "found/b"
    with pytest.raises(InvalidRequestError, match="not a name like found/ID"):
        await stored_result(records, "found", "../a", what="finding")


def test_the_newest_come_first_and_names_decide_within_a_moment() -> None:
    """Pages of a list are the same each time they are asked for."""
    old, twin, new = found("b", "2026-01-01"), found("a", "2026-01-01"), found("a", "2026-01-02")
    assert newest_first([twin, new, old]) == (new, old, twin)
