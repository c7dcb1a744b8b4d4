"""DiscoverGlobalCircuit: from texts to candidates, edges, a circuit, and checks on other texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from time import monotonic

import torch

from trephine.domain.circuits import Circuit
from trephine.domain.commands import Progress
from trephine.domain.errors import NothingMatchedError
from trephine.domain.global_circuits import DiscoverGlobalCircuit
from trephine.domain.global_figures import GlobalFigures, HeldOutTransfer
from trephine.engine.global_circuits.ablations import measure_losses
from trephine.engine.global_circuits.activity import Activity, measure_activity
from trephine.engine.global_circuits.candidates import Eligible, grown, strongest
from trephine.engine.global_circuits.coactivation import Ends, measure_coactivation
from trephine.engine.global_circuits.coverage import measure_coverage
from trephine.engine.global_circuits.describing import Described, described
from trephine.engine.global_circuits.dictionaries import Chosen, FeatureSpace, feature_space, start_features
from trephine.engine.global_circuits.growth import GrownCircuit, grow
from trephine.engine.global_circuits.measured import MeasuredEdges, measured_edges
from trephine.engine.global_circuits.promoted import promoted_tokens
from trephine.engine.global_circuits.readouts import Readouts, named_readouts
from trephine.engine.global_circuits.texts import FIRST, Ids, count_read, pack_texts, read_splits
from trephine.engine.global_circuits.transfer import overlap, sampled, split_half, transfers
from trephine.engine.global_circuits.virtual import VirtualWeights, virtual_weights
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.memory import MemoryMeter
from trephine.engine.models.session import Handler, Session
from trephine.engine.verification.statistics import Bootstrap

_TOKENS = 2048
"""Tokens of the texts whose embeddings can be nodes, the most frequent."""
_LOGITS = 512
"""Logits that can be nodes, those that candidates promote most."""

Steps = Generator[Progress | None, None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A request made ready."""

    hosted: HostedModel
    command: DiscoverGlobalCircuit
    space: FeatureSpace
    training: list[Ids]
    held_out: list[Ids]
    start: list[int]
    """Numbers of features in the space."""
    readouts: Readouts
    meter: MemoryMeter

    @property
    def boundary(self) -> int:
        """The block below which the direction reads; 0 without one."""
        return 0 if self.readouts.direction is None else int(self.readouts.boundary[-1])


def discover_global_circuit(
    session: Session, command: DiscoverGlobalCircuit
) -> Generator[Progress | None, None, Circuit]:
    """Find and check a global circuit; a forward pass, or a block of products, per quantum.

    Raises:
        TrephineError: Naming the text, the feature or the option that cannot be used.
    """
    started = monotonic()
    study = prepared(session.require_model().pinned(), command)
    yield Progress(stage="texts", done=1, total=1)
    packs = pack_texts(study.training, study.hosted.model.device)
    activity = yield from measure_activity(study.hosted, study.space, packs, study.meter)
    chosen = yield from _candidates(study, activity)
    virtual = yield from virtual_weights(study.hosted, chosen, study.boundary)
    ends = yield from _ends(study, chosen, virtual, activity)
    sums = yield from measure_coactivation(study.hosted, chosen, packs, ends, command.weighting, study.meter)
    edges = measured_edges(
        study.hosted, chosen, ends, study.readouts, virtual, activity, sums, command.weighting
    )
    study.meter.sample()
    del sums
    yield None
    places = torch.searchsorted(chosen.features, torch.tensor(study.start, dtype=torch.int64)).tolist()
    has_direction = study.readouts.direction is not None
    found = yield from grow(edges, places, len(study.readouts.tokens), has_direction, command.bounds)
    _require_something(found, study)
    across = yield from _checked(study, activity, edges, found)
    what = Described(
        hosted=study.hosted,
        command=command,
        edges=edges,
        grown=found,
        activity=activity,
        written=virtual.written,
        across=across,
    )
    return (yield from described(what, started, study.meter))


