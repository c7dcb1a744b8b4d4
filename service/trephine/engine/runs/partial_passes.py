"""Forward passes that end at a module: what lies above is not run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class _ReachedError(Exception):
    """Ends a forward pass: what is above the module is not needed."""


@contextmanager
def ending_at(module: nn.Module) -> Iterator[list[Tensor]]:
    """End the forward pass inside once `module` has run.

    Hooks that were there before act first, so that what is kept is what the pass would have gone on with.

    Yields:
        A list that holds the module's output, in a copy, after the pass.
    """
    kept: list[Tensor] = []

    def keep(_: object, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        kept.append((output if isinstance(output, Tensor) else output[0]).clone())
        raise _ReachedError

    handle = module.register_forward_hook(keep)
    try:
        yield kept
    except _ReachedError:
        pass
    finally:
        handle.remove()
