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
compiler's rule, written down here once more, as is the next."""
FADING = 0.5
"""Steps of a narrow type (its eps) that a factor is from 1 below which it is rounded so."""
_BLOCK_ELEMENTS = 1 << 20
_BLOCKS = 64
"""A tensor is looked at in at least so many blocks of rows: in float64 it is many times its size."""
_ORDER = 1e-13
"""Of two float64 sums of the same summands in another order, their difference over the summands."""


def compare_weights(request: dict[str, Any]) -> dict[str, float]:
    """Compare every tensor of the exported folder with the parent's, bit for bit.

    One tensor of each is in memory, and blocks of rows of what is computed.
    """
    planned = {change["tensor"]: change for change in request["changes"]}
    exported, parents = (dict(tensors(Path(request[name]))) for name in ("exported", "parent"))
    counts = {"outside": 0, "unchanged": 0, "off_plan": 0, "nonfinite": 0, "untouched": 0}
    for name, read_parent in parents.items():
        if name in exported:
            compare_tensor(request, read_parent, exported[name], planned.get(name), counts)
        else:
            counts["outside"] += 1
    for name in sorted(exported.keys() - parents.keys()):
        change = planned.get(name)
        if change is None or not change.get("new"):
            counts["outside"] += 1
            continue
        compare_new(request, parents, exported[name], change, counts)
    counts["outside"] += sum(name not in exported for name in planned)
    return {
        "tensors_changed_outside_plan": float(counts["outside"]),
        "planned_tensors_unchanged": float(counts["unchanged"]),
        "elements_off_plan": float(counts["off_plan"]),
        "nonfinite_values": float(counts["nonfinite"]),
        "untouched_tensors_verified": float(counts["untouched"]),
    }


def compare_tensor(
    request: dict[str, Any],
    read_parent: Callable[[], Any],
    read_exported: Callable[[], Any],
    change: dict[str, Any] | None,
    counts: dict[str, int],
) -> None:
    """Count what is wrong with a tensor that the parent has; both are let go of with this call."""
    before, after = read_parent(), read_exported()
    same = same_bits(before, after)
    if change is not None:
        counts["unchanged"] += same
        counts["off_plan"] += off_plan(before, after, change, planned_factors(request, change["tensor"]))
    else:
        counts["outside"] += not same
        counts["untouched"] += same
    if after.is_floating_point():
        counts["nonfinite"] += nonfinite(after)


def compare_new(
    request: dict[str, Any],
    parents: dict[str, Callable[[], Any]],
    read_exported: Callable[[], Any],
    change: dict[str, Any],
    counts: dict[str, int],
) -> None:
    """Count what is wrong with a planned tensor that the parent has not."""
    after, copied = read_exported(), change["copied_from"]
    source = None if copied is None else parents[copied]()
    counts["off_plan"] += off_plan_new(after, change, planned_factors(request, change["tensor"]), source)
    counts["nonfinite"] += nonfinite(after)


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


