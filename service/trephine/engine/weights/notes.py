"""What a plan says of every intervention: its tier, the tensors it changes, and what is predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trephine.domain.exports import Tier
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.shards import DTYPES
from trephine.engine.weights.assembly import Assembly, Constants
from trephine.engine.weights.grafting import Graft
from trephine.engine.weights.linear import MapOp
from trephine.engine.weights.mlp import stored_module
from trephine.engine.weights.operations import FeatureOp, NeuronOp, Operations
from trephine.engine.weights.placing import post_norm
from trephine.engine.weights.ridge import FittedDelta, module_of, number_of
from trephine.engine.weights.rounding import Rounding
from trephine.engine.weights.tensors import fades
from trephine.engine.weights.units import LARGEST_BIAS


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """How one intervention is carried."""

    tier: Tier
    tensors: tuple[str, ...]
    description: str
    predicted_error: float | None = 0.0
    """Mean squared error over mean squared change of what is written; None: nothing changes where it would be
    measured."""
    held_out: bool = False
    """Whether that is of windows that were neither fitted on nor chosen by."""
    carried: bool = True
    """False: it changes nothing on the calibration text, so that nothing could be fitted."""


def all_notes(
    ops: Operations,
    grafts: Sequence[Graft],
    deltas: Sequence[FittedDelta],
    assembly: Assembly,
    constants: Constants,
    rounded: Mapping[str, Rounding],
) -> dict[int, Note]:
    """Return a note per intervention."""
    notes: dict[int, Note] = {}
    for neuron in ops.neurons:
        notes |= dict.fromkeys(neuron.numbers, _neuron(neuron, assembly, constants, rounded))
    for op in ops.maps:
        notes[op.number] = _map(op, assembly, constants, rounded)
    for each in grafts:
        notes |= dict.fromkeys(each.op.numbers, _graft(each, assembly, constants))
    for fit in ops.fits:
        numbers = [fit.number] if isinstance(fit, MapOp) else fit.numbers
        mine = [delta for delta in deltas if number_of(fit) in delta.explained]
        notes |= dict.fromkeys(numbers, _ridge(fit, mine, assembly, ops.reasons[numbers[0]]))
    return {number: _drawn(note, rounded) for number, note in notes.items()}


def _drawn(note: Note, rounded: Mapping[str, Rounding]) -> Note:
    """Name the tensors, biases of the same modules included, that are rounded stochastically as a whole."""
    biases = (name.removesuffix("weight") + "bias" for name in note.tensors if name.endswith(".weight"))
    names = dict.fromkeys((*note.tensors, *biases))
    drawn = ", ".join(name for name in names if name in rounded and rounded[name].sum_drawn)
    if not drawn:
        return note
    says = f"{note.description}; rounded stochastically, for to nearest the change would vanish: {drawn}"
    return replace(note, description=says)


def _neuron(op: NeuronOp, assembly: Assembly, constants: Constants, rounded: Mapping[str, Rounding]) -> Note:
    draft = assembly.draft(assembly.hosted.architecture.blocks[op.layer].mlp.down, op.layer)
    entry = draft.stored.weight
    slot = "row" if draft.stored.transposed else "column"
    what = f"{slot} {op.index} of the down projection of layer {op.layer}"
    changes = op.index in draft.factors or op.shift
    if not changes:
        return Note(
            tier="noop", tensors=(entry.name,), description=f"{what} stays as it is: nothing to change"
        )
    vanishing = fades(op.factor, DTYPES[entry.dtype])
    drawn = ", stochastically, for to nearest it would vanish" if vanishing else ""
    says = f"{what} times {op.factor:g}, computed in float32, rounded once to {entry.dtype}{drawn}"
    left = rounded.get(entry.name, Rounding()).slices.get(op.index, 0.0)
    if not op.shift:
        return Note(tier="exact", tensors=(entry.name,), description=says, predicted_error=left)
    has_bias = draft.stored.bias is not None or draft.needs_bias
    tensors = (entry.name, draft.stored.bias_name) if has_bias else (entry.name,)
    says = f"{says}; {op.shift:g} times the column added as a constant "
    note = _constant(says, tensors, has_bias, Site(kind=SiteKind.NEURONS, layer=op.layer), constants)
    return _rounded(note, {**rounded, entry.name: Rounding(whole=left)})


def _rounded(note: Note, rounded: Mapping[str, Rounding]) -> Note:
    """Predict of an exact note what rounding leaves over, in the tensor where that is most."""
    if note.tier != "exact":
        return note
    left = (rounded[name].whole for name in note.tensors if name in rounded)
    return replace(note, predicted_error=max(left, default=0.0))


def _constant(says: str, tensors: tuple[str, ...], has_bias: bool, reads: Site, constants: Constants) -> Note:
    """Note a constant: exact by a bias, and a fit along what is nearly constant where there is none."""
    if has_bias:
        return Note(tier="exact", tensors=tensors, description=f"{says}by the bias")
    near = constants.get(reads)
    if near is None:
        return Note(tier="exact", tensors=tensors, description=f"{says}and taken away by what follows")
    return Note(
        tier="near_constant",
        tensors=tensors,
        description=f"{says}along what is nearly constant in its input, for there is no bias: {near.said}",
        predicted_error=near.error,
        held_out=near.held_out is not None,
    )


def _map(op: MapOp, assembly: Assembly, constants: Constants, rounded: Mapping[str, Rounding]) -> Note:
    return _rounded(_map_note(op, assembly, constants), rounded)


def _map_note(op: MapOp, assembly: Assembly, constants: Constants) -> Note:
    hosted, site = assembly.hosted, op.site
    what = "all of it" if op.unit is None else "the component along the direction"
    does = f"{what} at {site.kind.value} of layer {site.layer} times {float(op.change.factor):g}"
    if site.kind is SiteKind.EMBED:
        names = tuple(
            change.name
            for change in assembly.changes()
            if change.name.endswith(
                ("embed_tokens.weight", "embed_in.weight", "wte.weight", "wpe.weight", "lm_head.weight")
            )
        )
        untied = ", the unembedding untied" if hosted.info.tied_embeddings else ""
        return Note(tier="exact", tensors=names, description=f"{does}: every row of the embeddings{untied}")
    norm = post_norm(hosted, site)
    if norm is not None:
        stored = stored_module(hosted, assembly.entries, norm.module)
        says = f"{does}, written into the gain of the norm behind its module"
        return Note(tier="exact", tensors=(stored.weight.name,), description=says)
    if site.kind is SiteKind.ATTN_Z:
        module, reads = hosted.architecture.blocks[site.layer].attention.out, site
    else:
        module, reads = module_of(hosted, site)
    draft = assembly.draft(module, site.layer)
    does, tensors = f"{does}, written into its module", (draft.stored.weight.name,)
    shift = float(op.change.shift)
    if not shift:
        return Note(tier="exact", tensors=tensors, description=does)
    has_bias = draft.stored.bias is not None or draft.needs_bias
    return _constant(f"{does}; {shift:g} added ", tensors, has_bias, reads, constants)


def _graft(each: Graft, assembly: Assembly, constants: Constants) -> Note:
    names = tuple(d.stored.weight.name for d in assembly.mlp(each.layer))
    ref, fit = each.op.feature, each.fit
    what = f"feature {ref.index} of layer {ref.layer} of {ref.replacement}"
    if each.does_nothing:
        return Note(tier="noop", tensors=names[-1:], description=f"{what} stays as it is: nothing to change")
    says = f"{what} as {len(fit.units)} neurons of layer {ref.layer}'s MLP, gain {fit.gain:.3g}"
    if fit.beyond:
        dtype = DTYPES[assembly.mlp(each.layer)[0].stored.weight.dtype]
        says += (
            f"; its threshold lies so far from what it answers that no gain keeps its biases under "
            f"{LARGEST_BIAS[dtype]:g}, beyond which the stored type rounds coarsely: the least gain was "
            f"taken, with a bias of {fit.bias_size:.3g}"
        )
    if each.constant:
        says += f", and {each.constant:.3g} times its decoder everywhere"
    if each.near is not None:
        says += f"; no biases here: a direction that is nearly constant stands in ({each.near.said}); "
        says += _misfires(each)
    if each.fitted:
        says += f"; fitted: {each.fitted}"
    if fit.error is None:
        says += (
            "; it changes nothing on the calibration text, so that its gains are guesses: "
            "give a text on which it acts"
        )
    return Note(
        tier="graft",
        tensors=names,
        description=says,
        predicted_error=fit.error if each.unseen is None else each.unseen.error,
        held_out=each.unseen is not None,
    )


def _misfires(each: Graft) -> str:
    """Say how often gates and feature disagree, where they were chosen and where they were not."""
    seen = f"{each.fit.misfires:.2%}"
    if each.unseen is None:
        return f"it misfires on {seen} of the very tokens that it was chosen on"
    return f"it misfires on {each.unseen.misfires:.2%} of the tokens kept back, {seen} where it was chosen"


def _ridge(op: FeatureOp | MapOp, deltas: Sequence[FittedDelta], assembly: Assembly, reason: str) -> Note:
    names = tuple(assembly.draft(d.module, d.place.layer).stored.weight.name for d in deltas)
    if not any(d.carries(number_of(op)) for d in deltas):
        return Note(
            tier="ridge",
            tensors=names,
            description="not carried: it can only be fitted, and changes nothing on the calibration text; "
            f"fitted because {reason}; give a text on which it acts",
            predicted_error=1.0,
            carried=False,
        )
    shares = [d.explained[number_of(op)] for d in deltas]
    known = [share for share in shares if share is not None]
    explained = min(known) if len(known) == len(shares) else None
    parts = deltas[0].parts
    measured = (
        "on the windows that test it changes nothing: what it leaves over is not known"
        if explained is None
        else f"{parts.measure} {explained:.3f}"
    )
    floor = max((d.floor for d in deltas), default=0.0)
    out_of_reach = f", behind the norm, where no weights reach more than {1 - floor:.3f}" if floor else ""
    return Note(
        tier="ridge",
        tensors=names,
        description=f"fitted by ridge on what the module reads, because {reason}; {measured}{out_of_reach}",
        predicted_error=None if explained is None else 1.0 - explained,
        held_out=parts.held_out,
    )
