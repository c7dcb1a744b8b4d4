"""Fidelity of a set and of circuits: reconstruction, predictions of ablations, behaviours, many texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from benchmarks import dataset_circuits, global_circuits
from benchmarks.kept_runs import KeptRuns
from benchmarks.replacements import NAME, followed
from benchmarks.scorecard.entries import (
    LEVEL,
    Entry,
    above_zero,
    at_least,
    by_chance,
    counted,
    mean_of,
    of_standing,
    together,
)
from benchmarks.scorecard.subject import DICTIONARIES, Subject
from benchmarks.verify_circuits import chosen, verified
from trephine.domain.dataset_circuits import NodeAblation
from trephine.domain.findings import Figure, Verdict
from trephine.domain.global_figures import HeldOutTransfer, Measured
from trephine.domain.replacements import Dictionary, EvaluateReplacementSet, ReplacementEvaluation
from trephine.domain.verification import (
    Examination,
    Faithfulness,
    Predictor,
    Substitute,
    VerificationOptions,
    VerificationReport,
)
from trephine.engine.admission.evaluation import evaluate_replacement_set
from trephine.engine.global_circuits.discovery import discover_global_circuit

TASKS = ("simple", "within_rc")
"""Behaviours: agreement of verb and subject, next to each other and across a relative clause."""

# --- reconstruction ------------------------------------------------------------------------------


def reconstruction(subject: Subject) -> Iterator[Entry]:
    """Splice the set into the model, beside dictionaries of its size and L0 that know less."""
    sizes = subject.sizes
    command = EvaluateReplacementSet(
        name=NAME,
        text=subject.text.read_text(encoding="utf-8"),
        text_name=subject.text.name,
        max_contexts=sizes.contexts,
        layers=(0,),
        perturbations=sizes.perturbations,
        seed=sizes.seed,
    )
    found = followed(evaluate_replacement_set(subject.session, command))
    how = f"all layers spliced at once, position 0 left out, {found.contexts} contexts, {found.tokens} tokens"
    by_claim = {
        "ce_score": "all layers spliced, ce_score",
        "kl_score": "all layers spliced, kl_score",
        "error_share": "error share",
    }
    for name, claim in by_claim.items():
        rows = {row.dictionary: getattr(row, name) for row in found.spliced}
        yield Entry(
            figure=_SPLICED[name],
            of="the set",
            value=rows[Dictionary.GIVEN],
            beside=tuple(
                replace(rows[kind], name=kind.value) for kind in rows if kind is not Dictionary.GIVEN
            ),
            bar="better than every control",
            verdict=above_zero([each.difference for each in found.claims if each.figure == claim]),
            how=how,
        )
    yield from _perturbations(found)


_SPLICED = {
    "ce_score": "cross-entropy recovered, mean ablation is 0",
    "kl_score": "KL recovered, mean ablation is 0",
    "error_share": "error's share of the activations (less is better)",
}


_FEWEST_PAIRS = 6
"""Of a depth: the interval of one pair is that pair."""


def _perturbations(found: ReplacementEvaluation) -> Iterator[Entry]:
    """The depths next to the perturbed layer and far above it."""
    pairs = {each.depth: each.pairs for each in found.depths if each.dictionary is Dictionary.GIVEN}
    told = sorted(depth for depth, count in pairs.items() if count >= _FEWEST_PAIRS)
    for depth in told[:1] + told[-1:] * (len(told) > 1):
        rows = {each.dictionary: each for each in found.depths if each.depth == depth}
        own = rows[Dictionary.GIVEN]
        yield Entry(
            figure=f"error of a predicted change, {depth} layers up (1 predicts no change)",
            of="the set",
            value=own.nmse,
            beside=tuple(
                replace(each.nmse, name=kind.value) for kind, each in rows.items() if each is not own
            ),
            bar="below 1",
            verdict=at_least(_mirrored(own.nmse), -1.0),
            how=f"features perturbed in the spliced and in the real model, {own.pairs} pairs, NMSE",
        )


def _mirrored(figure: Figure) -> Figure:
    low = None if figure.high is None else -figure.high
    high = None if figure.low is None else -figure.low
    return Figure(name=figure.name, value=-figure.value, low=low, high=high)


# --- what circuits say about ablations -----------------------------------------------------------


def prediction(subject: Subject) -> Iterator[Entry]:
    """Verify circuits of some prompts by ablations of the real model."""
    sizes, hosted = subject.sizes, subject.hosted
    options = VerificationOptions(
        groups=0, depth_nodes=0, adversary_steps=0, random_circuits=sizes.draws, seed=sizes.seed
    )
    items = chosen(hosted, subject.data)[: sizes.prompts]
    for of, name in DICTIONARIES.items():
        reports = [verified(hosted, item, name, sizes.nodes, options) for item in items]
        yield from predictions(of, reports, options.nodes)


def predictions(of: str, reports: Sequence[VerificationReport], ablations: int) -> Iterator[Entry]:
    """Hold what was predicted of single ablations, and pruned circuits, against their controls."""
    given = [each.given for each in reports]
    controls = [each.control for each in reports if each.control is not None]
    prompts = f"{len(reports)} prompts, at most {ablations} single ablations to zero each"
    for predictor in (Predictor.SHOWN, Predictor.PATHS):
        beaten = [each for each in _BASELINES if (predictor, each) not in _SAME]
        leads = [_lead(given, predictor, each) for each in beaten]
        beside = [replace(each, name=f"less that of {each.name}") for each in leads]
        beside += [_ranks(controls, predictor, "random dictionary")] if controls else []
        yield Entry(
            figure=f"rank correlation of {_PREDICTORS[predictor]} with ablations",
            of=of,
            value=_ranks(given, predictor, predictor.value),
            beside=tuple(beside),
            bar=f"above {', '.join(each.value for each in beaten)}, paired",
            verdict=above_zero(leads),
            how=f"{prompts}; mean over prompts, its interval combined from theirs",
        )
    for asked, p_of in (("sufficient", _p_sufficient), ("necessary", _p_necessary)):
        yield _alone(of, given, asked, p_of)


_PREDICTORS = {Predictor.SHOWN: "the effects shown", Predictor.PATHS: "what the paths say"}


_BASELINES = (Predictor.MAGNITUDE, Predictor.ACTIVATION_GRADIENT, Predictor.PERMUTED)
_SAME = {(Predictor.SHOWN, Predictor.ACTIVATION_GRADIENT)}
"""The shown effect is activation times gradient."""


def _lead(found: Sequence[Examination], predictor: Predictor, baseline: Predictor) -> Figure:
    """Mean paired difference of rank correlations over prompts."""
    return mean_of(
        baseline.value,
        [
            each.difference
            for one in found
            for each in one.comparisons
            if (each.predictor, each.baseline) == (predictor, baseline)
        ],
    )


def _ranks(found: Sequence[Examination], predictor: Predictor, name: str) -> Figure:
    """Mean rank correlation over prompts."""
    return mean_of(
        name,
        [
            each.spearman
            for one in found
            for each in one.agreements
            if each.ablations == "single nodes" and each.predictor is predictor
        ],
    )


def _p_sufficient(found: Faithfulness) -> float:
    return found.p_sufficient


def _p_necessary(found: Faithfulness) -> float:
    return found.p_necessary


def _alone(of: str, given: Sequence[Examination], asked: str, p_of: Callable[[Faithfulness], float]) -> Entry:
    measured = [
        each for one in given for each in one.faithfulness if each.substitute is not Substitute.RESAMPLE
    ]
    p_values = [p_of(each) for each in measured]
    told = sum(p <= LEVEL for p in p_values)
    return Entry(
        figure=f"pruned circuits that are {asked} beyond random ones",
        of=of,
        value=counted("share", told / len(p_values)),
        beside=(counted(f"expected of random circuits at p <= {LEVEL:g}", LEVEL),),
        bar=f"p <= {LEVEL:g} on every prompt",
        verdict=by_chance(p_values),
        how=f"{len(given)} prompts, ablation to zero and to the mean, beside random circuits of equal size",
    )


# --- behaviours ----------------------------------------------------------------------------------


def behaviours(subject: Subject) -> Iterator[Entry]:
    """Find circuits of behaviours on some contexts and measure them on others."""
    given = subject.sizes
    sizes = dataset_circuits.Sizes(
        training=given.examples,
        held_out=given.examples // 2,
        nodes=given.nodes,
        random=given.draws,
        draws=given.draws,
        seed=given.seed,
        first_layer=subject.hosted.info.n_layers // 3,
    )
    kept = KeptRuns(subject.out / "kept-behaviours.json")
    for task in TASKS:
        for name, of in (("transcoders", "the set"), ("neurons", "neurons")):
            cells = dataset_circuits.run_task(
                subject.session, task, [name], subject.data, sizes, kept, [NodeAblation.MEAN]
            )
            for cell in cells:
                yield from _behaviour(task, of, cell)


def _behaviour(task: str, of: str, cell: dataset_circuits.Cell) -> Iterator[Entry]:
    measured, found = cell.measured, cell.found.circuits[0]
    nodes, own = measured.circuit.nodes, measured.circuit.faithfulness
    how = f"{nodes} nodes of {cell.found.candidates}, mean ablation, {measured.examples} held-out contexts"
    yield Entry(
        figure=f"faithfulness of {nodes} nodes, agreement {task}",
        of=of,
        value=own,
        beside=(counted("best random circuit", max(measured.random)),),
        bar=f"at least 0.8, and p <= {LEVEL:g} beside random circuits",
        verdict=together([at_least(own, 0.8), by_chance([measured.p_value or 1.0])]),
        how=how,
    )
    stable = sum(node.stable for node in found.nodes)
    yield Entry(
        figure=f"faithfulness of the stable core, agreement {task}",
        of=of,
        value=own if measured.core is None else measured.core.faithfulness,
        beside=(counted("best random circuit", max(measured.random)), replace(own, name="whole circuit")),
        bar="above the best random circuit",
        verdict=Verdict.INCONCLUSIVE
        if measured.core is None
        else at_least(measured.core.faithfulness, max(measured.random)),
        how=f"{stable} of {nodes} nodes are selected by most subsamples of the training contexts; {how}",
    )


# --- many texts ----------------------------------------------------------------------------------


def global_transfer(subject: Subject) -> Iterator[Entry]:
    """Find the circuit of many texts and check its edges by ablations on others."""
    given = subject.sizes
    sizes = global_circuits.Sizes(
        training=given.texts,
        held_out=given.texts // 6,
        context=64,
        candidates=given.candidates,
        nodes=given.global_nodes,
        verify_edges=given.edges,
        weighting="twera",
        seed=given.seed,
    )
    command = global_circuits.command(NAME, subject.text, sizes)
    found = followed(discover_global_circuit(subject.session, command))
    across = found.across
    if across is None:
        raise ValueError("the circuit is not global")
    texts = f"{across.training} texts, checked on {across.held_out} others"
    for one in across.transfer:
        yield transferred(one, texts)
    if across.split_half is not None:
        yield Entry(
            figure="rank correlation of edges between halves of the texts",
            of="the set",
            value=across.split_half,
            bar="at least 0.7",
            verdict=at_least(across.split_half, 0.7),
            how=texts,
        )
    if across.coverage is not None:
        yield Entry(
            figure="share of direct effects on other texts that the edges carry",
            of="the set",
            value=across.coverage,
            bar="at least 0.8",
            verdict=at_least(across.coverage, 0.8),
            how=f"{texts}; {len(found.nodes)} nodes of {across.features} features",
        )


def transferred(one: HeldOutTransfer, texts: str) -> Entry:
    """Hold global edges against ablations on other texts."""
    enough = 0.7 if one.measured is Measured.TARGET else 0.0
    return Entry(
        figure=f"rank correlation of global edges with ablations, {one.measured.value}",
        of="the set",
        value=one.spearman,
        beside=tuple(replace(each.spearman, name=each.baseline.value) for each in one.comparisons),
        bar=f"at least {enough:g}, and above every baseline",
        verdict=together(
            [at_least(one.spearman, enough)] + [of_standing(each.standing) for each in one.comparisons]
        ),
        how=f"{texts}; {one.edges} edges; {one.how}",
    )