def nonfinite(tensor: Any) -> int:
    """Count values that are not finite, a block at a time."""
    import torch

    flat = tensor.reshape(-1)
    step = max(1, min(_BLOCK_ELEMENTS, flat.numel() // _BLOCKS))
    return sum(int((~torch.isfinite(part)).sum()) for part in flat.split(step))


def planned_factors(request: dict[str, Any], name: str) -> dict[str, Any]:
    """Read the tensors that the planned change of one tensor is made of, by `part:name`."""
    from safetensors import safe_open

    path = Path(request["evidence"]) / "changes.safetensors" if "evidence" in request else None
    if path is None or not path.is_file():
        return {}
    with safe_open(str(path), framework="pt") as file:
        names = [key for key in list(file.keys()) if key.partition(":")[2] == name]
        return {key: file.get_tensor(key) for key in names}


def off_plan(before: Any, after: Any, change: dict[str, Any], factors: dict[str, Any] | None = None) -> int:
    """Count elements that are not what the plan makes of the parent's.

    Scaled slices are computed in float32 and rounded once, and must agree bit for bit. What something is
    added to is a sum in float64, and must be rounded to the nearest value of the type; halfway between two
    of them either is, for the order of the sum decides. Only where the compiler says that it drew (`drawn`),
    and nearest rounding would lose the change indeed, may an element be either neighbour of its value.
    Appended slices must be the planned ones bit for bit, and all others zero.
    """
    parts, name = factors or {}, change.get("tensor")
    if before.dtype != after.dtype:
        return int(before.numel())
    if change.get("growth") is not None:
        return off_growth(before, after, change, parts)
    if before.shape != after.shape:
        return int(before.numel())
    if change.get("gain", 1.0) != 1.0 or f"left:{name}" in parts or f"added:{name}" in parts:
        return off_sum(before, after, change, parts)
    return off_scaled(before, after, change)


def off_scaled(before: Any, after: Any, change: dict[str, Any]) -> int:
    """Count elements of scaled slices, and of the others, that have not the planned bits."""
    off, axis = 0, change["axis"]
    for start, stop in blocks(before):
        kept, found, factors = before[start:stop], after[start:stop], factors_within(change, start, stop)
        wrong = other_bits(scaled(kept, axis, factors, before.dtype), found)
        for index, factor in factors:
            if change.get("drawn") and fades(factor, before.dtype):
                exact = kept.select(axis, index).double() * factor
                wrong.select(axis, index).copy_(beyond_neighbours(exact, found.select(axis, index)))
        off += int(wrong.sum())
    return off


def other_bits(wanted: Any, found: Any) -> Any:
    """Return which elements differ in a bit; -0.0 is not 0.0."""
    import torch

    width = wanted.element_size()
    bits = (t.contiguous().reshape(-1).view(torch.uint8).reshape(-1, width) for t in (wanted, found))
    ours, theirs = bits
    return (ours != theirs).any(-1).reshape(wanted.shape)


def factors_within(change: dict[str, Any], start: int, stop: int) -> list[tuple[int, float]]:
    """Return index and factor of the slices that a block of rows has a part of."""
    if change["axis"] == 0:
        return [(index - start, factor) for index, factor in change["factors"] if start <= index < stop]
    return list(change["factors"])


def scaled(rows: Any, axis: int, factors: list[tuple[int, float]], dtype: Any) -> Any:
    """Scale slices in float32 or wider, round once to a dtype."""
    import torch

    expected = rows.to(dtype, copy=True)
    for index, factor in factors:
        slot = expected.select(axis, index)
        wide = slot.to(torch.promote_types(dtype, torch.float32))
        slot.copy_((wide * factor if factor else torch.zeros_like(wide)).to(dtype))
    return expected


def off_sum(before: Any, after: Any, change: dict[str, Any], parts: dict[str, Any]) -> int:
    """Count elements that are not the sum in float64, rounded once; a block of rows at a time."""
    drawn, off = may_be_drawn(before, change, parts), 0
    for start, stop in blocks(before):
        kept, added = summands(before, change, parts, start, stop)
        exact, found = kept if added is None else kept + added, after[start:stop]
        if drawn:
            wrong = beyond_neighbours(exact, found)
        else:
            wrong = beyond_nearest(exact, found, kept.abs() if added is None else kept.abs() + added.abs())
        off += int(wrong.sum())
    return off


def may_be_drawn(before: Any, change: dict[str, Any], parts: dict[str, Any]) -> bool:
    """Say whether a sum may be rounded stochastically: it is said to be, and to nearest it would be lost."""
    if not change.get("drawn"):
        return False
    gain = change["gain"]
    if fades(gain, before.dtype) or any(fades(f * gain, before.dtype) for _, f in change["factors"]):
        return True
    there = moved = 0.0
    for start, stop in blocks(before):
        kept, added = summands(before, change, parts, start, stop)
        there += float(kept.square().sum())
        moved += 0.0 if added is None else float(added.square().sum())
    return is_narrow(before.dtype) and 0 < moved < VANISHING**2 * there * (1 + 1e-9)


def is_narrow(dtype: Any) -> bool:
    """Say whether rounding to a type can be seen in what a model answers."""
    import torch

    return dtype in (torch.bfloat16, torch.float16)


def fades(factor: float, dtype: Any) -> bool:
    """Say whether nearest rounding would lose elements of what a factor changes."""
    import torch

    return is_narrow(dtype) and 0 < abs(factor - 1.0) < FADING * torch.finfo(dtype).eps


def summands(
    before: Any, change: dict[str, Any], parts: dict[str, Any], start: int, stop: int
) -> tuple[Any, Any]:
    """Return rows of the scaled parent and of what is added to them, float64; None: nothing is."""
    import torch

    name, factors = change["tensor"], factors_within(change, start, stop)
    kept = scaled(before[start:stop], change["axis"], factors, torch.float64) * change["gain"]
    added = None
    if f"left:{name}" in parts:
        added = parts[f"left:{name}"][start:stop] @ parts[f"right:{name}"]
    if f"added:{name}" in parts:
        more = parts[f"added:{name}"][start:stop]
        added = more if added is None else added + more
    return kept, added


def blocks(tensor: Any) -> Iterator[tuple[int, int]]:
    """Yield the first row of every block and the one behind its last."""
    rows = tensor.shape[0]
    step = max(1, min(rows // _BLOCKS, _BLOCK_ELEMENTS // max(1, tensor.numel() // max(1, rows))))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def beyond_nearest(exact: Any, after: Any, size: Any) -> Any:
    """Return which elements are further from their float64 values than the nearest of their own type.

    Halfway between two either may be: sums of float64 in another order differ, in units of the summands'
    `size`, by their own rounding.
    """
    nearest = (exact - exact.to(after.dtype).double()).abs()
    return ~((exact - after.double()).abs() <= nearest + _ORDER * size)


def beyond_neighbours(exact: Any, after: Any) -> Any:
    """Return which elements are neither of the two of their type on both sides of their float64 values."""
    import torch

    error = exact - after.double()
    toward = torch.where(error > 0, torch.inf, -torch.inf).to(after.dtype)
    step = (torch.nextafter(after, toward).double() - after.double()).abs()
    return (error != 0) & ~(error.abs() < step)


def off_growth(before: Any, after: Any, change: dict[str, Any], parts: dict[str, Any]) -> int:
    """Compare the parent's part and the appended one apart."""
    import torch

    axis, count = change["growth"]["axis"], change["growth"]["count"]
    size = before.shape[axis]
    wanted = [n + count if place == axis else n for place, n in enumerate(before.shape)]
    if list(after.shape) != wanted:
        return int(before.numel())
    kept, appended = after.split([size, count], dim=axis)
    off = off_plan(before, kept, change | {"growth": None}, parts)
    values = parts.get(f"growth:{change['tensor']}")
    for start, stop in blocks(appended):
        found = appended[start:stop]
        expected = torch.zeros_like(found)
        if values is not None and axis == 0:
            rows = values[start:stop]
            expected[: rows.shape[0]] = rows.to(after.dtype)
        elif values is not None:
            expected[:, : values.shape[0]] = values[:, start:stop].T.to(after.dtype)
        off += int((expected != found).sum())
    return off


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
