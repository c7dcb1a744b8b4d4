"""Which layers of which sets a graph opens: every site is reconstructed by one set at most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trephine.domain.neuron_layers import free_mlps
from trephine.domain.replacements import ReplacementLayerInfo
from trephine.domain.sites import NEURONS, LayerRef
from trephine.domain.spanned_sets import check_sites_apart
from trephine.engine.attribution.places import check_attributable
from trephine.engine.graphs.linearised import read_place
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import covered_layers, layer_info


def layers_of(name: str, layers: Sequence[int]) -> tuple[LayerRef, ...]:
    """Name layers of one set."""
    return tuple(LayerRef(replacement=name, layer=layer) for layer in layers)


def open_layers(
    hosted: HostedModel,
    sets: Sequence[str],
    layers: Sequence[int] | None = None,
    *,
    choosable: bool = False,
) -> tuple[LayerRef, ...]:
    """List the layers of sets that a graph opens, from the bottom up by what they read.

    Args:
        hosted: The model.
        sets: Names, each once. Neurons are opened in the MLPs that no other set reconstructs.
        layers: Those that are opened, as far as a set has them; None: all.
        choosable: Whether whoever asked has an option `layers`, which a refusal may point to.

    Raises:
        ReplacementNotFoundError: If a set is not loaded.
        UnsupportedOptionError: If no attribution law holds for a layer, or two sets reconstruct one site.
    """
    covered = ((name, covered_layers(hosted, name)) for name in sets if name != NEURONS)
    found = [
        ref
        for name, own in covered
        for ref in layers_of(name, own if layers is None else [n for n in own if n in layers])
    ]
    if NEURONS in sets:
        infos = [info_of(hosted, ref) for ref in found]
        found += layers_of(NEURONS, free_mlps(infos, hosted.info.n_layers, layers))
    return tuple(ref for ref, _ in checked(hosted, found, choosable=choosable))


def unopened_caveats(sets: Sequence[str], opened: Iterable[LayerRef]) -> list[str]:
    """Say which sets were asked for and have no feature in a graph.

    Args:
        sets: Names that were asked for.
        opened: Layers that the graph opens.
    """
    has = {ref.replacement for ref in opened}
    said = []
    if NEURONS in sets and NEURONS not in has:
        said.append(
            "No neuron can be in this graph: sets reconstruct the MLPs of all layers that it may choose from."
        )
    absent = [name for name in sets if name != NEURONS and name not in has]
    if absent:
        said.append(
            f"No feature of {', '.join(absent)} can be in this graph: it has none of the layers asked for."
        )
    return said


def info_of(hosted: HostedModel, ref: LayerRef) -> ReplacementLayerInfo:
    """Describe one layer of a set."""
    return layer_info(hosted, ref.replacement, ref.layer)


def checked(
    hosted: HostedModel, refs: Sequence[LayerRef], *, choosable: bool = False
) -> list[tuple[LayerRef, ReplacementLayerInfo]]:
    """Sort layers from the bottom up by what they read.

    Args:
        hosted: The model.
        refs: Layers of sets.
        choosable: As for `open_layers`.

    Raises:
        UnsupportedOptionError: If no attribution law holds for one of them, or two reconstruct one place.
    """
    found = [(ref, info_of(hosted, ref)) for ref in refs]
    for _, info in found:
        check_attributable(info, parallel=hosted.architecture.blocks[info.layer].parallel)
    check_sites_apart(((ref.replacement, info) for ref, info in found), choosable=choosable)
    return sorted(found, key=lambda each: read_place(each[1]))
