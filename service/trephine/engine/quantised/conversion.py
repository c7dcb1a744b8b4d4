"""From a checkpoint folder to one GGUF file, a tensor a quantum and never more than one in memory."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from transformers import AutoConfig

from trephine.domain.exports import GgufType
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.shards import TensorEntry, read_entries, read_tensor
from trephine.engine.models.staging import full_disk_refused
from trephine.engine.quantised.metadata import write_shape, write_tokenizer
from trephine.engine.weights.gguf_families import (
    Family,
    TensorNames,
    family_of,
    laid_out,
    restored,
    stored_type,
)

FOLDER = "gguf"
"""Inside an exported folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One tensor of the file."""

    entry: TensorEntry
    name: str
    """GGUF's."""
    kind: GGMLQuantizationType


class _Written(np.ndarray[Any, np.dtype[Any]]):
    """Values that the file itself writes.

    Of a full disk numpy's own writer says neither which error it was nor, of the last few kilobytes,
    that there was one.
    """

    def tofile(self, fid: Any, /, sep: str = "", format: str = "%s") -> None:
        """Write the bytes; the arguments are numpy's.

        Raises:
            OSError: With its number.
        """
        fid.write(self.data.cast("B"))


class Layout:
    """How the tensors of a folder lie in a GGUF file."""

    def __init__(self, hosted: HostedModel, folder: Path, kind: GgufType) -> None:
        """Read the folder's config and its tensors' headers.

        Raises:
            UnsupportedOptionError: If the architecture is not converted here.
        """
        self.folder = folder
        self.config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        self.family: Family = family_of(hosted.info.architecture, self.config)
        names = TensorNames(self.family, self.config.num_hidden_layers, hosted.model.base_model_prefix)
        # A config may say tied where files hold two matrices that differ: loaders then take both.
        tied = self.config.tie_word_embeddings and hosted.info.tied_embeddings
        self.tensors = tuple(self._stored(read_entries(folder), names, kind, tied=tied))

    def _stored(
        self, entries: dict[str, TensorEntry], names: TensorNames, kind: GgufType, *, tied: bool
    ) -> Iterator[Stored]:
        for entry in entries.values():
            name = names(entry.name)
            if name is None or (name == "output.weight" and tied):
                continue
            yield Stored(entry=entry, name=name, kind=stored_type(name, entry.shape, kind))

    def quantised(self, tensor: Stored) -> NDArray[Any]:
        """Read a tensor and quantise it, in the file's bytes."""
        values = laid_out(self._read(tensor), tensor.name, self.family, self.config)
        packed: NDArray[Any] = gguf.quantize(values, tensor.kind)
        return packed

    def rounded(self, tensor: Stored) -> torch.Tensor:
        """Return what a reader of the file gets, float32, as Hugging Face lays it out."""
        values = gguf.dequantize(self.quantised(tensor), tensor.kind).reshape(tensor.entry.shape)
        back = restored(values, tensor.name, self.family, self.config)
        return torch.from_numpy(np.array(back))

    def _read(self, tensor: Stored) -> NDArray[Any]:
        values: NDArray[Any] = read_tensor(self.folder, tensor.entry).to(torch.float32).numpy()
        return values


def convert(
    hosted: HostedModel, folder: Path, kind: GgufType, target: Path, title: str
) -> Generator[str, None, None]:
    """Write a folder as one GGUF file; yields the name of every tensor that was written.

    Args:
        hosted: The loaded parent, whose tokenizer the folder shares.
        folder: The checkpoint.
        kind: How its matrices are quantised.
        target: The file, which must not exist.
        title: `general.name`.

    Raises:
        UnsupportedOptionError: If architecture or tokenizer are not converted here.
        DiskFullError: If there is no room.
    """
    layout = Layout(hosted, folder, kind)
    writer = gguf.GGUFWriter(None, layout.family.arch)
    write_shape(writer, layout.config, kind, title)
    write_tokenizer(writer, hosted.tokenizer, layout.config.vocab_size)
    for tensor in layout.tensors:
        writer.add_tensor_info(
            tensor.name, tensor.entry.shape, np.dtype(np.float32), _bytes(tensor), raw_dtype=tensor.kind
        )
    try:
        with full_disk_refused():
            writer.write_header_to_file(target)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        for tensor in layout.tensors:
            with full_disk_refused():
                writer.write_tensor_data(np.ascontiguousarray(layout.quantised(tensor)).view(_Written))
            yield tensor.name
        with full_disk_refused():
            writer.close()
    finally:
        with suppress(OSError):  # what found no room above finds none here either
            writer.close()


def require_convertible(hosted: HostedModel) -> None:
    """Refuse before any work what cannot be written as a GGUF file that stock transformers reads back.

    Raises:
        UnsupportedOptionError: With the reason.
    """
    config: Any = hosted.model.config
    writer = gguf.GGUFWriter(None, family_of(hosted.info.architecture, config).arch)
    write_tokenizer(writer, hosted.tokenizer, config.vocab_size)


def gguf_bytes(hosted: HostedModel, kinds: tuple[GgufType, ...], added: int = 0) -> int:
    """Bound the size of the files of an export that has `added` more parameters than its parent."""
    weights = list(hosted.model.parameters())
    widest = {
        kind: max(_bits(weight.shape, kind) for weight in weights if weight.dim() > 1) for kind in kinds
    }
    return sum(
        (sum(_bits(weight.shape, kind) * weight.numel() for weight in weights) + widest[kind] * added) // 8
        for kind in kinds
    )


def _bits(shape: Sequence[int], kind: GgufType) -> int:
    """Bound what a weight takes; embeddings take eight bits in every file, and scales are counted."""
    stored = stored_type("", tuple(shape), kind)
    if stored in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return 8 * gguf.GGML_QUANT_SIZES[stored][1]
    return 9 if kind == "q8_0" else 8


def _bytes(tensor: Stored) -> int:
    block, size = gguf.GGML_QUANT_SIZES[tensor.kind]
    return int(np.prod(tensor.entry.shape)) // block * size


def title_of(folder: Path, edit: str) -> str:
    """Name a file after the parent and its edit."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return f"{config.get('_model_name_or_path') or config['model_type']}, edited: {edit}"
