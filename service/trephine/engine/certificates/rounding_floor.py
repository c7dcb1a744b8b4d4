"""What rounding the changed tensors to the type of the files costs, beside the parent's own noise floor.

Where files are narrower than the runtime, an exact edit is off by the rounding of what it changes, and by
nothing else. That is measured on the parent, to whose tensors the errors of rounding are added and nothing of
the change itself: so a change that is not the edit's gains no room by it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trephine.domain.interventions import Intervention
from trephine.engine.certificates.noise import Spread
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.shards import DTYPES, read_tensor
from trephine.engine.runs.divergence import joined, kl_divergence
from trephine.engine.runs.retain import RetainText, window_batches, windows_logits
from trephine.engine.weights.tensors import TensorChange, carried_out

Errors = Mapping[tuple[nn.Module, str], Tensor]
"""Module and the name of its parameter -> what is added to it, float32."""


def rounding_floor(
    hosted: HostedModel,
    retain: RetainText,
    changes: Sequence[TensorChange],
    interventions: tuple[Intervention, ...],
) -> Generator[None, None, Spread]:
    """Measure KL(parent || parent with these errors), unedited or intervened in, whichever is more.

    One batch of windows a quantum.

    Args:
        hosted: The parent; unchanged afterwards.
        retain: What the export is measured on.
        changes: All that an exact edit writes.
        interventions: The whole edit.
    """
    errors = rounding_errors(hosted, changes)
    yield
    if not errors:
        return Spread(mean=0.0, p99=0.0)
    spreads = []
    for done in ((), interventions):
        moved = []
        for part in window_batches(retain.windows):
            windows = [retain.windows[number] for number in part]
            before = windows_logits(hosted, windows, done)
            with _erring(errors):
                after = windows_logits(hosted, windows, done)
            moved += [kl_divergence(p, q) for p, q in zip(before, after, strict=True)]
            yield
        kl = joined(moved)
        spreads.append(Spread(mean=float(kl.mean()), p99=float(kl.quantile(0.99)), values=kl))
    return max(spreads, key=lambda one: one.mean)


def rounding_errors(hosted: HostedModel, changes: Sequence[TensorChange]) -> Errors:
    """Return by how much changed tensors are off in the type of their files, without those that are not.

    A tensor that is a copy of another's is as exact as that.
    """
    found: dict[tuple[nn.Module, str], Tensor] = {}
    for change in changes:
        if change.copied_from is not None:
            continue
        dtype, plain = DTYPES[change.dtype], replace(change, growth=None)
        parent = None if change.entry is None else read_tensor(hosted.folder, change.entry)
        exact = carried_out(plain, None if parent is None else parent.to(torch.float32), torch.float32)
        error = carried_out(plain, parent, dtype).to(torch.float32) - exact
        if bool(error.any()):
            module, name = _place(hosted, change.name)
            found[module, name] = error.to(hosted.model.device)
    return found


def _place(hosted: HostedModel, tensor: str) -> tuple[nn.Module, str]:
    """Find the module that holds a tensor of the files; base models' files leave the prefix out."""
    stem, _, name = tensor.rpartition(".")
    modules = dict(hosted.model.named_modules())
    return modules.get(stem) or modules[f"{hosted.model.base_model_prefix}.{stem}"], name


@contextmanager
def _erring(errors: Errors) -> Iterator[None]:
    """Add errors to parameters, and put the very same parameters back. Must not span a quantum."""
    own: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for (module, name), error in errors.items():
            parameters: dict[str, Any] = module._parameters
            before = parameters.get(name)
            own.append((parameters, name, before))
            wrong = error if before is None else before.detach() + error.to(before.dtype)
            parameters[name] = nn.Parameter(wrong, requires_grad=False)
        yield
    finally:
        for parameters, name, before in own:
            parameters[name] = before
