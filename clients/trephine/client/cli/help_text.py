from __future__ import annotations


def examples(*lines: str) -> str:
    """The end of a command's help: lines as they are typed, not wrapped."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))
