"""Paging the layers of one set: read when needed, kept while there is room, dropped least recently used.

Room is made before a layer is read, so that what is resident never exceeds the budget; while a layer is
being read, its reader may hold one more tensor. Layers in use are pinned and stay.
"""

from __future__ import annotations

import ctypes
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import torch

from trephine.domain.errors import BrokenReplacementError, LayerOutOfRangeError, OverBudgetError
from trephine.domain.replacements import Residency
from trephine.engine.replacements.layer import LayerReader, ReplacementLayer

Stamp = dict[str, tuple[int, int]]
"""Per file, relative to the set's folder: size in bytes and time of the last change in ns."""


class LayerPager:
    """A `Pager` over the layers of a set on disk. For one thread: the engine's loop.

    Args:
        readers: One per layer.
        budget_bytes: Resident weights at most.
        folder: The set's folder, watched for changes; None watches nothing.
        reopen: Reads the set's layers anew, hashes included. Called where a file's size or time differs
            from when the set was loaded, to tell a touched file from a changed one.
        device: Where layers are read to.
        peak_bytes: What was resident at most before this pager took over, while the set was admitted.
    """

    def __init__(
        self,
        readers: Sequence[LayerReader],
        *,
        budget_bytes: int,
        folder: Path | None = None,
        reopen: Callable[[], Sequence[LayerReader]] | None = None,
        device: torch.device | str = "cpu",
        peak_bytes: int = 0,
    ) -> None:
        self._readers = {reader.info.layer: reader for reader in readers}
        self._budget, self._folder, self._reopen, self._device = budget_bytes, folder, reopen, device
        self._stamp = folder_stamp(folder)
        self._resident: OrderedDict[int, ReplacementLayer] = OrderedDict()
        self._pins: Counter[int] = Counter()
        self._loads = self._evictions = 0
        self._peak = peak_bytes

    @contextmanager
    def pinned(self, layers: Sequence[int]) -> Iterator[Mapping[int, ReplacementLayer]]:
        """Load layers if need be and keep them resident inside the block.

        Raises:
            LayerOutOfRangeError: If the set has no such layer.
            OverBudgetError: If these layers, with those that are in use already, exceed the budget.
            BrokenReplacementError: If a file has changed or cannot be read.
        """
        wanted = list(dict.fromkeys(layers))
        self._check(wanted)
        self._pins.update(wanted)
        try:
            yield {layer: self._layer(layer) for layer in wanted}
        finally:
            self._pins.subtract(wanted)
            self._pins += Counter()  # drops what is no longer pinned

    def residency(self) -> Residency:
        """Count what is resident."""
        return Residency(
            total_bytes=sum(map(self._size, self._readers)),
            resident_bytes=self._resident_bytes(),
            peak_bytes=self._peak,
            budget_bytes=self._budget,
            loads=self._loads,
            evictions=self._evictions,
            pinned_bytes=sum(self._size(layer) for layer in self._resident if self._pins[layer]),
        )

    def clear(self) -> None:
        """Drop every layer that is not in use."""
        for layer in [layer for layer in self._resident if not self._pins[layer]]:
            self._evict(layer)
        return_freed_memory()

    def _layer(self, layer: int) -> ReplacementLayer:
        """Return a pinned layer, read if it is not resident."""
        if layer not in self._resident:
            self._require_unchanged(layer)
            self._make_room(layer)
            self._resident[layer] = self._readers[layer].read(self._device)
            self._loads += 1
            self._peak = max(self._peak, self._resident_bytes())
        self._resident.move_to_end(layer)
        return self._resident[layer]

    def _check(self, wanted: Sequence[int]) -> None:
        for layer in wanted:
            if layer not in self._readers:
                raise LayerOutOfRangeError(f"the replacement set does not cover layer {layer}", layer=layer)
        needed = sum(map(self._size, {*wanted, *self._pins}))
        if needed > self._budget:
            raise OverBudgetError(
                f"{len(wanted)} replacement layers at once need {needed / 1e6:.1f} MB and the set's memory "
                f"budget is {self._budget / 1e6:.1f} MB; ask for fewer layers at a time, or load the set "
                "with a larger memory budget",
                needed_bytes=needed,
                budget_bytes=self._budget,
            )

    def _make_room(self, layer: int) -> None:
        before = self._evictions
        for candidate in [candidate for candidate in self._resident if not self._pins[candidate]]:
            if self._resident_bytes() + self._size(layer) <= self._budget:
                break
            self._evict(candidate)
        if self._evictions > before:
            return_freed_memory()

    def _evict(self, layer: int) -> None:
        del self._resident[layer]
        self._evictions += 1

    def _size(self, layer: int) -> int:
        return self._readers[layer].info.memory_bytes

    def _resident_bytes(self) -> int:
        return sum(map(self._size, self._resident))

    def _require_unchanged(self, layer: int) -> None:
        now = folder_stamp(self._folder)
        if now == self._stamp:
            return
        changed = sorted(name for name in {*now, *self._stamp} if now.get(name) != self._stamp.get(name))
        if self._reopen is None or _hashes(self._reopen()) != _hashes(self._readers.values()):
            raise BrokenReplacementError(
                f"the replacement set changed on disk since it was loaded: {', '.join(changed[:3])}; "
                "unload it and load it again",
                layer=layer,
                file=changed[0],
            )
        self._stamp = now


def _hashes(readers: Iterable[LayerReader]) -> dict[int, str]:
    return {reader.info.layer: reader.info.content_hash for reader in readers}


def folder_stamp(folder: Path | None) -> Stamp:
    """Return size and time of every file below a folder; empty for None.

    Raises:
        BrokenReplacementError: If the folder is gone.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise BrokenReplacementError("the replacement set's folder is gone; unload the set")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(f.relative_to(folder)): (f.stat().st_size, f.stat().st_mtime_ns) for f in files}


def return_freed_memory() -> None:
    """Give what has been freed back to the system.

    After large temporaries glibc keeps up to 64 MB of freed memory, which would count against the budget.
    """
    trim = getattr(_libc(), "malloc_trim", None)  # absent from musl, which keeps nothing
    if trim is not None:
        trim(0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def default_budget(device: torch.device) -> int:
    """Return half of the memory that is free where layers will lie, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return int(psutil.virtual_memory().available) // 2
