"""How much memory a piece of work takes beyond what was there before."""

from __future__ import annotations

import psutil
import torch


class MemoryMeter:
    """Samples this process's memory (host, or the accelerator's allocator) and keeps the peak."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
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
        """Peak less start, in bytes."""
        return self._peak - self._start
