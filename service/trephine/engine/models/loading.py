"""Loading a model: check the folder, read the weights, merge an adapter, hash, host."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from trephine.domain.commands import Progress
from trephine.domain.errors import AlreadyExistsError, BrokenCheckpointError, InvalidRequestError
from trephine.domain.models import DescribeCapabilities, LoadModel, ModelInfo, ModelSource
from trephine.engine.models.beside_weights import digests_beside
from trephine.engine.models.capabilities import describe_capabilities
from trephine.engine.models.checkpoint import check_adapter, check_checkpoint
from trephine.engine.models.fingerprint import weight_hash
from trephine.engine.models.hosted import HostedModel, host
from trephine.engine.models.session import Handler, Session

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load_model(session: Session, command: LoadModel) -> Generator[Progress | None, None, ModelInfo]:
    """Load a model into an engine that has none.

    Raises:
        AlreadyExistsError: If the engine hosts a model already.
        TrephineError: See `load_hosted`.
    """
    if session.hosted is not None:
        raise AlreadyExistsError(f"this engine hosts {session.hosted.info.name} already; unload it first")
    hosted = yield from load_hosted(command.source)
    session.hosted = hosted
    return hosted.info


def load_hosted(source: ModelSource) -> Generator[Progress | None, None, HostedModel]:
    """Load a folder. Reading the weights is one long quantum: a fresh engine has nothing else to do.

    Raises:
        BrokenCheckpointError: If a part is missing or cut short.
        UnsafeCheckpointError: If weights are pickles.
        UnsupportedArchitectureError: If the model is not of a verified kind.
        InvalidRequestError: If the device does not exist.
    """
    folder, device = Path(source.folder), _device(source.device)
    yield Progress(stage="check", done=0, total=1)
    files = check_checkpoint(folder)
    if source.adapter is not None:
        check_adapter(Path(source.adapter))
    # Before anything is read: a file that changes meanwhile is then not the one that was loaded.
    beside = yield from digests_beside(folder)
    size = sum(path.stat().st_size for path in files)
    yield Progress(stage="read", done=0, total=len(files), detail=f"{size / 1e6:.0f} MB")
    with _quiet():
        tokenizer = _tokenizer(folder)
        model = _model(folder, _DTYPES[source.dtype]).to(device)
    yield Progress(stage="read", done=len(files), total=len(files))
    parent = yield from _hashed(model)
    digest = parent
    if source.adapter is not None:
        yield Progress(stage="merge", done=0, total=1)
        with _quiet():
            model = _merged(model, source.adapter)
        digest = yield from _hashed(model)
    return host(
        model,
        tokenizer,
        name=source.name,
        folder=folder,
        weight_hash=digest,
        parent_hash=parent,
        beside=beside,
    )


def _hashed(model: Any) -> Generator[Progress | None, None, str]:
    steps, total = weight_hash(model), len(model.state_dict())
    done = 0
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return str(stop.value)
        done += 1
        yield Progress(stage="hash", done=done, total=total) if done % 32 == 0 else None


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        why = str(error).splitlines()[0]
        raise InvalidRequestError(
            f"device {name!r} is not available here: {why}. Choose {_devices()}", field="device"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise InvalidRequestError(f"device {name!r} is not supported; choose {_devices()}", field="device")
    return device


def _devices() -> str:
    """Name the devices of this machine."""
    return " or ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])


def _tokenizer(folder: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, use_fast=True, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenCheckpointError(f"the tokenizer cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise BrokenCheckpointError("the folder has no tokenizer.json; save the tokenizer as a fast one")
    return tokenizer


def _model(folder: Path, dtype: torch.dtype) -> Any:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise BrokenCheckpointError(f"the model cannot be loaded: {error}") from error
    if missing := sorted(report["missing_keys"]):  # transformers would leave them random
        raise BrokenCheckpointError(
            f"the checkpoint lacks {len(missing)} tensors, {missing[0]} among them", tensor=missing[0]
        )
    return model


def _merged(model: Any, adapter: str) -> Any:
    from peft import PeftModel  # only loads that ask for an adapter need it

    try:
        return PeftModel.from_pretrained(model, adapter, is_trainable=False).merge_and_unload(safe_merge=True)
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise BrokenCheckpointError(f"the adapter cannot be merged: {error}", field="adapter") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' warnings and progress bars off stderr; leave its settings as they were."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


HANDLERS: dict[type, Handler] = {LoadModel: load_model, DescribeCapabilities: describe_capabilities}
