"""What features do on texts: inputs of many layers from one forward pass, codes layer by layer.

A layer is resident only while it is used, so that a set larger than memory can be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.errors import InvalidRequestError, LayerOutOfRangeError
from trephine.domain.feature_index import DENSE_FIRING
from trephine.domain.replacements import ReplacementLayerInfo, SupportRule
from trephine.domain.sites import NEURONS
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.layer import ReplacementLayer
from trephine.engine.replacements.sets import covered_layers, layer_info, opened, require_set
from trephine.engine.runs.rows import RowInput, run_rows

_CODE_FLOATS = 1 << 23
"""Activations of a layer that are held at a time, 32 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputs:
    """What the layers of a set read on some rows."""

    layers: tuple[ReplacementLayerInfo, ...]
    rows: tuple[dict[int, Tensor], ...]
    """Per row: layer -> `(n_pos, d_in)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCode:
    """What a layer's features do on one row."""

    row: int
    activations: Tensor
    """`(n_pos, d_sae)`, float32 or wider, 0 outside the support."""
    firing: Tensor
    """bool `(n_pos, d_sae)`, False at position 0."""


def chosen_layers(hosted: HostedModel, name: str, layers: Sequence[int]) -> tuple[ReplacementLayerInfo, ...]:
    """Describe the layers asked for, or all that the set covers, ascending.

    Raises:
        ReplacementNotFoundError: If there is no such set.
        LayerOutOfRangeError: If it does not cover one of them.
    """
    wanted = sorted(layers) or covered_layers(hosted, name)
    try:
        return tuple(layer_info(hosted, name, layer) for layer in wanted)
    except LayerOutOfRangeError as error:
        error.context.setdefault("field", "layers")
        raise


def first_tokens(hosted: HostedModel, name: str) -> tuple[int, ...]:
    """Return what stands in front of every context by the set's own policy: one token or none."""
    begins = "" if name == NEURONS else require_set(hosted, name).info.admission.begins_with
    return (hosted.resolve_target(begins),) if begins else ()


def require_positions(ids: Sequence[int], *, field: str) -> Sequence[int]:
    """Return token ids if there is a position beside the first.

    Raises:
        InvalidRequestError: If the text is one token long.
    """
    if len(ids) < 2:
        raise InvalidRequestError(
            "the text has one token, and position 0 is left out; write a longer text", field=field
        )
    return ids


def read_inputs(
    hosted: HostedModel, layers: tuple[ReplacementLayerInfo, ...], rows: Sequence[Sequence[int]]
) -> LayerInputs:
    """Run rows once and keep what each layer reads."""
    sites = list(dict.fromkeys(layer.site_in for layer in layers))
    values = run_rows(hosted, [RowInput(ids) for ids in rows], reads=sites, keep_last=0).values
    return LayerInputs(
        layers=layers,
        rows=tuple({layer.layer: of_row[layer.site_in] for layer in layers} for of_row in values),
    )


def encode_rows(
    hosted: HostedModel, name: str, inputs: LayerInputs, info: ReplacementLayerInfo
) -> Iterator[RowCode]:
    """Encode one layer, row by row. The layer is resident until the iterator ends: one quantum."""
    with opened(hosted, name, (info.layer,)) as resident:
        layer = resident[info.layer]
        norms = layer.decoder_norms() if info.support is SupportRule.DENSE else None
        for group in _groups([len(row[info.layer]) for row in inputs.rows], info.d_sae):
            read = torch.cat([inputs.rows[row][info.layer] for row in group])
            yield from _codes(layer, read, norms, group, [len(inputs.rows[row][info.layer]) for row in group])


def _codes(
    layer: ReplacementLayer, read: Tensor, norms: Tensor | None, group: range, lengths: list[int]
) -> Iterator[RowCode]:
    code = layer.encode(read.to(torch.promote_types(read.dtype, torch.float32)))
    activations = code.activations.to(torch.promote_types(code.activations.dtype, torch.float32))
    firing = code.active if norms is None else strongest(activations, norms)
    for row, values, fires in zip(group, activations.split(lengths), firing.split(lengths), strict=True):
        later = fires.clone()
        later[0] = False
        yield RowCode(row=row, activations=values, firing=later)


def strongest(activations: Tensor, norms: Tensor) -> Tensor:
    """Mark the largest |activation| x decoder norm of every position, bool `(n_pos, d_sae)`."""
    contributions = activations.abs() * norms
    best = contributions.topk(min(DENSE_FIRING, contributions.shape[-1]), dim=-1).indices
    return torch.zeros_like(contributions, dtype=torch.bool).scatter_(-1, best, True)


def _groups(lengths: Sequence[int], d_sae: int) -> Iterator[range]:
    """Split rows, in order, so that a group's activations stay within bounds; a long row goes alone."""
    start, held = 0, 0
    for row, length in enumerate(lengths):
        if row > start and (held + length) * d_sae > _CODE_FLOATS:
            yield range(start, row)
            start, held = row, 0
        held += length
    if lengths:
        yield range(start, len(lengths))
