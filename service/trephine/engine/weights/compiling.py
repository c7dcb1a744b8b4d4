"""From an edit to the changes of tensors and config that carry it, tier by tier."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trephine.domain.edits import Edit
from trephine.domain.exports import GgufType
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.shards import TensorEntry
from trephine.engine.models.sites import site_width
from trephine.engine.weights.assembly import Assembly, Constants
from trephine.engine.weights.capture import Windows, captured, stacked
from trephine.engine.weights.grafting import Graft, graft
from trephine.engine.weights.held_out import Split, of_windows, split
from trephine.engine.weights.linear import Affinity, MapOp, composed
from trephine.engine.weights.mlp import (
    NearConstant,
    StoredMlp,
    attention_bias_field,
    bias_field,
    has_biases,
    near_constant,
    stored_mlp,
)
from trephine.engine.weights.notes import Note, all_notes
from trephine.engine.weights.operations import FeatureOp, Operations, sort_operations
from trephine.engine.weights.overflow import require_finite
from trephine.engine.weights.parts import Part, parts_of
from trephine.engine.weights.postnorm import Written, before_post_norm
from trephine.engine.weights.ridge import fit_deltas
from trephine.engine.weights.rounding import roundings
from trephine.engine.weights.tensors import TensorChange

STORED_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightProgram:
    """All that an export writes."""

    changes: tuple[TensorChange, ...]
    config: dict[str, Any]
    """Fields of config.json and their new values."""
    notes: dict[int, Note] = field(default_factory=dict)
    fitted: bool = False
    """True if something is neither exact nor exact up to rounding: fits, what stands before a post-norm, and
    constants that a nearly constant direction carries in place of a bias."""
    grafted: bool = False
    calibrated: bool = False
    """True if something depends on the calibration text."""
    features: tuple[FeatureOp | MapOp, ...] = ()
    """Whose firing tokens are measured apart: features of sets, and bounds on directions."""
    parts: tuple[Part, ...] = ()
    """What is done beside these where something is grafted or fitted: neurons, heads, directions."""
    calibration: dict[str, float] = field(default_factory=dict)
    """What stands in for biases, in figures of the calibration text: the worst of all, where it was fitted
    and, `_held_out`, where it was not."""
    drawn: tuple[str, ...] = ()
    """Tensors of which elements are rounded stochastically."""

    @property
    def apart(self) -> tuple[FeatureOp | MapOp | Part, ...]:
        """All that is held against what it does alone, if it is not all that the edit does."""
        return (*self.features, *self.parts)

    @property
    def exact(self) -> bool:
        """Whether all that is written is exact up to rounding."""
        return not self.fitted and not self.grafted


def compile_weights(
    hosted: HostedModel,
    entries: dict[str, TensorEntry],
    edit: Edit,
    windows: Windows,
    *,
    keep_shapes: bool = False,
    kind: GgufType | None = None,
) -> Generator[None, None, WeightProgram]:
    """Compile an edit from the parent's files.

    Args:
        hosted: The loaded parent.
        entries: The tensors of its files.
        edit: What is to be carried.
        windows: The calibration text.
        keep_shapes: Fit features into the matrices that are there instead of adding neurons.
        kind: The coarsest GGUF file that is to carry it as well. No module is then given a bias that it has
            not, for a reader may leave it out, and units survive the quantiser.

    Raises:
        EditNotExpressibleError: If an intervention cannot be written into weights.
        BrokenCheckpointError: If the files do not hold what was loaded.
    """
    ops = sort_operations(hosted, edit.interventions, keep_shapes=keep_shapes)
    fitted_numbers = {n for op in ops.fits for n in ([op.number] if isinstance(op, MapOp) else op.numbers)}
    unfitted = {number: i for number, i in enumerate(edit.interventions) if number not in fitted_numbers}
    kept = tuple(unfitted.values())
    given = bias_field(hosted) is not None and kind is None
    grafts = yield from _grafts(hosted, entries, ops, windows, kept, has_biases(hosted) or given, kind)
    affinities = _affinities(hosted, ops.maps)
    biases = has_biases(hosted) or (given and _wants_bias(ops, grafts, affinities))
    unbiased = _constant_attention(hosted, affinities)
    fresh = bool(unbiased) and kind is None and attention_bias_field(hosted) is not None
    assembly = Assembly(hosted, entries, mlp_biases=biases, attention_biases=fresh)
    attention = () if fresh else unbiased
    constants = yield from _constants(
        hosted, ops, grafts, affinities, windows, kept, attention, biases=biases
    )
    assembly.write_neurons(ops.neurons, constants)
    assembly.write_maps(affinities, constants)
    assembly.write_grafts(grafts, ops.maps, constants)
    deltas = yield from fit_deltas(hosted, ops, windows, unfitted)
    assembly.write_deltas(deltas, ops.maps)
    changes = assembly.changes()
    rounded = yield from roundings(hosted.folder, changes)
    require_finite(changes, rounded)
    fitted = bool(ops.fits or constants) or any(g.fitted or g.near is not None for g in grafts)
    grafted = any(g.fit.units for g in grafts)
    return WeightProgram(
        changes=changes,
        config=assembly.config,
        notes=all_notes(ops, grafts, deltas, assembly, constants, rounded),
        fitted=fitted,
        grafted=grafted,
        calibrated=bool(grafts or ops.fits or constants),
        calibration=_figures(grafts, constants),
        features=(
            *(each.op for each in grafts if not each.does_nothing),
            *(op for op in ops.fits if isinstance(op, FeatureOp) or not op.is_affine),
        ),
        parts=parts_of(ops) if fitted or grafted else (),
        drawn=tuple(name for name, rounding in rounded.items() if rounding.drawn),
    )


def _figures(grafts: Sequence[Graft], constants: Constants) -> dict[str, float]:
    near = [*constants.values(), *(each.near for each in grafts if each.near is not None)]
    without = [each for each in grafts if each.near is not None]
    unseen = [each.unseen.misfires for each in without if each.unseen is not None]
    residues = [one.held_out for one in near if one.held_out is not None]
    found = {
        "near_constant_residue": [one.residue for one in near],
        "near_constant_residue_held_out": residues if len(residues) == len(near) else [],
        "graft_misfires": [each.fit.misfires for each in without],
        "graft_misfires_held_out": unseen if len(unseen) == len(without) else [],
    }
    return {name: max(values) for name, values in found.items() if values}


def _grafts(
    hosted: HostedModel,
    entries: dict[str, TensorEntry],
    ops: Operations,
    windows: Windows,
    kept: Any,
    biases: bool,
    kind: GgufType | None,
) -> Generator[None, None, tuple[Graft, ...]]:
    layers = sorted({op.feature.layer for op in ops.grafts})
    if not layers:
        return ()
    posts = [n for n in layers if hosted.architecture.blocks[n].mlp_post_norm is not None]
    sites = [Site(kind=SiteKind.MLP_IN, layer=n) for n in layers]
    sites += [Site(kind=SiteKind.NEURONS, layer=n) for n in posts]
    values = yield from captured(hosted, windows, sites, kept)
    found: list[Graft] = []
    parts = split(len(windows))
    kept_back = of_windows([len(window) for window in windows], parts.kept)
    for layer in layers:
        stored = stored_mlp(hosted, entries, layer)
        read = values[Site(kind=SiteKind.MLP_IN, layer=layer)]
        dtype = _served(hosted, stored)
        fresh: list[Graft] = []
        for op in ops.grafts:
            if op.feature.layer == layer:
                fresh.append(
                    graft(hosted, op, stored, stacked(read), dtype, biases=biases, kept=kept_back, kind=kind)
                )
                yield
        if layer in posts:
            neurons = stacked(values[Site(kind=SiteKind.NEURONS, layer=layer)]).float()
            outputs = neurons @ stored.down.matrix.float().cpu().T
            written = _written(hosted, layer, stored, read, outputs, parts)
            fresh = list((yield from before_post_norm(fresh, written)))
        found += fresh
    return tuple(found)


def _written(
    hosted: HostedModel,
    layer: int,
    stored: StoredMlp,
    read: Sequence[Tensor],
    outputs: Tensor,
    parts: Split,
) -> Written:
    """Gather what a fit in front of a layer's post-norm needs."""
    block = hosted.architecture.blocks[layer]
    if block.mlp_post_norm is None:
        raise ValueError("no norm follows this MLP")
    lengths = [len(part) for part in read]
    return Written(
        norm=block.mlp_post_norm,
        inputs=stacked(read),
        outputs=outputs,
        fitting=of_windows(lengths, parts.fitting),
        choosing=of_windows(lengths, parts.choosing),
        taken=of_windows(lengths, parts.taken),
        testing=of_windows(lengths, parts.testing),
        held_out=parts.held_out,
        activation=block.mlp.activation,
        dtype=_served(hosted, stored),
        rms_down=float(stored.down.matrix.float().square().mean().sqrt()),
    )


