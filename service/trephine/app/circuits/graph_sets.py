"""The replacement sets that a graph spans, as they are loaded beside a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from trephine.app.sets.replacements import Replacements
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.errors import LayerOutOfRangeError, TrephineError
from trephine.domain.models import ModelInfo
from trephine.domain.neuron_layers import free_mlps, neurons_of
from trephine.domain.replacements import ReplacementLayerInfo, ReplacementSetInfo
from trephine.domain.sites import NEURONS
from trephine.domain.spanned_sets import check_sites_apart


def loaded_sets(
    replacements: Replacements, model: str, command: DiscoverCircuit
) -> dict[str, ReplacementSetInfo]:
    """Return the sets of a discovery by name; neurons are no set.

    Raises:
        ReplacementNotFoundError: If one is not loaded, or was lost; it names the field.
    """
    found = {}
    for index, name in enumerate(command.sets):
        if name == NEURONS:
            continue
        try:
            found[name] = replacements.loaded(name, model)
        except TrephineError as error:
            raise error.with_field(f"beside[{index - 1}]" if index else "replacement") from None
    return found


def opened_layers(
    command: DiscoverCircuit, info: ModelInfo, loaded: Mapping[str, ReplacementSetInfo]
) -> tuple[ReplacementLayerInfo, ...]:
    """Return the layers of the sets that a discovery opens, neurons beside them included.

    Of a discovery in neurons alone there are none.

    Raises:
        LayerOutOfRangeError: If the model, or every set, lacks a layer that is asked for.
        UnsupportedOptionError: If two sets reconstruct one site.
    """
    for index, layer in enumerate(command.layers or ()):
        if layer >= info.n_layers:
            raise LayerOutOfRangeError(
                f"the model has layers 0 to {info.n_layers - 1}, got {layer}", field=f"layers[{index}]"
            )
    if command.sets == (NEURONS,):
        return ()
    sets = {name: found.layers for name, found in loaded.items()}
    named = _named_layers(command.sets, info, sets, command.layers)
    opened = tuple(one for _, one in named)
    known = {one.layer for one in opened}
    for index, layer in enumerate(command.layers or ()):
        if layer not in known:
            covered = sorted({one.layer for one in spanned_layers(command.sets, info, sets)})
            raise LayerOutOfRangeError(
                f"{', '.join(command.sets)}: none covers layer {layer} of {info.name}; they have "
                f"{', '.join(map(str, covered))}. Name some of these, or add a set that has it",
                field=f"layers[{index}]",
                layer=layer,
            )
    check_sites_apart(named)
    return opened


def spanned_layers(
    names: Sequence[str],
    info: ModelInfo,
    sets: Mapping[str, Sequence[ReplacementLayerInfo]],
    only: Collection[int] | None = None,
) -> tuple[ReplacementLayerInfo, ...]:
    """Return layers of sets; neurons beside them are those of the MLPs that none of these reconstructs.

    Args:
        names: Of sets, and `neurons`.
        info: The loaded model.
        sets: Layers of what is loaded beside it; of a set that is not there, there are none.
        only: Only these layers; None means all.
    """
    return tuple(one for _, one in _named_layers(names, info, sets, only))


def _named_layers(
    names: Sequence[str],
    info: ModelInfo,
    sets: Mapping[str, Sequence[ReplacementLayerInfo]],
    only: Collection[int] | None,
) -> list[tuple[str, ReplacementLayerInfo]]:
    """Return `spanned_layers`, each with the name of its set."""
    spanned = [
        (name, one)
        for name in names
        if name != NEURONS
        for one in sets.get(name, ())
        if only is None or one.layer in only
    ]
    if NEURONS in names:
        free = free_mlps((one for _, one in spanned), info.n_layers, only)
        neurons = (neurons_of(layer, d_model=info.d_model, d_mlp=info.d_mlp) for layer in free)
        spanned += [
            (NEURONS, replace(one, claimed_l0=float(info.d_mlp))) for one in neurons
        ]  # all are active
    return spanned
