"""How much memory a piece of work takes beyond what was there before."""

from __future__ import annotations

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """Return the bytes of a GPU that nobody has, or that torch holds and nothing uses."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


class MemoryMeter:
    """Samples this process's memory (host, or the accelerator's allocator) and keeps the peak.

    Start it after the first forward pass: that one pages the weights in, which are not extra. What the
    pass left behind is given as `held`, in bytes.
    """

    def __init__(self, device: torch.device, held: int = 0) -> None:
        self._device, self._held = device, held
        self._process = psutil.Process()
        self._start = self._peak = self._now()

    def _now(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device))
        return int(self._process.memory_info().rss)

    def sample(self) -> None:
        """Look now. Call it where temporaries are alive."""
        self._peak = max(self._peak, self._now())

    @property
    def extra_bytes(self) -> int:
        """Peak less start, and what was held at the start, in bytes."""
        return self._held + self._peak - self._start
