"""The pager: what is resident stays within the budget, what is in use stays, what changed is noticed."""

from __future__ import annotations

import os

import pytest

from tests.unit.engine.replacements.fakes import FakeReader, layer_info, random_layer
from trephine.domain.errors import BrokenReplacementError, LayerOutOfRangeError, OverBudgetError
from trephine.engine.replacements.residency import LayerPager


def readers(count=4, size=1000):
    return [FakeReader(random_layer(layer_info(i, memory_bytes=size))) for i in range(count)]


def test_nothing_is_read_before_it_is_needed():
    """Making a pager reads nothing; pinning reads once, and a second pin finds it resident."""
    made = readers()
    pager = LayerPager(made, budget_bytes=10_000)
    assert [reader.reads for reader in made] == [0, 0, 0, 0]
    for _ in range(2):
        with pager.pinned([1]) as layers:
            assert layers[1].info.layer == 1
    assert [reader.reads for reader in made] == [0, 1, 0, 0]
    assert pager.residency().resident_bytes == 1000


def test_a_set_larger_than_its_budget_works_and_stays_within_it():
    """Four layers of 1,000 bytes through 2,500: never more than two resident, the oldest goes first."""
    made = readers()
    pager = LayerPager(made, budget_bytes=2500)
    for layer in (0, 1, 0, 2, 0, 3):
        with pager.pinned([layer]):
            assert pager.residency().resident_bytes <= 2500
    figures = pager.residency()
    assert [reader.reads for reader in made] == [1, 1, 1, 1]  # 0 was used again and again, so it stayed
    assert (figures.loads, figures.evictions, figures.peak_bytes) == (4, 2, 2000)
    assert (figures.total_bytes, figures.budget_bytes) == (4000, 2500)


def test_room_is_made_before_a_layer_is_read():
    """While a reader reads, what is resident leaves room for it."""
    seen = []
    made = readers()
    pager = LayerPager(made, budget_bytes=2000)
    for reader in made:
        read = reader.read
        reader.read = lambda device, read=read: (seen.append(pager.residency().resident_bytes), read())[1]
    for layer in range(4):
        with pager.pinned([layer]):
            pass
    assert seen == [0, 1000, 1000, 1000]


def test_a_layer_in_use_is_not_evicted():
    """A pinned layer stays resident while others come and go; where it leaves no room, that is said."""
    made = readers()
    pager = LayerPager(made, budget_bytes=2000)
    with pager.pinned([0]):
        for layer in (1, 2, 3):
            with pager.pinned([layer]):
                pass
        with pytest.raises(OverBudgetError, match="fewer layers at a time"), pager.pinned([1, 2]):
            pass
    with pager.pinned([1, 2]):
        pass
    assert made[0].reads == 1


def test_one_layer_larger_than_the_budget_is_refused():
    """It is refused before it is read, and leaves no pin behind."""
    made = readers(size=3000)
    pager = LayerPager(made, budget_bytes=2500)
    with pytest.raises(OverBudgetError) as caught, pager.pinned([2]):
        pass
    assert caught.value.context["budget_bytes"] == 2500
    assert made[2].reads == 0
    assert pager.residency().resident_bytes == 0


def test_a_layer_that_the_set_lacks_is_named():
    """Pinning what is not there is an error, not an empty mapping."""
    with (
        pytest.raises(LayerOutOfRangeError, match="layer 9"),
        LayerPager(readers(), budget_bytes=1).pinned([9]),
    ):
        pass


def test_a_file_that_changed_is_noticed_and_one_that_was_touched_is_not(tmp_path):
    """Another size or time is followed by a look at the hashes: only other content is an error."""
    file = tmp_path / "layer_0" / "weights"
    file.parent.mkdir()
    file.write_bytes(b"first")
    now = readers()
    pager = LayerPager(readers(), budget_bytes=1000, folder=tmp_path, reopen=lambda: now)
    os.utime(file, ns=(1, 1))
    with pager.pinned([0]):
        pass
    now[3] = FakeReader(random_layer(layer_info(3, content_hash="another")))
    file.write_bytes(b"second")
    with pytest.raises(BrokenReplacementError, match=r"changed on disk.*weights"), pager.pinned([1]):
        pass
    with pager.pinned([0]):  # what is resident is what was admitted
        pass


def test_clearing_drops_what_is_not_in_use():
    """After an unload nothing stays resident."""
    pager = LayerPager(readers(), budget_bytes=10_000)
    with pager.pinned([0, 1]):
        pass
    pager.clear()
    assert pager.residency().resident_bytes == 0