def _served(hosted: HostedModel, stored: StoredMlp) -> torch.dtype:
    """Return what units must survive: the type of the files, or of the runtime if that is coarser."""
    types = (STORED_DTYPES[stored.down.weight.dtype], hosted.model.dtype)
    return max(types, key=lambda dtype: torch.finfo(dtype).eps)


def _wants_bias(ops: Operations, grafts: Sequence[Graft], affinities: dict[Site, Affinity]) -> bool:
    shifted = any(
        site.kind is SiteKind.MLP_OUT and bool(affinity.offset.any()) for site, affinity in affinities.items()
    )
    return shifted or any(not g.does_nothing for g in grafts) or any(n.shift for n in ops.neurons)


def _constant_attention(hosted: HostedModel, affinities: dict[Site, Affinity]) -> list[Site]:
    """List what the output projections read that write a constant and have no bias to write it with."""
    return [
        Site(kind=SiteKind.ATTN_Z, layer=site.layer)
        for site, affinity in affinities.items()
        if site.kind in (SiteKind.ATTN_OUT, SiteKind.ATTN_Z)
        and hosted.architecture.blocks[site.layer].attention.b_O is None
        and bool(affinity.offset.any())
    ]


def _affinities(hosted: HostedModel, maps: Sequence[MapOp]) -> dict[Site, Affinity]:
    by_site: dict[Site, list[MapOp]] = {}
    for op in maps:
        by_site.setdefault(op.site, []).append(op)
    found = {site: composed(_width(hosted, site), ops) for site, ops in by_site.items()}
    return {site: affinity for site, affinity in found.items() if not affinity.is_identity}


