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
from trephine.domain.sites import NEURONS
from trephine.domain.targets import TargetKind
from trephine.engine.discovery import discover_circuit
from trephine.engine.hosted import HostedModel
from trephine.engine.replacements.contexts import beginning, contexts_of
from trephine.engine.replacements.controls_fit import FIT_TOKENS, fitted_controls
from trephine.engine.replacements.layer import ReplacementLayer
from trephine.engine.replacements.sets import ReplacementSet, require_set
from trephine.engine.replacements.splice import LayerSource, loaded_source
from trephine.engine.retain import BUILT_IN, built_in_text

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

_KEPT: WeakKeyDictionary[Any, tuple[tuple[str, str, int], LayerSource]] = WeakKeyDictionary()
"""Per loaded model the last dictionary that was fitted, by weights, set and seed. Ends with the model."""


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


def refusal(hosted: HostedModel, circuit: Circuit) -> str | None:
    """Say why there is no random dictionary beside a circuit, if there is none."""
    if circuit.replacement == NEURONS:
        return NOT_APPLICABLE
    if any(target.kind is TargetKind.FEATURE for target in circuit.targets):
        return (
            "not applicable: the circuit explains a feature of the set, and a random dictionary has no such"
        )
    admitted = require_set(hosted, circuit.replacement).admitted
    if any(layer.kind is LayerKind.CROSS_LAYER_TRANSCODER for layer in admitted.layers):
        return (
            "not applicable: random dictionaries of one layer are no equal of a cross-layer transcoder, "
            "whose features write several layers"
        )
    return None


def control_circuit(
    hosted: HostedModel, circuit: Circuit, layers: Sequence[int], size: int, seed: int
) -> Generator[Progress | None, None, tuple[HostedModel, Circuit, tuple[int, ...]]]:
    """Fit the dictionary, find the circuit with it under the same budget, and prune it to the same size.

    Its features are chosen as the circuit's were: by influence, or by hierarchical attribution from the same
    threshold on.

    Args:
        hosted: The model with the circuit's own set.
        circuit: What it stands beside.
        layers: Layers that the circuit covers.
        size: Features that the pruned circuit has at positions >= 1.
        seed: Of the random dictionary.

    Returns:
        A view of the model that has the dictionary, the circuit, and its `size` most influential features:
        none if nothing of the dictionary is chosen at positions >= 1.

    Raises:
        OverBudgetError: If the dictionary does not fit into half of the free memory.
    """
    source = yield from _fitted(hosted, circuit.replacement, layers, seed)
    view = _beside(hosted, circuit.replacement, source)
    budget = sum(node.kind is NodeKind.FEATURE for node in circuit.nodes)
    command = DiscoverCircuit(
        prompt=circuit.prompt,
        target=circuit.question(),
        positions=circuit.positions,
        replacement=NAME,
        layers=tuple(layers),
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
    hosted: HostedModel, name: str, layers: Sequence[int], seed: int
) -> Generator[Progress | None, None, LayerSource]:
    found = require_set(hosted, name)
    key = (hosted.info.weight_hash, f"{found.admitted.content_hash}:{sorted(layers)}", seed)
    kept = _KEPT.get(hosted.model)
    if kept is not None and kept[0] == key:
        return kept[1]
    begin = beginning(hosted, bool(found.admitted.admission.begins_with))
    scope = found.trained_on.scope(hosted)
    contexts = contexts_of(hosted, built_in_text(), size=_CONTEXT, begin=begin)
    contexts = [ids for ids in contexts if scope.predicts(ids)][: FIT_TOKENS // _CONTEXT]
    sources = yield from fitted_controls(
        hosted, loaded_source(hosted, name, layers), contexts, [Dictionary.RANDOM], seed=seed, scope=scope
    )
    source = sources[Dictionary.RANDOM]
    _KEPT[hosted.model] = (key, source)
    return source


def _beside(hosted: HostedModel, name: str, source: LayerSource) -> HostedModel:
    admitted = require_set(hosted, name).admitted
    own = ReplacementSet(
        admitted=replace(admitted, name=NAME, content_hash="", layers=source.infos, residency=_NO_BYTES),
        pager=_Resident(source=source),
        trained_on=require_set(hosted, name).trained_on,
    )
    return replace(hosted, replacements={**hosted.replacements, NAME: own})


def control_words(circuit: Circuit) -> str:
    """Say what the control is."""
    least = _min_attribution(circuit)
    chosen = "" if least is None else f" and by hierarchical attribution of at least {least:.3g}"
    return (
        f"a random dictionary beside {circuit.replacement!r}: random unit encoders on standardised inputs, "
        "random unit decoders with one factor each by least squares, of the same width per layer and of the "
        f"same L0, fitted on {BUILT_IN}; the circuit is found under the same budget{chosen}, cut to as "
        "many of its most influential features, and examined by the same ablations"
    )
