"""Looking at a model folder before a single weight is read: whole, safe, and of a kind that is verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from trephine.domain.errors import (
    BrokenCheckpointError,
    UnsafeCheckpointError,
    UnsupportedArchitectureError,
)
from trephine.engine.models.architecture import VERIFIED

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def check_checkpoint(folder: Path) -> tuple[Path, ...]:
    """Check a Hugging Face folder; return its safetensors files.

    Raises:
        BrokenCheckpointError: If config, tokenizer, a shard or a tensor is missing or cut short, or if it is
            an adapter's folder.
        UnsafeCheckpointError: If the weights are pickles, which are never opened.
        UnsupportedArchitectureError: If the architecture is not verified, or the weights are quantised.
    """
    _refuse_adapter(folder)
    config = read_json(folder / "config.json")
    _check_architecture(config)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise BrokenCheckpointError("the folder has no tokenizer.json; copy the tokenizer's files into it")
    return _weight_files(folder)


def _refuse_adapter(folder: Path) -> None:
    """Say of an adapter in place of a model what it belongs to, and of one beside a model what it does.

    transformers asks for an adapter first: it would load the model that the adapter names, wherever that
    lies, and lay the adapter into it, whatever weights this folder holds.
    """
    config = folder / "adapter_config.json"
    if not config.is_file():
        return
    base = read_json(config).get("base_model_name_or_path") or "its base model"
    if not (folder / "config.json").is_file():
        raise BrokenCheckpointError(
            f"the folder holds an adapter of {base} and no model: load that model, and name this folder as "
            "its adapter",
            file=config.name,
        )
    raise BrokenCheckpointError(
        f"the folder holds a model and beside it an adapter of {base}, which transformers would load in its "
        f"place: move {config.name} and the adapter's weights into a folder of their own, and name that as "
        "the adapter if it is wanted",
        file=config.name,
    )


def check_adapter(folder: Path) -> None:
    """Check a PEFT adapter folder.

    Raises:
        BrokenCheckpointError: If its config or weights are missing or cut short.
        UnsafeCheckpointError: If its weights are a pickle.
    """
    read_json(folder / "adapter_config.json")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        _refuse_pickles(folder)
        raise BrokenCheckpointError("the adapter folder has no adapter_model.safetensors")
    _names(weights)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BrokenCheckpointError: If the file is missing or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenCheckpointError(
            f"the folder has no {path.name}; it is no Hugging Face model folder", file=path.name
        ) from None
    except (OSError, ValueError) as error:
        raise BrokenCheckpointError(f"{path.name} cannot be read: {error}", file=path.name) from error
    if not isinstance(value, dict):
        raise BrokenCheckpointError(f"{path.name} holds no JSON object", file=path.name)
    return value


def _check_architecture(config: dict[str, Any]) -> None:
    names = config.get("architectures") or ["(none named)"]
    if names[0] not in VERIFIED:
        raise UnsupportedArchitectureError(
            f"{names[0]} is not supported: its attribution and export are not verified here. "
            f"Supported: {', '.join(sorted(VERIFIED))}",
            architecture=str(names[0]),
        )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedArchitectureError(
            f"{names[0]} is stored quantised ({method}); use the checkpoint in float32 or bfloat16",
            architecture=str(names[0]),
            quantisation=str(method),
        )


def _weight_files(folder: Path) -> tuple[Path, ...]:
    if (folder / _INDEX).is_file():
        return _shards(folder)
    if (folder / _SINGLE).is_file():
        _names(folder / _SINGLE)
        return (folder / _SINGLE,)
    _refuse_pickles(folder)
    raise BrokenCheckpointError(f"the folder has neither {_SINGLE} nor {_INDEX}", file=_SINGLE)


def _shards(folder: Path) -> tuple[Path, ...]:
    """Check that every shard of the index exists and holds the tensors that the index says."""
    where = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise BrokenCheckpointError(f"{_INDEX} has no weight_map", file=_INDEX)
    shards = sorted({str(name) for name in where.values()})
    for number, name in enumerate(shards, start=1):
        if Path(name).name != name:
            raise BrokenCheckpointError(f"{_INDEX} names {name!r}, not a file of this folder", file=name)
        if not (folder / name).is_file():
            raise BrokenCheckpointError(
                f"shard {name} ({number} of {len(shards)}) is missing; download the folder again", file=name
            )
        present = _names(folder / name)
        absent = [tensor for tensor, shard in where.items() if shard == name and tensor not in present]
        if absent:
            raise BrokenCheckpointError(f"shard {name} lacks {absent[0]}", file=name, tensor=absent[0])
    return tuple(folder / name for name in shards)


def _names(path: Path) -> frozenset[str]:
    """Read a file's header, which also checks that the file is as long as the header says."""
    try:
        with safe_open(path, framework="pt") as file:
            return frozenset(file.keys())
    except (SafetensorError, OSError) as error:
        raise BrokenCheckpointError(
            f"{path.name} is cut short or no safetensors file ({error}); download it again", file=path.name
        ) from error


def _refuse_pickles(folder: Path) -> None:
    found = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if found:
        raise UnsafeCheckpointError(
            f"the weights are pickles ({', '.join(found[:3])}), which can run code and are never opened; "
            "convert the checkpoint to safetensors",
            file=found[0],
        )
