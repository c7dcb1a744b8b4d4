"""The certifier's look at weights: what was planned, carried out again from the parent's files, bit for bit.

Loaded by the certifier from beside it. Imports nothing of Trephine, and shares no code with the compiler.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

VANISHING = 3e-3
"""Size of what is added, over that of what is there, below which a narrow type is rounded stochastically: the
compiler's rule, written down here once more."""
_BLOCK_ELEMENTS = 1 << 20
_ORDER = 1e-12
"""Relative difference of two float64 sums of the same summands that is rounding's own."""


def compare_weights(request: dict[str, Any]) -> dict[str, float]:
    """Compare every tensor of the exported folder with the parent's, bit for bit."""
    import torch

    planned = {change["tensor"]: change for change in request["changes"]}
    factors = planned_factors(request)
    exported = dict(tensors(Path(request["exported"])))
    counts = {"outside": 0, "unchanged": 0, "off_plan": 0, "nonfinite": 0, "untouched": 0}
    names = set(exported)
    for name, read_parent in tensors(Path(request["parent"])):
        names.discard(name)
        if name not in exported:
            counts["outside"] += 1
            continue
        before, after = read_parent(), exported[name]()
        same = same_bits(before, after)
        if name in planned:
            counts["unchanged"] += same
            counts["off_plan"] += off_plan(before, after, planned[name], factors)
        else:
            counts["outside"] += not same
            counts["untouched"] += same
        if after.is_floating_point():
            counts["nonfinite"] += int((~torch.isfinite(after)).sum())
    parents = dict(tensors(Path(request["parent"])))
    for name in sorted(names):
        change = planned.get(name)
        if change is None or not change.get("new"):
            counts["outside"] += 1
            continue
        after, source = exported[name](), change["copied_from"]
        counts["off_plan"] += off_plan_new(after, change, factors, source and parents[source]())
        counts["nonfinite"] += int((~torch.isfinite(after)).sum())
    counts["outside"] += sum(name not in exported for name in planned)
    return {
        "tensors_changed_outside_plan": float(counts["outside"]),
        "planned_tensors_unchanged": float(counts["unchanged"]),
        "elements_off_plan": float(counts["off_plan"]),
        "nonfinite_values": float(counts["nonfinite"]),
        "untouched_tensors_verified": float(counts["untouched"]),
    }


