"""The same circuit with a random dictionary of equal size and L0: discovered and verified identically.

Random dictionaries nearly tie trained ones on several benchmarks (`frontier.md`, E), so that a figure of a
circuit means little beside none. The dictionary lives in a view of the hosted model that only this command
holds; nobody else sees it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from trephine.domain.circuits import Circuit, DiscoverCircuit, NodeKind
from trephine.domain.commands import Progress
from trephine.domain.replacements import Dictionary, LayerKind, Residency
from trephine.domain.sites import NEURONS, LayerRef
from trephine.domain.targets import FeatureValue, TargetKind
from trephine.engine.admission.controls_fit import FIT_TOKENS, fitted_controls
from trephine.engine.admission.splice import LayerSource, loaded_source
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.contexts import beginning, contexts_of
from trephine.engine.replacements.layer import ReplacementLayer
from trephine.engine.replacements.sets import ReplacementSet, require_set
from trephine.engine.runs.retain import BUILT_IN, built_in_text
from trephine.engine.verification.subject import Subject

NAME = "random-dictionary"
_CONTEXT = 128
_NO_BYTES = Residency(total_bytes=0, resident_bytes=0, peak_bytes=0, budget_bytes=0, loads=0, evictions=0)
NOT_APPLICABLE = (
    "not applicable: neurons are the model's own basis, so that there is nothing trained to stand a random "
    "dictionary beside, and a rotated or permuted basis of neurons is no sparse dictionary (a permutation "
    "changes nothing, a rotation is not what the non-linearity reads). The random circuits of necessity and "
    "sufficiency, with as many random neurons in every layer, are the control"
)
NOTHING_CHOSEN = (
    "the random dictionary has no circuit to compare with: found under the same budget and threshold, "
    "nothing of it is chosen at positions >= 1"
)

Sources = dict[str, LayerSource]
"""By set the random dictionary that stands beside it."""
_KEPT: WeakKeyDictionary[Any, tuple[tuple[str, str, int], Sources]] = WeakKeyDictionary()
"""Per loaded model the last dictionaries that were fitted, by weights, sets and seed. Ends with the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resident:
    """A pager of layers that lie in memory."""

    source: LayerSource

    @contextmanager
    def pinned(self, layers: Sequence[int]) -> Iterator[Mapping[int, ReplacementLayer]]:
        """Hand them out."""
        with self.source.open(layers) as found:
            yield found

    def residency(self) -> Residency:
        """Nothing is paged."""
        return _NO_BYTES


NOTHING_REPLACED = (
    "not applicable: what is verified are neurons alone, none of them a feature of the sets beside them, so "
    "that a random dictionary would replace nothing"
)


def refusal(
    hosted: HostedModel, circuit: Circuit, layers: Sequence[LayerRef], kept: Sequence[int]
) -> str | None:
    """Say why there is no random dictionary beside a circuit, if there is none.

    Args:
        hosted: The model with the circuit's own sets.
        circuit: What it would stand beside.
        layers: Layers of sets that what is explained can depend on.
        kept: Feature nodes of the pruned circuit.
    """
    if all(name == NEURONS for name in circuit.set_names):
        return NOT_APPLICABLE
    sets = sorted({ref.replacement for ref in layers} - {NEURONS})
    if not sets or all(circuit.nodes[node].replacement == NEURONS for node in kept):
        return NOTHING_REPLACED
    if any(target.kind is TargetKind.FEATURE for target in circuit.targets) and not _of_neuron(circuit):
        return (
            "not applicable: the circuit explains a feature of the set, and a random dictionary has no such"
        )
    infos = [info for name in sets for info in require_set(hosted, name).admitted.layers]
    if any(info.kind is LayerKind.CROSS_LAYER_TRANSCODER for info in infos):
        return (
            "not applicable: random dictionaries of one layer are no equal of a cross-layer transcoder, "
            "whose features write several layers"
        )
    return None


def control_circuit(
    hosted: HostedModel, circuit: Circuit, layers: Sequence[LayerRef], size: int, seed: int
) -> Generator[Progress | None, None, tuple[HostedModel, Circuit, tuple[int, ...]]]:
    """Fit a dictionary per set, find the circuit with them under the same budget, prune it to the same size.

    Neurons beside sets stay what they are. Features are chosen as the circuit's were: by influence, or by
    hierarchical attribution from the same threshold on.

    Args:
        hosted: The model with the circuit's own set.
        circuit: What it stands beside.
        layers: Layers of sets that the circuit covers.
        size: Features that the pruned circuit has at positions >= 1.
        seed: Of the random dictionary.

    Returns:
        A view of the model that has the dictionary, the circuit, and its `size` most influential features:
        none if nothing of the dictionary is chosen at positions >= 1.

    Raises:
        OverBudgetError: If the dictionary does not fit into half of the free memory.
    """
    sources = yield from _fitted(hosted, layers, seed)
    names = {name: NAME if number == 0 else f"{NAME}-{number + 1}" for number, name in enumerate(sources)}
    view = _beside(hosted, sources, names)
    # A set of which no layer is opened has no dictionary; neurons stand beside sets, never first.
    asked = [names[name] for name in circuit.set_names if name in names]
    asked += [NEURONS] if NEURONS in circuit.set_names else []
    budget = sum(node.kind is NodeKind.FEATURE for node in circuit.nodes)
    command = DiscoverCircuit(
        prompt=circuit.prompt,
        target=circuit.question(),
        positions=circuit.positions,
        replacement=asked[0],
        beside=tuple(asked[1:]),
        layers=tuple(sorted({ref.layer for ref in layers})),
        max_feature_nodes=budget,
        min_attribution=_min_attribution(circuit),
        verify_nodes=0,
        seed=seed,
    )
    found = yield from discover_circuit(view, command)
    return view, found, _most_influential(found, size)


