"""Fixtures that other libraries wrote, and how far this project's readers are from what those computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.builders import tiny_hosted
from trephine.domain.replacements import SetFormat
from trephine.domain.sites import Site
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.formats.opening import open_set
from trephine.engine.replacements.layer import ReadSet

ROOT: Final = Path(__file__).parent / "fixtures" / "replacements"
EXPECTED: Final = "expected.safetensors"
N_LAYERS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixture:
    """A folder that another library wrote, with what it computed."""

    format: SetFormat
    name: str

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return ROOT / self.format.value / self.name

    @property
    def expected(self) -> Mapping[str, Tensor]:
        """`x`, `features`, `decoded`, `forward`, `target`, `error`; first axis the layers of a whole set."""
        expected: dict[str, Tensor] = load_file(self.folder / EXPECTED)
        return expected

    def open(self) -> ReadSet:
        """Open it beside the model that fixtures are made for."""
        return open_set(
            self.folder, SetFormat.AUTO, architecture=fixture_host().architecture, allow_unverified=True
        )


def fixtures() -> list[Fixture]:
    """List all fixtures."""
    formats = [format for format in SetFormat if (ROOT / format.value).is_dir()]
    return [
        Fixture(format=format, name=path.name)
        for format in formats
        for path in sorted((ROOT / format.value).iterdir())
    ]


@cache
def fixture_host() -> HostedModel:
    """Host the tiny Llama whose widths the fixtures have."""
    return tiny_hosted("llama", n_layers=N_LAYERS, d_model=16)


@torch.inference_mode()
def computed(fixture: Fixture) -> dict[str, Tensor]:
    """Compute with this project's layers what the fixture expects, from the same inputs."""
    expected = fixture.expected
    stacked = expected["x"].ndim == 3
    x, target = (expected[name] if stacked else expected[name][None] for name in ("x", "target"))
    layers = [reader.read() for reader in fixture.open().layers]
    codes = [layer.encode(each) for layer, each in zip(layers, x, strict=True)]
    decoded, forward = torch.zeros_like(target), torch.zeros_like(target)
    first = layers[0].info.layer
    for layer, each, code in zip(layers, x, codes, strict=True):
        _add(decoded, layer.decode(code), first)
        _add(forward, layer.reconstruct(each), first)
    found = {
        "features": torch.stack([code.activations for code in codes]),
        "decoded": decoded,
        "forward": forward,
        "error": target - forward,
    }
    return found if stacked else {name: tensor[0] for name, tensor in found.items()}


def differences(fixture: Fixture) -> dict[str, float]:
    """Return the largest difference per expected tensor, relative to its largest value (at least 1)."""
    expected = fixture.expected
    return {
        name: float((tensor - expected[name]).abs().max() / expected[name].abs().max().clamp_min(1.0))
        for name, tensor in computed(fixture).items()
    }


def _add(total: Tensor, written: Mapping[Site, Tensor], first: int) -> None:
    for site, values in written.items():
        total[site.layer - first] += values


def copied(tmp_path: Path, format: SetFormat, name: str) -> Path:
    """Copy a fixture to change it, without its expected values."""
    folder = tmp_path / name
    shutil.copytree(ROOT / format.value / name, folder)
    (folder / EXPECTED).unlink()
    return folder


def opened(folder: Path, *, allow_unverified: bool = False) -> ReadSet:
    """Open a folder beside the fixtures' model."""
    return open_set(
        folder,
        SetFormat.AUTO,
        architecture=fixture_host().architecture,
        allow_unverified=allow_unverified,
    )


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a configuration in place."""
    yaml_ = path.suffix == ".yaml"
    config = yaml.safe_load(path.read_text()) if yaml_ else json.loads(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config) if yaml_ else json.dumps(config))


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change a weights file in place."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
