"""The peak of this process's resident memory, from a moment on.

`ru_maxrss` is no such peak: it never falls, and a new process begins with that of the one that started it.
"""

from __future__ import annotations

from pathlib import Path

import psutil


def peak_bytes() -> int:
    """Return the process's peak resident size since `reset_peak`.

    Raises:
        OSError: If the kernel reports none.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel reports no VmHWM")


def reset_peak() -> int:
    """Let the kernel's peak start from what is resident now, and return that.

    Raises:
        OSError: If the kernel lets no process do so.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)
