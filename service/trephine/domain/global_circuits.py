"""Circuits that no single prompt decides: weights, weighted by many texts (Ameisen et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from trephine.domain.circuits import Circuit
from trephine.domain.commands import Command, Progress
from trephine.domain.errors import InvalidRequestError
from trephine.domain.global_figures import EdgeWeighting
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.targets import DirectionValue

MAX_TEXTS = 4096
"""Of one request, both splits together."""
MAX_CANDIDATES = 8192
"""Statistics of all their pairs are held at once."""
MAX_CONTEXT = 512
"""Tokens of one text: attention of a pack of texts is kept as one square."""
ABLATED_TOKENS = 512
"""Held-out tokens that sources are ablated on, the first ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthStart:
    """What a circuit is grown from; nothing: the strongest edges that there are."""

    features: tuple[FeatureRef, ...] = ()
    """Grown upwards and downwards."""
    tokens: tuple[str, ...] = ()
    """Logits, one token each, or `#id`; grown downwards."""
    direction: DirectionValue | None = None
    """Of the residual stream; grown downwards."""

    def __post_init__(self) -> None:
        _check(len(set(self.features)) == len(self.features), "start_features", "names a feature twice")
        _check(len(set(self.tokens)) == len(self.tokens), "start_tokens", "names a token twice")
        _check(len(self.features) + len(self.tokens) <= 64, "start_features", "and tokens: at most 64")

    @property
    def is_empty(self) -> bool:
        """True if nothing is named."""
        return not (self.features or self.tokens or self.direction)


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalBounds:
    """How large a global circuit is, and how many features it is chosen from."""

    nodes: int = 256
    """Features."""
    edges_per_node: int = 8
    """Edges into one node from features, and as many from tokens: the heaviest."""
    tokens: int = 32
    """Nodes that are tokens' embeddings; 0: none."""
    logits: int = 32
    """Nodes that are logits, beside those that are named; 0: none."""
    candidates: int = 2048
    """Features between which edges are measured."""
    min_active: int = 10
    """Training tokens that a feature must be active on."""

    def __post_init__(self) -> None:
        _within(self.nodes, 2, 4096, "max_nodes")
        _within(self.edges_per_node, 1, 256, "max_edges_per_node")
        _within(self.tokens, 0, 4096, "max_tokens")
        _within(self.logits, 0, 512, "max_logits")
        _within(self.candidates, 2, MAX_CANDIDATES, "candidates")
        _within(self.min_active, 1, 1_000_000, "min_active")
        _check(self.nodes <= self.candidates, "candidates", f"must be at least max_nodes, {self.nodes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoverGlobalCircuit(Command[Circuit, Progress]):
    """Find edges between features that hold over many texts, and check them on texts that were held out."""

    interactive: ClassVar[bool] = False

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    replacement: str = NEURONS
    """A set of transcoders or cross-layer transcoders, or `neurons`."""
    layers: tuple[int, ...] | None = None
    """Layers whose features can be nodes; None means all that the set covers."""
    start: GrowthStart = field(default_factory=GrowthStart)
    weighting: EdgeWeighting = EdgeWeighting.TWERA
    bounds: GlobalBounds = field(default_factory=GlobalBounds)
    context_tokens: int = 128
    """Of every text at most so many tokens, the first, are read."""
    verify_edges: int = 64
    """Edges whose sources are ablated on held-out texts; 0 measures none."""
    bootstrap: int = 1000
    """Resamples behind every interval."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_texts(self.training, self.held_out)
        _within(self.context_tokens, 2, MAX_CONTEXT, "context_tokens")
        _within(self.verify_edges, 0, 256, "verify_edges")
        _within(self.bootstrap, 10, 10_000, "bootstrap")
        for index, feature in enumerate(self.start.features):
            _check(
                feature.replacement == self.replacement,
                f"start_features[{index}].replacement",
                f"is {feature.replacement}, and the circuit is of {self.replacement}: name a feature of that",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedGlobalCircuit:
    """What is known of a global circuit before any work."""

    features: int
    """That the layers have."""
    layers: tuple[int, ...]
    training_tokens: int
    """That would be read."""
    held_out_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckGlobalCircuit(Command[CheckedGlobalCircuit, Progress]):
    """Refuse whatever finding a global circuit would be refused for before its first forward pass."""

    command: DiscoverGlobalCircuit


def check_texts(training: Sequence[str], held_out: Sequence[str]) -> None:
    """Refuse splits that are too small or too large, or have a text twice, on one side or on both.

    Raises:
        InvalidRequestError: Naming the text.
    """
    for name, split in (("training", training), ("held_out", held_out)):
        _check(len(split) >= 2, name, "needs at least two texts: edges are compared between halves of them")
    total = len(training) + len(held_out)
    _check(total <= MAX_TEXTS, "training", f"and held_out hold {total} texts; at most {MAX_TEXTS}")
    seen: dict[str, str] = {}
    for name, split in (("training", training), ("held_out", held_out)):
        for number, text in enumerate(split):
            place = f"{name}[{number}]"
            first = seen.setdefault(text, place)
            if first != place:
                raise InvalidRequestError(
                    f"{place} is {first} again: {text[:60]!r}. What is repeated is no further evidence, and "
                    "what is on both sides is not held out: leave it out",
                    field=place,
                )


def _within(value: int, fewest: int, most: int, name: str) -> None:
    _check(fewest <= value <= most, name, f"must be {fewest} to {most}, got {value}")


def _check(holds: bool, name: str, what: str) -> None:
    if not holds:
        raise InvalidRequestError(f"{name} {what}", field=name)
