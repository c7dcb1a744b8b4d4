"""What an exact edit moves, and what rounding the changed tensors to the type of the files costs beside it.

An exact edit is off by the rounding of what it changes, and by nothing else. That is measured on the parent,
to whose tensors the errors of rounding are added and nothing of the change itself: so a change that is not
the edit's gains no room by it. Where files are narrower than the runtime, it is measured as the runtime
computes. Where both are narrow, the runtime's own arithmetic hides far more than that; then it is measured in
float32, in which the folder is compared as well.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from trephine.domain.interventions import Intervention
from trephine.engine.certificates.edit_floor import EditFloor
from trephine.engine.certificates.noise import NoiseFloor, Spread, computing_in
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.shards import DTYPES, read_tensor
from trephine.engine.runs.divergence import joined, kl_divergence
from trephine.engine.runs.retain import RetainText, plain_logits, window_batches, windows_logits
from trephine.engine.weights.compiling import WeightProgram
from trephine.engine.weights.tensors import NARROW, TensorChange, carried_out

Errors = Mapping[tuple[nn.Module, str], Tensor]
"""Module and the name of its parameter -> what is added to it, float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WideFloor:
    """Of a narrow runtime, all computed in float32; nats per token."""

    edit: float
    """KL(intervened || original)."""
    rounded: float
    """What rounding the changed tensors costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactFloors:
    """What the bounds of an exact edit come from."""

    whole: EditFloor
    rounded: Spread | None = None
    """As the runtime computes; None: the files hold what it computes in."""
    wide: WideFloor | None = None
    """None: the folder is not compared in float32."""


def is_compared_wide(hosted: HostedModel, program: WeightProgram) -> bool:
    """Say whether runtime and folder are compared in float32, too: a narrow runtime's noise hides too much.

    Whatever type the files hold: both are loaded in the runtime's. Of a fit a share is promised that rounding
    does not decide.
    """
    return hosted.model.dtype in NARROW and not program.fitted and bool(program.changes)


def exact_floors(
    hosted: HostedModel,
    retain: RetainText,
    changes: Sequence[TensorChange],
    interventions: tuple[Intervention, ...],
    floor: NoiseFloor,
    *,
    wide: bool = False,
) -> Generator[None, None, ExactFloors]:
    """Measure them on the parent in one way through the text; one run of a batch of windows a quantum.

    Args:
        hosted: The parent; unchanged afterwards.
        retain: What the export is measured on, and the floor was.
        changes: All that an exact edit writes.
        interventions: The whole edit.
        floor: The parent's.
        wide: Whether to measure in float32 as well.
    """
    narrow = floor.stored is not None
    errors = rounding_errors(hosted, changes) if narrow or wide else {}
    plain = yield from plain_logits(hosted, retain)
    own = _Runs(hosted=hosted, interventions=interventions, errors=errors if narrow else {}, wide=False)
    in_float32 = _Runs(hosted=hosted, interventions=interventions, errors=errors, wide=True)
    for part in window_batches(retain.windows):
        windows = [retain.windows[number] for number in part]
        yield from own.add(windows, [plain[number] for number in part])
        if wide:
            before = in_float32.answers(windows, ())
            yield
            yield from in_float32.add(windows, before)
    return ExactFloors(
        whole=EditFloor(tokens=retain.n_tokens, floor=floor.mean, edit=own.edit),
        rounded=own.rounded if narrow else None,
        wide=WideFloor(edit=in_float32.edit, rounded=in_float32.rounded.mean) if wide else None,
    )


@dataclass(slots=True, kw_only=True)
class _Runs:
    """Answers in one arithmetic, and how far they lie apart: KL per position, batch by batch."""

    hosted: HostedModel
    interventions: tuple[Intervention, ...]
    errors: Errors
    wide: bool
    """Whether they are computed in float32, whatever the model computes in."""
    moved: list[Tensor] = field(default_factory=list)
    """KL(intervened || original)."""
    unedited: list[Tensor] = field(default_factory=list)
    """KL(original || original with errors)."""
    intervened: list[Tensor] = field(default_factory=list)
    """KL(intervened || intervened with errors)."""

    @property
    def edit(self) -> float:
        """What the edit moves."""
        return float(joined(self.moved).mean())

    @property
    def rounded(self) -> Spread:
        """What errors cost, unedited or intervened in, whichever is more; nothing where there are none."""
        found = [joined(parts) for parts in (self.unedited, self.intervened) if parts]
        spreads = [Spread(mean=float(kl.mean()), p99=float(kl.quantile(0.99)), values=kl) for kl in found]
        return max(spreads, key=lambda one: one.mean, default=Spread(mean=0.0, p99=0.0))

    def add(self, windows: Sequence[Sequence[int]], plain: Sequence[Tensor]) -> Generator[None, None, None]:
        """Add a batch of windows of equal length to what the unedited parent answers to them."""
        after = self.answers(windows, self.interventions)
        self.moved += [kl_divergence(p, q) for p, q in zip(after, plain, strict=True)]
        yield
        if not self.errors:
            return
        for done, right, kept in (
            ((), plain, self.unedited),
            (self.interventions, after, self.intervened),
        ):
            with _erring(self.errors):
                wrong = self.answers(windows, done)
            kept += [kl_divergence(p, q) for p, q in zip(right, wrong, strict=True)]
            yield

    def answers(
        self, windows: Sequence[Sequence[int]], interventions: tuple[Intervention, ...]
    ) -> list[Tensor]:
        """Run windows of equal length."""
        with computing_in(torch.float32, self.hosted.model) if self.wide else nullcontext():
            return windows_logits(self.hosted, windows, interventions)


def rounding_errors(hosted: HostedModel, changes: Sequence[TensorChange]) -> Errors:
    """Return by how much tensors are off once they are written and loaded, without those that are not.

    Only where files or runtime are of a narrow type. What is exact is what the edit makes of the tensor that
    the runtime holds: of wider files that is a rounded one. A tensor that is a copy of another's is as exact
    as that.
    """
    found: dict[tuple[nn.Module, str], Tensor] = {}
    own = hosted.model.dtype
    for change in changes:
        dtype, plain = DTYPES[change.dtype], replace(change, growth=None)
        if change.copied_from is not None or not {dtype, own} & set(NARROW):
            continue
        parent = None if change.entry is None else read_tensor(hosted.folder, change.entry)
        held = None if parent is None else parent.to(own).to(torch.float32)
        exact = carried_out(plain, held, torch.float32)
        error = carried_out(plain, parent, dtype).to(own).to(torch.float32) - exact
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
    """Add errors to parameters, and put the very same parameters back. Must not span a quantum.

    A narrow parameter becomes float32 meanwhile, for it holds no such error.
    """
    own: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for (module, name), error in errors.items():
            parameters: dict[str, Any] = module._parameters
            before = parameters.get(name)
            own.append((parameters, name, before))
            wrong = error if before is None else before.detach() + error
            parameters[name] = nn.Parameter(wrong, requires_grad=False)
        yield
    finally:
        for parameters, name, before in own:
            parameters[name] = before