def _width(hosted: HostedModel, site: Site) -> int:
    return site_width(hosted.architecture, site)


def _constants(
    hosted: HostedModel,
    ops: Operations,
    grafts: Sequence[Graft],
    affinities: dict[Site, Affinity],
    windows: Windows,
    kept: Any,
    attention: Sequence[Site],
    *,
    biases: bool,
) -> Generator[None, None, dict[Site, NearConstant]]:
    """Find a near-constant input direction of every module that writes a constant without a bias."""
    wanted = set(attention)
    for site, affinity in affinities.items():
        if site.kind is SiteKind.MLP_OUT and not biases and bool(affinity.offset.any()):
            wanted.add(Site(kind=SiteKind.NEURONS, layer=site.layer))
    if not biases:
        layers = {g.layer for g in grafts if g.constant} | {n.layer for n in ops.neurons if n.shift}
        wanted |= {Site(kind=SiteKind.NEURONS, layer=layer) for layer in layers}
    if not wanted:
        return {}
    values = yield from captured(hosted, windows, sorted(wanted), kept, before=True)
    parts = split(len(windows))
    return {
        site: near_constant(
            *(stacked([values[site][n] for n in numbers]) for numbers in (parts.taken, parts.kept) if numbers)
        )
        for site in wanted
    }
