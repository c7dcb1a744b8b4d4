"""VerifyCircuit: real ablations, baselines, random circuits, an adversary, a random dictionary."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from math import nan
from time import monotonic

from trephine.domain.circuits import Circuit
from trephine.domain.commands import Progress
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import NEURONS
from trephine.domain.targets import TargetKind
from trephine.domain.verification import (
    Examination,
    Faithfulness,
    Substitute,
    VerificationOptions,
    VerificationReport,
    VerifyCircuit,
)
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.memory import MemoryMeter
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.contexts import beginning_caveats, degraded_caveats
from trephine.engine.verification.agreement import ablate, agreements, comparisons, depths, measurements
from trephine.engine.verification.choosing import later_features
from trephine.engine.verification.control import (
    NOTHING_CHOSEN,
    control_circuit,
    control_words,
    is_random,
    l0_of,
    refusal,
)
from trephine.engine.verification.doubts import (
    comparison_caveats,
    count_caveats,
    group_caveats,
    rising_caveats,
)
from trephine.engine.verification.faithfulness import measure_faithfulness, search_worst_case
from trephine.engine.verification.masks import MaskedPrompt
from trephine.engine.verification.statistics import Bootstrap
from trephine.engine.verification.subject import (
    Subject,
    check_circuit,
    counterfactual_ids,
    open_subject,
    opened_layers,
    substitutes,
    unknown_set_caveats,
)


def verify_circuit(
    session: Session, command: VerifyCircuit
) -> Generator[Progress | None, None, VerificationReport]:
    """Verify a circuit; one batch of passes, or one block of a sweep, a quantum.

    Raises:
        ParentChangedError: If the model's weights, or its set, are not those that it was found with.
        ReplacementNotFoundError: If its set is gone.
        InvalidRequestError: If there is nothing to ablate, or the counterfactual has another length.
    """
    return verify_on(session.require_model(), command)


def verify_on(
    hosted: HostedModel, command: VerifyCircuit
) -> Generator[Progress | None, None, VerificationReport]:
    """Do the work of `verify_circuit` on a hosted model."""
    started, circuit, hosted = monotonic(), command.circuit, hosted.pinned()
    check_circuit(hosted, circuit)
    options, meter = command.options, MemoryMeter(hosted.architecture.W_U.device)
    subject = yield from open_subject(hosted, options, circuit, command.kept)
    if Substitute.RESAMPLE in options.substitutes:
        counterfactual_ids(subject.prompt, options)  # refused before anything is ablated
    given = yield from _examine(subject, options, meter, "the circuit", command.supernodes)
    layers = opened_layers(hosted, circuit)
    why = refusal(hosted, circuit, subject.prompt.layers, subject.kept)
    control, l0 = None, (nan, nan)
    if why is None and not options.control:
        why = "not asked for"
    if why is None:
        beside = yield from control_circuit(hosted, circuit, layers, len(subject.kept), options.seed)
        if is_random(beside[1], beside[2]):
            control, random_l0 = yield from _control(beside, options, meter)
            l0 = l0_of(subject), random_l0
        else:
            why = NOTHING_CHOSEN
    return VerificationReport(
        prompt=circuit.prompt,
        target=_target(circuit),
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
        given=given,
        control=control,
        control_note=control_words(circuit, layers, l0) if why is None else why,
        caveats=(
            *count_caveats(given, len(later_features(subject.graph)), options.nodes),
            *group_caveats(subject.graph, command.supernodes if options.groups else ()),
            *_caveats(hosted, subject, options),
            *rising_caveats(given),
            *comparison_caveats(given),
        ),
        seed=options.seed,
        seconds=monotonic() - started,
        peak_extra_bytes=meter.extra_bytes,
        units=circuit.units,
    )


def _control(
    beside: tuple[HostedModel, Circuit, Sequence[int]], options: VerificationOptions, meter: MemoryMeter
) -> Generator[Progress | None, None, tuple[Examination, float]]:
    view, circuit, kept = beside
    subject = yield from open_subject(view, options, circuit, kept)
    examined = yield from _examine(subject, options, meter, "random dictionary", ())
    return examined, l0_of(subject)


def _examine(
    subject: Subject,
    options: VerificationOptions,
    meter: MemoryMeter,
    title: str,
    supernodes: Sequence[Sequence[int]],
) -> Generator[Progress | None, None, Examination]:
    bootstrap = Bootstrap(samples=options.bootstrap, seed=options.seed)
    found = yield from ablate(subject, supernodes, options)
    meter.sample()
    agreeing = yield from agreements(subject, found, bootstrap)
    compared = yield from comparisons(subject, found, bootstrap, options.seed)
    deep = yield from depths(subject, options, found, bootstrap)
    meter.sample()
    faithful: list[Faithfulness] = []
    for kind in options.substitutes:
        become = yield from substitutes(subject.prompt, kind, options)
        faithful.append((yield from measure_faithfulness(subject, options, kind, become)))
        meter.sample()
    worst = yield from search_worst_case(subject, options)
    meter.sample()
    return Examination(
        title=title,
        replacement=" + ".join(subject.circuit.set_names),
        graph_features=int(subject.graph.is_feature.sum()),
        circuit_features=len(subject.kept),
        first_position=subject.first_position,
        baseline=subject.prompt.baseline,
        agreements=agreeing,
        comparisons=compared,
        depths=deep,
        faithfulness=tuple(faithful),
        worst_case=worst,
        measurements=measurements(found),
    )


def _target(circuit: Circuit) -> str:
    one, last = circuit.targets[0], len(circuit.tokens) - 1
    token, against = one.token, one.against
    if len(circuit.targets) != 1 or token is None or one.position != last:
        return circuit.target_label
    return repr(token.display) if against is None else f"{token.display!r} against {against.display!r}"


def _of_features_alone(prompt: MaskedPrompt) -> str:
    said = "Necessity and sufficiency are about features alone: attention"
    stays = "stay in the model when everything outside the circuit is ablated"
    if not prompt.drops_errors:
        return f"{said}, error nodes and what no layer covers {stays}."
    return (
        f"{said} and what no layer covers {stays}. Error nodes do not: they are dropped in every run but the "
        f"model's own, which alone moves the target from {prompt.baseline:+.3f} to {prompt.unablated:+.3f}. "
        "Sufficient is what stays near to the model; what is necessary is counted from errors dropped."
    )


def _caveats(hosted: HostedModel, subject: Subject, options: VerificationOptions) -> tuple[str, ...]:
    said = [
        *degraded_caveats(hosted, subject.circuit.set_names),
        *unknown_set_caveats(subject.circuit),
        "A node's shown effect is its activation times the exact gradient of the real model. It is therefore "
        "the baseline `activation x gradient` itself and cannot beat it; what the graph adds is its edges: "
        "`paths of the graph` is what they predict.",
        "Position 0 is an attention sink and never ablated; the circuit's features there are counted apart.",
        _of_features_alone(subject.prompt),
        "The search over masks finds a lower bound of the damage that some mask does, not the worst mask.",
    ]
    if options.error_term is not ErrorTerm.LIVE and subject.circuit.replacement != NEURONS:
        said.append("The search over masks is left out: with the error term not live it has no derivative.")
    if any(target.kind is TargetKind.ATTENTION for target in subject.circuit.targets):
        said.append(
            "The circuit explains an attention score: its rows are half of the score's slope along each "
            "source, so that the paths are counted twice here; the score is measured before soft cap and "
            "softmax, and what it does to the pattern or to any logit is no part of this."
        )
    if subject.prompt.explained.softcap:
        said.append("Logits are read before the model's soft cap.")
    if subject.circuit.replacement != NEURONS:
        said += beginning_caveats(hosted, subject.circuit.set_names, list(subject.prompt.ids))
    return tuple(said)


HANDLERS: dict[type, Handler] = {VerifyCircuit: verify_circuit}