def _min_attribution(circuit: Circuit) -> float | None:
    hierarchy = circuit.figures.hierarchy
    return None if hierarchy is None else hierarchy.asked_threshold


def _most_influential(circuit: Circuit, size: int) -> tuple[int, ...]:
    later = [n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.FEATURE and node.position > 0]
    return tuple(sorted(sorted(later, key=lambda n: -circuit.nodes[n].influence)[:size]))


def _fitted(
    hosted: HostedModel, layers: Sequence[LayerRef], seed: int
) -> Generator[Progress | None, None, Sources]:
    """Fit a random dictionary beside every set; those that were fitted last are kept."""
    by_set: dict[str, list[int]] = {}
    for ref in layers:
        if ref.replacement != NEURONS:
            by_set.setdefault(ref.replacement, []).append(ref.layer)
    contents = [
        f"{name}:{require_set(hosted, name).admitted.content_hash}:{sorted(own)}"
        for name, own in by_set.items()
    ]
    key = (hosted.info.weight_hash, " ".join(contents), seed)
    kept = _KEPT.get(hosted.model)
    if kept is not None and kept[0] == key:
        return kept[1]
    sources: Sources = {}
    for name, own in by_set.items():
        sources[name] = yield from _fitted_beside(hosted, name, own, seed)
    _KEPT[hosted.model] = (key, sources)
    return sources


def _fitted_beside(
    hosted: HostedModel, name: str, layers: Sequence[int], seed: int
) -> Generator[Progress | None, None, LayerSource]:
    found = require_set(hosted, name)
    begin = beginning(hosted, bool(found.admitted.admission.begins_with))
    scope = found.trained_on.scope(hosted)
    contexts = contexts_of(hosted, built_in_text(), size=_CONTEXT, begin=begin)
    contexts = [ids for ids in contexts if scope.predicts(ids)][: FIT_TOKENS // _CONTEXT]
    sources = yield from fitted_controls(
        hosted, loaded_source(hosted, name, layers), contexts, [Dictionary.RANDOM], seed=seed, scope=scope
    )
    return sources[Dictionary.RANDOM]


def _beside(hosted: HostedModel, sources: Sources, names: Mapping[str, str]) -> HostedModel:
    """Return a view of the model that has the dictionaries, by other names."""
    added = {}
    for name, source in sources.items():
        given = require_set(hosted, name)
        added[names[name]] = ReplacementSet(
            admitted=replace(
                given.admitted,
                name=names[name],
                content_hash="",
                layers=source.infos,
                residency=_NO_BYTES,
            ),
            pager=_Resident(source=source),
            trained_on=given.trained_on,
        )
    return replace(hosted, replacements={**hosted.replacements, **added})


def is_random(circuit: Circuit, kept: Sequence[int]) -> bool:
    """True if anything of a random dictionary is among some nodes: neurons beside sets are no control."""
    return any(circuit.nodes[node].replacement != NEURONS for node in kept)


def _of_neuron(circuit: Circuit) -> bool:
    """True if a neuron is explained: neurons beside sets stay in the control."""
    asked = circuit.asked
    return isinstance(asked, FeatureValue) and (asked.replacement or circuit.replacement) == NEURONS


def l0_of(subject: Subject) -> float:
    """Return the mean L0 of the layers of sets at the prompt's own positions, from 1 to the last target."""
    of_sets = [active for ref, active in subject.active.items() if ref.replacement != NEURONS]
    positions = max(1, max(subject.circuit.positions))
    return sum(int(active[1:].sum()) for active in of_sets) / positions / max(1, len(of_sets))


def control_words(circuit: Circuit, layers: Sequence[LayerRef], l0: tuple[float, float]) -> str:
    """Say what the control is.

    Args:
        circuit: What it stands beside.
        layers: Layers of sets that were opened.
        l0: On the prompt, of the sets and of the random dictionaries (`l0_of`).
    """
    least = _min_attribution(circuit)
    opened = {ref.replacement for ref in layers} - {NEURONS}
    sets = " and ".join(repr(name) for name in circuit.set_names if name in opened)
    beside = "; neurons beside sets stay what they are" if NEURONS in circuit.set_names else ""
    chosen = "" if least is None else f" and by hierarchical attribution of at least {least:.3g}"
    return (
        f"a random dictionary beside {sets}: random unit encoders on standardised inputs, "
        "random unit decoders with one factor each by least squares, of the same width per layer and of the "
        f"same L0 on {BUILT_IN}, where they are fitted (active features a layer and position on this prompt: "
        f"{l0[1]:.3g}, of the sets {l0[0]:.3g}); the circuit is found under the same budget{chosen}, cut to "
        f"as many of its most influential features, and examined by the same ablations{beside}"
    )