def tensors(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield names and readers of the tensors that stock transformers loads from a folder."""
    from safetensors import safe_open

    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    files = (
        [single.name]
        if single.is_file()
        else sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    )
    for file in files:
        with safe_open(str(folder / file), framework="pt") as shard:
            names = list(shard.keys())
        for name in names:
            yield name, partial(_read, folder / file, name)


def _read(path: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as shard:
        return shard.get_tensor(name)


def same_bits(a: Any, b: Any) -> bool:
    """Compare two tensors bit for bit; -0.0 is not 0.0."""
    import torch

    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return bool(torch.equal(*flat))


def planned_factors(request: dict[str, Any]) -> dict[str, Any]:
    """Read the tensors that planned changes are made of, by `part:name`."""
    from safetensors.torch import load_file

    path = Path(request["evidence"]) / "changes.safetensors" if "evidence" in request else None
    return load_file(str(path)) if path is not None and path.is_file() else {}


def off_plan(before: Any, after: Any, change: dict[str, Any], factors: dict[str, Any] | None = None) -> int:
    """Count elements that are not what the plan makes of the parent's.

    Scaled slices are computed in float32 and rounded once, and must agree bit for bit. What something is
    added to is a sum in float64, and must be rounded to the nearest value of the type. Only where nearest
    rounding would lose the change (`drawn` slices, `fades`, a sum whose added part vanishes) may an element
    be either neighbour: those are rounded stochastically. Appended slices must be the planned ones bit for
    bit, and all others zero.
    """
    parts = factors or {}
    growth, name = change.get("growth"), change.get("tensor")
    if before.dtype != after.dtype:
        return int(before.numel())
    if growth is not None:
        return off_growth(before, after, change, parts)
    if before.shape != after.shape:
        return int(before.numel())
    if change.get("gain", 1.0) != 1.0 or f"left:{name}" in parts or f"added:{name}" in parts:
        return off_sum(before, after, change, parts)
    expected = scaled(before, change, before.dtype)
    width = expected.element_size()
    import torch

    bits = (t.contiguous().reshape(-1).view(torch.uint8).reshape(-1, width) for t in (expected, after))
    wanted, found = bits
    off = (wanted != found).any(-1).reshape(after.shape)
    exact = scaled(before, change, torch.float64) if change.get("drawn") else expected
    for index in change.get("drawn", ()):
        slices = (t.select(change["axis"], index) for t in (exact, after))
        off.select(change["axis"], index).copy_(beyond_a_step(*slices))
    return int(off.sum())


def scaled(before: Any, change: dict[str, Any], dtype: Any) -> Any:
    """Scale slices in float32 or wider, round once to a dtype."""
    import torch

    expected = before.to(dtype).clone()
    for index, factor in change["factors"]:
        slot = expected[index] if change["axis"] == 0 else expected[:, index]
        wide = slot.to(torch.promote_types(dtype, torch.float32))
        slot.copy_((wide * factor if factor else torch.zeros_like(wide)).to(dtype))
    return expected


def off_sum(before: Any, after: Any, change: dict[str, Any], parts: dict[str, Any]) -> int:
    """Count elements that are not the sum in float64, rounded once; a block of rows at a time."""
    beyond = beyond_a_step if may_be_drawn(before, change, parts) else beyond_nearest
    off = 0
    for start, stop in blocks(before):
        kept, added = summands(before, change, parts, start, stop)
        off += int(beyond(kept if added is None else kept + added, after[start:stop]).sum())
    return off


def may_be_drawn(before: Any, change: dict[str, Any], parts: dict[str, Any]) -> bool:
    """Say whether nearest rounding would lose part of what is added: only then is it stochastic."""
    import torch

    if before.dtype not in (torch.bfloat16, torch.float16):
        return False
    if change.get("drawn") or change.get("fades"):
        return True
    there = moved = 0.0
    for start, stop in blocks(before):
        kept, added = summands(before, change, parts, start, stop)
        there += float(kept.square().sum())
        moved += 0.0 if added is None else float(added.square().sum())
    return 0 < moved < VANISHING**2 * there


def summands(
    before: Any, change: dict[str, Any], parts: dict[str, Any], start: int, stop: int
) -> tuple[Any, Any]:
    """Return rows of the scaled parent and of what is added to them, float64; None: nothing is."""
    import torch

    name, factors = change["tensor"], change["factors"]
    if change["axis"] == 0:
        factors = [(index - start, factor) for index, factor in factors if start <= index < stop]
    kept = scaled(before[start:stop], change | {"factors": factors}, torch.float64) * change["gain"]
    added = None
    if f"left:{name}" in parts:
        added = parts[f"left:{name}"][start:stop] @ parts[f"right:{name}"]
    if f"added:{name}" in parts:
        more = parts[f"added:{name}"][start:stop]
        added = more if added is None else added + more
    return kept, added


def blocks(tensor: Any) -> Iterator[tuple[int, int]]:
    """Yield where blocks of about a million elements begin and end: an embedding in float64 is large."""
    rows = tensor.shape[0]
    step = max(1, _BLOCK_ELEMENTS // max(1, tensor.numel() // max(1, rows)))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def beyond_nearest(exact: Any, after: Any) -> Any:
    """Return which elements are further from their float64 values than the nearest of their own type.

    Ties may go either way, and sums of float64 in another order differ by their own rounding.
    """
    import torch

    if after.dtype == torch.float64:
        return beyond_a_step(exact, after)
    nearest = (exact - exact.to(after.dtype).double()).abs()
    return (exact - after.double()).abs() > nearest + _ORDER * exact.abs()


def beyond_a_step(exact: Any, after: Any) -> Any:
    """Return which elements are further from their float64 values than one step of their own type."""
    import torch

    error = exact - after.double()
    toward = torch.where(error > 0, torch.inf, -torch.inf).to(after.dtype)
    step = (torch.nextafter(after, toward).double() - after.double()).abs()
    return error.abs() > step


def off_growth(before: Any, after: Any, change: dict[str, Any], parts: dict[str, Any]) -> int:
    """Compare the parent's part and the appended one apart."""
    import torch

    axis, count = change["growth"]["axis"], change["growth"]["count"]
    size = before.shape[axis]
    wanted = [n + count if place == axis else n for place, n in enumerate(before.shape)]
    if list(after.shape) != wanted:
        return int(before.numel())
    kept, appended = after.split([size, count], dim=axis)
    expected = torch.zeros_like(appended)
    values = parts.get(f"growth:{change['tensor']}")
    if values is not None:
        rows = expected if axis == 0 else expected.T
        rows[: values.shape[0]] = values.to(after.dtype)
    off = off_plan(before, kept.contiguous(), change | {"growth": None}, parts)
    return off + int((expected != appended).sum())


def off_plan_new(after: Any, change: dict[str, Any], parts: dict[str, Any], source: Any) -> int:
    """Count elements of a new tensor that are not planned: a copy, or a bias of zeros and values."""
    import torch

    if change["fresh"] is None:
        return 0 if same_bits(source, after) else int(after.numel())
    expected = torch.zeros(change["fresh"]["size"], dtype=after.dtype)
    values = parts.get(f"fresh:{change['tensor']}")
    if values is not None:
        start = change["fresh"]["start"]
        expected[start : start + values.shape[0]] = values.to(after.dtype)
    if expected.shape != after.shape:
        return int(after.numel())
    return int((expected != after).sum())
