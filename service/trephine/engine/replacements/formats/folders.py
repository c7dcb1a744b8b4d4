"""What every format's reader needs: configurations, and layers that are read when asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml

from trephine.domain.errors import BrokenReplacementError
from trephine.domain.replacements import LayerKind, ReplacementLayerInfo, SetFormat, SupportRule
from trephine.domain.sites import Site
from trephine.engine.models.architecture import Architecture
from trephine.engine.models.sites import site_width
from trephine.engine.replacements.formats.tensors import TensorFile, content_hash
from trephine.engine.replacements.hooks import HookPoint
from trephine.engine.replacements.layer import LayerReader, ReplacementLayer
from trephine.engine.replacements.positions import EVERYTHING, TrainedTokens

Build = Callable[[ReplacementLayerInfo, torch.device | str], ReplacementLayer]
"""Reads the weights of a described layer onto a device."""


@dataclass(frozen=True, kw_only=True)
class FolderLayer:
    """A `LayerReader`. The hash is taken when the description is first asked for."""

    kind: LayerKind
    support: SupportRule
    point: HookPoint
    sites_out: tuple[Site, ...]
    d_in: int
    d_out: int
    d_sae: int
    normalisation: str
    has_skip: bool
    claimed_l0: float | None
    files: tuple[tuple[TensorFile, tuple[str, ...]], ...]
    """Files and the tensors in them that are the layer's."""
    config: Mapping[str, Any]
    build: Build
    unread_bytes: int = 0
    """Of these tensors, what the layer does not keep."""

    @property
    def pre_gain(self) -> bool:
        """True if the hook's name settles that the input lies before the norm's gain."""
        return self.point.pre_gain

    @cached_property
    def info(self) -> ReplacementLayerInfo:
        """Describe the layer; streams its files once for the hash."""
        return ReplacementLayerInfo(
            layer=self.point.site.layer,
            kind=self.kind,
            support=self.support,
            site_in=self.point.site,
            sites_out=self.sites_out,
            d_in=self.d_in,
            d_out=self.d_out,
            d_sae=self.d_sae,
            normalisation=self.normalisation,
            has_skip=self.has_skip,
            claimed_l0=self.claimed_l0,
            memory_bytes=self._stored_bytes() - self.unread_bytes,
            content_hash=content_hash(self.files, self.config),
        )

    def _stored_bytes(self) -> int:
        return sum(file.entries[name].size for file, names in self.files for name in names)

    def read(self, device: torch.device | str = "cpu") -> ReplacementLayer:
        """Read the weights.

        Raises:
            BrokenReplacementError: If a file cannot be read or holds NaN or infinity.
        """
        return self.build(self.info, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSet:
    """A `ReadSet`."""

    format: SetFormat
    layers: Sequence[LayerReader]
    prepends_bos: bool | None = None
    trained_on: TrainedTokens = EVERYTHING
    model_name: str | None = None
    ambiguous_input: bool = False


def gather(
    layers: Sequence[FolderLayer],
    *,
    format: SetFormat,
    prepends_bos: bool | None = None,
    trained_on: TrainedTokens = EVERYTHING,
    model_name: str | None = None,
) -> FolderSet:
    """Sort layers into a set.

    Raises:
        BrokenReplacementError: If two of them cover one layer.
    """
    ordered = sorted(layers, key=lambda layer: layer.point.site.layer)
    for first, second in pairwise(ordered):
        if first.point.site.layer == second.point.site.layer:
            raise BrokenReplacementError(
                f"two dictionaries of the folder read layer {first.point.site.layer} "
                f"({first.point.site.kind.value} and {second.point.site.kind.value}); keep one in the folder",
                layer=first.point.site.layer,
            )
    return FolderSet(
        format=format,
        layers=ordered,
        prepends_bos=prepends_bos,
        trained_on=trained_on,
        model_name=model_name,
        ambiguous_input=any(layer.point.ambiguous for layer in ordered),
    )


def check_width(
    architecture: Architecture, site: Site, width: int, *, file: str, tensor: str, model_name: str | None
) -> None:
    """Refuse a dictionary whose width is not the site's.

    Raises:
        BrokenReplacementError: Naming file, tensor, both widths and the model that it says it is for.
    """
    expected = site_width(architecture, site)
    if width != expected:
        made_for = f"; it says that it is for {model_name}" if model_name else ""
        raise BrokenReplacementError(
            f"{file}: tensor {tensor} is {width} wide, but {site.kind.value} of {architecture.name} is "
            f"{expected} wide{made_for}. Load the set made for this model",
            file=file,
            tensor=tensor,
            width=width,
            expected=expected,
        )


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML configuration.

    Raises:
        BrokenReplacementError: If it cannot be read or is no mapping.
    """
    label = f"{path.parent.name}/{path.name}"
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BrokenReplacementError(
            f"{label} is no readable configuration ({error}); fetch it again", file=label
        ) from error
    if not isinstance(found, dict):
        raise BrokenReplacementError(f"{label} is no mapping of settings; fetch it again", file=label)
    return found


def setting(config: Mapping[str, Any], name: str, kind: type[int] | type[str], file: str) -> Any:
    """Return a setting that must be there.

    Raises:
        BrokenReplacementError: If it is missing or of another type.
    """
    value = config.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BrokenReplacementError(
            f"{file} has {name} = {value!r} where a {kind.__name__} is needed; fetch it again",
            file=file,
            setting=name,
        )
    return value