def prepared(hosted: HostedModel, command: DiscoverGlobalCircuit) -> Study:
    """Read texts, set and start of a request; no pass is run.

    Raises:
        TrephineError: What is wrong with any of them, with its field.
    """
    space = feature_space(hosted, command.replacement, command.layers)
    training, held_out = read_splits(hosted, command)
    return Study(
        hosted=hosted,
        command=command,
        space=space,
        training=training,
        held_out=held_out,
        start=start_features(hosted, space, command.start.features),
        readouts=named_readouts(hosted, command.start),
        meter=MemoryMeter(hosted.model.device),
    )


def _candidates(study: Study, activity: Activity) -> Generator[Progress | None, None, Chosen]:
    command, hosted = study.command, study.hosted
    eligible = Eligible(space=study.space, activity=activity, min_active=command.bounds.min_active)
    if command.start.is_empty:
        return (yield from strongest(hosted, eligible, command.bounds.candidates))
    return (yield from grown(hosted, eligible, study.start, study.readouts, command.bounds.candidates))


def _ends(
    study: Study, chosen: Chosen, virtual: VirtualWeights, activity: Activity
) -> Generator[None, None, Ends]:
    """Choose tokens and logits that can be nodes: the most frequent, and what candidates promote most."""
    bounds, named = study.command.bounds, study.readouts.tokens
    counts = Counter(token for ids in study.training for token in ids[FIRST:])
    frequent = sorted(token for token, _ in counts.most_common(_TOKENS if bounds.tokens else 0))
    promoted: tuple[int, ...] = ()
    if bounds.logits:
        sizes = activity.rms_written[chosen.features]
        promoted = yield from promoted_tokens(study.hosted, virtual.written, sizes, _LOGITS)
    others = tuple(token for token in promoted if token not in named)
    return Ends(tokens=tuple(frequent), logits=(*named, *others))


def _require_something(found: GrownCircuit, study: Study) -> None:
    if len(found.between[0]) or len(found.to_logits[0]) or len(found.to_direction):
        return
    raise NothingMatchedError(
        f"no edge has one sign in both halves of the {len(study.training)} training texts: give more texts, "
        "or texts on which the features are active together",
        field="training",
    )


def _checked(
    study: Study, activity: Activity, edges: MeasuredEdges, found: GrownCircuit
) -> Generator[Progress | None, None, GlobalFigures]:
    """Check edges between features on held-out texts, and between halves of the training texts."""
    command, hosted = study.command, study.hosted
    source, target = (found.features[end] for end in found.between)
    bootstrap = Bootstrap(samples=command.bootstrap, seed=command.seed)
    packs = pack_texts(study.held_out, hosted.model.device)
    transfer: tuple[HeldOutTransfer, ...] = ()
    if command.verify_edges and len(source):
        chosen = sampled(edges.weight.cpu()[source, target], command.verify_edges)
        losses = yield from measure_losses(
            hosted, edges.chosen, source[chosen], target[chosen], packs, command.weighting, study.meter
        )
        transfer = yield from transfers(edges, losses, activity, bootstrap, command.seed)
    coverage = yield from measure_coverage(hosted, edges, source, target, packs, bootstrap)
    study.meter.sample()
    yield None
    return GlobalFigures(
        weighting=command.weighting,
        training=len(study.training),
        held_out=len(study.held_out),
        training_tokens=count_read(study.training),
        held_out_tokens=count_read(study.held_out),
        context_tokens=command.context_tokens,
        features=study.space.count,
        active_features=int((activity.active >= command.bounds.min_active).sum()),
        candidates=edges.chosen.count,
        transfer=transfer,
        split_half=split_half(edges, source, target, bootstrap),
        split_half_overlap=overlap(edges, found.features, command.bounds.edges_per_node),
        coverage=coverage,
        seed=command.seed,
    )


HANDLERS: dict[type, Handler] = {DiscoverGlobalCircuit: discover_global_circuit}
