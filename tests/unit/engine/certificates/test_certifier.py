"""The certifier is a program of its own that can do without Trephine, and must."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trephine.engine.certificates import certifier
from trephine.engine.certificates.certification import SCRIPT
from trephine.engine.weights.tensors import stochastic

SUM = {"tensor": "w", "axis": 0, "factors": [], "gain": 1.0, "drawn": False}
"""A change that adds something to a tensor, rounded to nearest."""


def test_it_imports_nothing_of_trephine():
    """It shares no code with the compiler that it checks."""
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.startswith("trephine")]


def test_the_blocker_makes_trephine_unimportable():
    """In an isolated interpreter that could import it otherwise."""
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('certifier', {str(SCRIPT)!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "import trephine.domain; del sys.modules['trephine.domain'], sys.modules['trephine']\n"
        "sys.meta_path.insert(0, module.Blocker())\n"
        "try:\n    import trephine.domain\n"
        "except ImportError as error:\n    sys.exit(0 if 'blocked' in str(error) else 1)\n"
        "sys.exit(2)\n"
    )
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0


def test_it_ends_when_its_starter_ends(tmp_path):
    """Its standard input closes with the process that holds the other end."""
    fifo = tmp_path / "request"
    os.mkfifo(fifo)  # reading a pipe without a writer blocks, as a long measurement would
    process = subprocess.Popen([sys.executable, "-I", str(SCRIPT), str(fifo)], stdin=subprocess.PIPE)
    assert process.stdin is not None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.stdin.close()
    assert process.wait(timeout=60) == 70


def test_bits_are_compared_not_values():
    """Minus zero is another weight, NaN equals itself, a type or shape is part of a tensor."""
    zero = torch.zeros(3)
    nan = torch.full((3,), float("nan"))
    assert certifier.same_bits(zero, zero.clone())
    assert certifier.same_bits(nan, nan.clone())
    assert not certifier.same_bits(zero, -zero)
    assert not certifier.same_bits(zero, zero.half())
    assert not certifier.same_bits(zero, zero[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("axis", [0, 1])
def test_elements_off_the_plan_are_counted(dtype, axis):
    """The planned product, rounded once, has none; each other element counts once."""
    before = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    change = {"axis": axis, "factors": [[1, 0.0], [3, 0.37]]}
    after = before.clone()
    after.select(axis, 1).zero_()
    after.select(axis, 3).copy_((before.select(axis, 3).float() * 0.37).to(dtype))
    assert certifier.off_plan(before, after, change) == 0
    after[0, 0] += 1
    after[4, 4] += 1
    assert certifier.off_plan(before, after, change) == 2
    assert certifier.off_plan(before, before, change) == (5 if axis == 0 else 6) * 2


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_that_are_rounded_stochastically_may_be_off_by_one_step(axis):
    """Either neighbour of the planned value is planned, a step further is not; others keep their bits."""
    before = (1.5 + torch.rand(6, 5, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)
    change = {"axis": axis, "factors": [[1, 0.999], [3, 0.37]], "drawn": True}
    after = before.clone()
    after.select(axis, 3).copy_((before.select(axis, 3).float() * 0.37).to(torch.bfloat16))
    lower = torch.nextafter(before, torch.zeros_like(before)).select(axis, 1)
    assert certifier.off_plan(before, after, change) == 0
    after.select(axis, 1)[2:] = lower[2:]
    assert certifier.off_plan(before, after, change) == 0
    assert certifier.off_plan(before, after, change | {"drawn": False}) > 0
    after.select(axis, 1)[0] = torch.nextafter(lower, torch.zeros_like(lower))[0]
    after.select(axis, 3)[0] = torch.nextafter(after, torch.zeros_like(after)).select(axis, 3)[0]
    assert certifier.off_plan(before, after, change) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_sum_is_rounded_to_the_nearest_value(dtype):
    """A neighbour that is not the nearest is off the plan, in every block of rows."""
    draws = torch.Generator().manual_seed(0)
    before = torch.randn(3000, 400, generator=draws).to(dtype)  # two blocks of rows
    left = torch.randn(3000, 1, generator=draws, dtype=torch.float64)
    right = torch.randn(1, 400, generator=draws, dtype=torch.float64)
    change = SUM | {"factors": [[1, 0.5], [2999, -2.0]]}
    parts = {"left:w": left, "right:w": right}
    exact = before.double()
    exact[1] *= 0.5
    exact[2999] *= -2.0
    exact += left @ right
    nearest = exact.to(dtype)
    assert certifier.off_plan(before, nearest, change, parts) == 0
    beyond = torch.where(exact > nearest.double(), torch.inf, -torch.inf).to(dtype)
    wrong = torch.nextafter(nearest, beyond)  # the value's other neighbour
    assert certifier.off_plan(before, wrong, change, parts) > 0.999 * wrong.numel()  # ties go either way
    said = change | {"drawn": True}  # nearest rounding loses nothing here, so that nothing can be drawn
    assert certifier.off_plan(before, wrong, said, parts) > 0.999 * wrong.numel()


def test_a_sum_that_nearest_rounding_would_lose_may_be_either_neighbour():
    """Where the compiler says that it drew; what is no neighbour is off the plan all the same."""
    before = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    added = torch.full((64, 32), 1e-5, dtype=torch.float64)
    added[:, 0] = 0.0
    exact, parts, change = before.double() + added, {"added:w": added}, SUM | {"drawn": True}
    after = stochastic(exact, torch.bfloat16, torch.Generator().manual_seed(0))
    moved = int((after != before).sum())
    assert moved > 0
    assert certifier.off_plan(before, after, change, parts) == 0
    assert certifier.off_plan(before, after, SUM, parts) == int((after != exact.to(torch.bfloat16)).sum()) > 0
    after[0, 1] += 1
    assert certifier.off_plan(before, after, change, parts) == 1
    after[:, 0] = torch.nextafter(before, torch.zeros_like(before))[:, 0]  # its values have no neighbours
    assert certifier.off_plan(before, after, change, parts) == 65
    wide = exact.float()
    assert certifier.off_plan(before.float(), wide, change, parts) == 0
    wide = torch.nextafter(wide, torch.full_like(wide, torch.inf))
    assert certifier.off_plan(before.float(), wide, change, parts) > 0.99 * wide.numel()  # nor are they drawn


def test_sums_that_nearly_cancel_are_nobodys_fault():
    """What is left of them is the rounding of float64 in one order or another."""
    draws = torch.Generator().manual_seed(0)
    before = torch.randn(64, 1, generator=draws) @ torch.randn(1, 32, generator=draws)
    unit = torch.linalg.svd(before.double())[0][:, :1]
    parts = {"left:w": -unit, "right:w": unit.T @ before.double()}
    after = (before.double() - unit @ (unit.T @ before.double())).float()
    reordered = (before.double() + (-unit @ unit.T) @ before.double()).float()
    assert not after.equal(reordered)
    assert certifier.off_plan(before, after, SUM, parts) == 0
    assert certifier.off_plan(before, reordered, SUM, parts) == 0
    assert certifier.off_plan(before, before, SUM, parts) == before.numel()


def test_weights_are_compared_over_all_shards(tmp_path):
    """A changed, a missing and an additional tensor outside the plan all count."""
    from safetensors.torch import save_file

    def folder(name: str, *shards: dict[str, torch.Tensor]) -> str:
        path = tmp_path / name
        path.mkdir()
        index = {}
        for number, shard in enumerate(shards):
            save_file({k: t.clone() for k, t in shard.items()}, path / f"part-{number}.safetensors")
            index |= dict.fromkeys(shard, f"part-{number}.safetensors")
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        return str(path)

    w, v = torch.ones(2, 3), torch.full((2,), 5.0)
    edited = w.clone()
    edited[:, 2] = 0
    parent = folder("parent", {"w": w, "same": v}, {"changed": v, "gone": v})
    good = folder("good", {"w": edited, "same": v}, {"changed": v, "gone": v})
    bad = folder("bad", {"w": w, "same": v}, {"changed": -v, "new": v, "nan": v / 0 * 0})
    plan = [{"tensor": "w", "axis": 1, "factors": [[2, 0.0]]}]
    assert certifier.compare_weights({"exported": good, "parent": parent, "changes": plan}) == {
        "tensors_changed_outside_plan": 0.0,
        "planned_tensors_unchanged": 0.0,
        "elements_off_plan": 0.0,
        "nonfinite_values": 0.0,
        "untouched_tensors_verified": 3.0,
    }
    found = certifier.compare_weights({"exported": bad, "parent": parent, "changes": plan})
    assert found["tensors_changed_outside_plan"] == 4  # changed, gone, new, nan
    assert found["planned_tensors_unchanged"] == 1
    assert found["elements_off_plan"] == 2
    assert found["untouched_tensors_verified"] == 1


def test_a_mean_that_is_no_number_is_counted():
    """A model that answers NaN fails its gates by name."""
    measured = {"nonfinite_values": 0.0}
    certifier.spread(measured, "kl", [torch.tensor([0.0, float("nan"), 1.0])])
    assert measured["nonfinite_values"] == 1


def test_recovery_is_what_is_left_over_of_the_edit():
    """KL(intervened || exported) over KL(intervened || original); nothing is said where nothing moves."""
    p, q, nearly = (torch.tensor([row, row]) for row in ([4.0, 0.0], [0.0, 0.0], [3.5, 0.0]))
    lists = {"intervened": certifier.kl(p, nearly), "original": certifier.kl(q, nearly)}
    lists |= {"damage": certifier.kl(q, p), "edit": certifier.kl(p, q), "firing": torch.tensor([True, True])}
    lists |= {"top": torch.ones(2), "loss": torch.ones(1), "loss_intervened": torch.ones(1)}
    measured = {"nonfinite_values": 0.0}
    certifier.describe(measured, {name: [values, values] for name, values in lists.items()})
    wanted = 1.0 - float(certifier.kl(p, nearly)[0] / certifier.kl(p, q)[0])
    assert measured["recovery"] == pytest.approx(wanted)
    assert measured["recovery_firing"] == pytest.approx(wanted)
    assert measured["unrecovered"] == pytest.approx(1.0 - wanted)
    assert measured["edit_kl_mean"] != pytest.approx(measured["retain_kl_original_intervened_mean"])
    still = {"nonfinite_values": 0.0, "edit_kl_mean": 0.0, "kl_intervened_exported_mean": 0.0}
    certifier.recover(still, "recovery", "kl_intervened_exported", "edit_kl")
    assert "recovery" not in still


def test_the_script_is_shipped_beside_the_package():
    """It is started by path, so it must lie where the engine lies."""
    assert Path(certifier.__file__) == SCRIPT
