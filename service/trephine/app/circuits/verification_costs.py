"""What a verification is predicted to take, from the circuit, the options and the sets' description."""

from __future__ import annotations

from trephine.app.circuits.graph_sets import spanned_layers
from trephine.app.jobs.costs import Cost, Sets, feature_counts, forward_bytes
from trephine.app.jobs.prices import block_seconds, logit_seconds, product_seconds
from trephine.domain.circuits import Circuit
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS
from trephine.domain.verification import Substitute, VerificationOptions, VerifyCircuit

_RETAIN_TOKENS, _FIT_TOKENS = 1024, 4096
"""The text of mean ablation, and the text that a random dictionary is fitted on."""
_WINDOWS, _WINDOW_TOKENS = 4, 128
"""Of the text of mean ablation, in one pass."""
_GROUP_KINDS = 4
_STEP_PASSES = 8
"""Of the search over masks: a pass, its adjoint, its rounded mask, and as many random masks."""
_BATCH_TOKENS = 256
_FLOAT, _HALF = 4, 2

_OVERHEAD_SECONDS, _STEP_SECONDS, _DEPTH_SECONDS = 1.0, 0.6, 0.03
"""Of every examination; of a step of the search, whose sweep is of one prompt; of a node that is followed
upwards through the graph."""
_RANKED = 50
"""Times that all single nodes are ranked in every resample: predictors, baselines, ten deals of the edges."""
_COMPARING_SECONDS = 2.5e-9
"""Of two single nodes, in one of these."""
_MASK_SECONDS = 1.5e-9
"""Of a feature at a position, in one row of a pass: its mask is made, sent and multiplied."""


def verification_cost(command: VerifyCircuit, info: ModelInfo, sets: Sets) -> Cost:
    """Count rows of the prompt; masks are as large as all features of the covered layers, per row."""
    options, prompt = command.options, len(command.circuit.tokens)
    beside = options.control and command.circuit.set_names != (NEURONS,)
    counts = _features(command.circuit, info, sets)
    features, widest = sum(counts), max(info.d_mlp, *counts)
    masks = 3 * max(prompt, _BATCH_TOKENS) * features * _FLOAT
    dictionary = 2 * features * info.d_model * _HALF if beside else 0
    fitted = _FIT_TOKENS if beside else 0
    return Cost(
        tokens=_rows(options) * prompt * (2 if beside else 1) + _RETAIN_TOKENS + fitted,
        memory_bytes=dictionary
        + _averaged(command, info, masks + max(prompt, _BATCH_TOKENS) * widest * 8 * _FLOAT, widest),
        seconds=_seconds(command, info, features) * (2 if beside else 1)
        + (_fitting(info, counts) if beside else 0.0),
    )


def _rows(options: VerificationOptions) -> int:
    """Count rows of passes."""
    rows = options.nodes + options.depth_nodes + _GROUP_KINDS * options.groups
    rows += len(options.substitutes) * (2 * options.random_circuits + 3)
    return rows + _STEP_PASSES * options.adversary_steps


def _seconds(command: VerifyCircuit, info: ModelInfo, features: int) -> float:
    """Return what one examination takes: of the circuit, or of its control."""
    options, prompt = command.options, len(command.circuit.tokens)
    tokens = _rows(options) * prompt
    seconds = _OVERHEAD_SECONDS + options.adversary_steps * _STEP_SECONDS
    seconds += options.depth_nodes * _DEPTH_SECONDS
    seconds += _RANKED * options.bootstrap * options.nodes**2 * _COMPARING_SECONDS
    seconds += block_seconds(tokens, info) + tokens * features * _MASK_SECONDS
    if command.circuit.set_names != (NEURONS,):
        seconds += product_seconds(2.0 * tokens * features * info.d_model)
    if Substitute.MEAN in options.substitutes:
        seconds += block_seconds(_RETAIN_TOKENS, info) + logit_seconds(_RETAIN_TOKENS, info)
    return seconds


def _fitting(info: ModelInfo, counts: list[int]) -> float:
    """Return what fitting a random dictionary takes: a least-squares solution per layer."""
    solved = sum(2.0 * _FIT_TOKENS * count**2 + count**3 for count in counts)
    return block_seconds(_FIT_TOKENS, info) + product_seconds(solved)


def _averaged(command: VerifyCircuit, info: ModelInfo, ablating: int, widest: int) -> int:
    """Bytes of ablating, and of averaging before it: what the text was read as, and logits, which stay."""
    if Substitute.MEAN not in command.options.substitutes:
        return ablating
    kept = _RETAIN_TOKENS * info.d_vocab * _FLOAT
    read = info.n_layers * (info.d_mlp if NEURONS in command.circuit.set_names else info.d_model) + 2 * widest
    reading = _WINDOWS * _WINDOW_TOKENS * read * _FLOAT
    return kept + max(ablating, reading + forward_bytes(_WINDOW_TOKENS, _WINDOWS, info))


def _features(circuit: Circuit, info: ModelInfo, sets: Sets) -> list[int]:
    """Count the features of every layer of every set; of a set that is not known as many as neurons."""
    spanned = spanned_layers(circuit.set_names, info, sets, circuit.layers)
    unknown = (name for name in circuit.set_names if name != NEURONS and name not in sets)
    guessed = (feature_counts(name, info, sets, circuit.layers).values() for name in unknown)
    return [one.d_sae for one in spanned] + [count for counts in guessed for count in counts]
