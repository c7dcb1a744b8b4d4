"""What a reader of a global circuit must know."""

from __future__ import annotations

from trephine.domain.global_circuits import DiscoverGlobalCircuit
from trephine.domain.global_figures import EdgeWeighting, GlobalBaseline, GlobalFigures
from trephine.domain.sites import NEURONS
from trephine.domain.standings import Standing
from trephine.engine.global_circuits.transfer import FEWEST
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.contexts import beginning_caveats, degraded_caveats


def caveats(hosted: HostedModel, command: DiscoverGlobalCircuit, across: GlobalFigures) -> tuple[str, ...]:
    """Say what the edges are and are not, and what was not shown."""
    name, first = command.replacement, hosted.encode(command.training[0])[:1]
    said = [
        *degraded_caveats(hosted, (name,)),
        *beginning_caveats(hosted, (name,), first),
        "Edges are direct: what the source writes into the stream and the target reads there, with the scale "
        "of the reader's norm held at what it is on each token. What passes through attention or another "
        "MLP is in no edge.",
        _weighting(command.weighting),
        f"Edges were measured between {across.candidates} of {across.features} features; what is not "
        "among them has no edge. Edges without one sign in both halves of the texts were left out.",
        "Nodes are features at any position of any text but the first position, an attention sink.",
    ]
    if name == NEURONS:
        said.append(
            "Neurons are estimates: their activation is split over gate and value, or read off as a slope, "
            "by the half rule, token by token."
        )
    if command.bounds.tokens:
        said.append("Edges from tokens are of bare embeddings, without what positions add to them.")
    if command.bounds.logits or command.start.tokens:
        said.append(
            "A logit weighs tokens by its probability there; its edges are of the logit less the mean logit, "
            "before a soft cap."
        )
    return (*said, *_doubts(command, across))


def _weighting(weighting: EdgeWeighting) -> str:
    if weighting is EdgeWeighting.TWERA:
        return (
            "Edges are means weighted by the target: how much the source adds where the target is active. "
            "Inhibition hides: a source that keeps its target silent is never active beside it."
        )
    return (
        "Edges are means over all tokens, 0 where the target is not active: those of rare features are "
        "small. Inhibition hides: a source that keeps its target silent is never active beside it."
    )


def _doubts(command: DiscoverGlobalCircuit, across: GlobalFigures) -> list[str]:
    said = []
    if not across.transfer:
        why = "not asked for" if not command.verify_edges else f"fewer than {FEWEST} edges could be measured"
        said.append(f"Nothing was shown of these edges on held-out texts: {why}.")
    for one in across.transfer:
        missed = [each.baseline for each in one.comparisons if each.standing is not Standing.BEATS]
        if missed:
            said.append(
                f"On held-out texts, {one.measured.value}, the edges are not shown to predict better than "
                f"{_listed(missed)}."
            )
    return said


def _listed(baselines: list[GlobalBaseline]) -> str:
    return " or ".join(baseline.value for baseline in baselines)
