"""What to do about an export that missed a gate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trephine.domain.exports import GateResult
from trephine.engine.certificates.gates import kind_of

_WIDER = (
    "load the model in float32, which rounds less, and export again; what is missed there is not rounding"
)
_MORE_TEXT = (
    "give some thousands of tokens in which the edited features fire, as the text that grafts and fits are "
    "calibrated on (--text)"
)
_CLOSER = f"{_MORE_TEXT}, or edit fewer features at a time; without grafts, {_WIDER}"
_AS_STORED = (
    "the folder does not do what was asked when it is run in the type of its files, which is narrower: "
    f"{_CLOSER.partition(';')[0]}; or start from a parent whose files are float32"
)
_MORE, _LESS = "make the edit stronger", "lower the edit's strength"
_LOST = (
    "nothing of a planned change is left once it is rounded to the type of the files, as the plan's "
    f"predicted error says: {_MORE}, or start from a parent whose files are float32. Of a "
    "change that is not small, check the disk of the export root, export again, and report it"
)
_STRONGER = f"{_MORE}, of which rounding is a smaller share"
_WEAKER = f"{_LESS}, for what is rounded of a change grows with it"
_ROUNDED = (
    "what is written exactly is rounded to the type of the files, and the plan's predicted error says how "
    f"much of the change that costs: start from a parent whose files are float32, or {_STRONGER}; and load "
    "the model in float32 where it is not"
)
_OTHER_BYTES = (
    "the folder does not hold what was planned, which no option mends: check the disk of the export root, "
    "load the model again, export again, and report it if it comes back"
)
_OTHER_THING = (
    "computing in float32, where no noise of a narrow type hides it, the folder does something else than the "
    "intervention: export again, edit fewer things at a time to find which, and report it"
)
_GENTLER = (
    "the weights do more to ordinary text than the intervention does: "
    f"{_MORE_TEXT}, edit fewer features at a time, or {_LESS}"
)
REMEDIES: Mapping[str, str] = {
    "kl_intervened_exported_mean": _CLOSER,
    "kl_intervened_exported_p99": _CLOSER,
    "kl_intervened_exported_after_first_mean": _CLOSER,
    "kl_intervened_exported_same_attention_mean": _WIDER,
    "kl_intervened_exported_firing_mean": _CLOSER,
    "kl_intervened_exported_in_float32_mean": _OTHER_THING,
    "unrecovered_in_float32": _OTHER_THING,
    "unrecovered_in_float32_firing": _OTHER_THING,
    "kl_intervened_exported_in_stored_dtype_mean": _AS_STORED,
    "kl_intervened_exported_in_stored_dtype_firing_mean": _AS_STORED,
    "unrecovered_firing": (
        f"the folder does not do where its features fire what the intervention does: {_CLOSER}; of what can "
        "only be fitted, a smaller share may be accepted (--min-recovery)"
    ),
    "retain_excess": _GENTLER,
    "retain_builtin_excess": _GENTLER,
    "uncarried": (
        "the folder does not do what one of the features, neurons, heads or directions does of the edit, "
        f"whatever it does of the others: {_MORE_TEXT}, or leave this feature out of the edit"
    ),
    "unrecovered": (
        f"{_MORE_TEXT}; let features be grafted in place of fitted (without --keep-shapes); or accept a "
        "smaller share (--min-recovery), with which the export is labelled"
    ),
    "tensors_changed_outside_plan": _OTHER_BYTES,
    "files_changed_outside_plan": _OTHER_BYTES,
    "planned_tensors_unchanged": _LOST,
    "elements_off_plan": _OTHER_BYTES,
    "nonfinite_values": (
        f"weights or answers overflow: {_LESS}, or start from a parent in bfloat16 or "
        "float32 in place of float16"
    ),
    "load_differences": (
        "stock transformers does not find the parent's own keys in the folder: use the transformers release "
        "that the parent's config.json names, and report it if that one differs too"
    ),
}
"""By gate: what to do about an export that missed it."""
_OF_ROUNDING = (
    "kl_intervened_exported_mean",
    "kl_intervened_exported_p99",
    "kl_intervened_exported_after_first_mean",
    "kl_intervened_exported_same_attention_mean",
    "retain_excess",
    "retain_builtin_excess",
    "unrecovered",
)
EXACT_REMEDIES: Mapping[str, str] = {**REMEDIES} | dict.fromkeys(_OF_ROUNDING, _ROUNDED)
"""The same of exports of which all is exact: no text calibrates them, and no feature of a set fires."""
_WIDE = ("float32", "float64")
_RUNTIME_ROUNDS = (
    "what is written exactly stays as it is in the files, which are float32, and is rounded where the "
    f"runtime computes: load the model in float32, or {_STRONGER}"
)
_NOTHING_ROUNDS = (
    f"files and runtime are float32 already, so that little is rounded: {_STRONGER}, and report it if it is "
    "missed then, too"
)
_LOST_IN_FLOAT32 = (
    f"nothing of a planned change is left once it is rounded to float32: {_MORE}. Of a change "
    "that is not small, check the disk of the export root, export again, and report it"
)
_OF_STRENGTH: Mapping[str, str] = {
    **{
        part: rest
        for strength in (_STRONGER, _WEAKER)
        for part, rest in (
            (f", or {strength}", ""),
            (f": {strength}, and report", ": edit fewer things at a time to find which, and report"),
        )
    },
    f", edit fewer features at a time, or {_LESS}": ", or edit fewer features at a time",
    f"{_MORE}, or ": "",
    f"{_LESS}, or ": "",
    f"is rounded to float32: {_MORE}. Of": "is rounded to float32. Of",
}
"""What is said of strength in an advice, and what stands there where nothing is to be said of it."""
_CLOSER_IN_FLOAT32 = _CLOSER.partition(";")[0]


def remedies(
    results: Iterable[GateResult], *, exact: bool = False, files: str = "", runtime: str = ""
) -> tuple[str, ...]:
    """Say what to do about the gates that were missed, each advice once, in their order.

    Args:
        results: Of all gates.
        exact: Whether all of the edit is compiled exactly.
        files: Type of the parent's files; empty: unknown.
        runtime: Type that the model is loaded in; empty: unknown.
    """
    advice = _advice(exact=exact, wide_files=files in _WIDE, wide_runtime=runtime in _WIDE)
    missed = dict.fromkeys(advice[kind_of(result.gate)] for result in results if not result.passed)
    return tuple(dict.fromkeys(_agreeing(tuple(missed))))


def _agreeing(told: tuple[str, ...]) -> tuple[str, ...]:
    """Leave strength out where one advice is to make the edit stronger and another to make it weaker.

    What is missed by the share that is left as well as by the distance is missed at either strength.
    """
    both = any(_MORE in one for one in told) and any(_LESS in one for one in told)
    return tuple(_whatever_strength(one) for one in told) if both else told


def _whatever_strength(told: str) -> str:
    """Leave out the part of an advice that is of the edit's strength, and say what is left of it."""
    for part, rest in _OF_STRENGTH.items():
        told = told.replace(part, rest)
    return told


def _advice(*, exact: bool, wide_files: bool, wide_runtime: bool) -> Mapping[str, str]:
    """Leave out what is done already: what is float32 cannot be made wider."""
    advice = dict(EXACT_REMEDIES if exact else REMEDIES)
    if wide_files:
        advice["planned_tensors_unchanged"] = _LOST_IN_FLOAT32
    if exact and wide_files:
        advice |= dict.fromkeys(_OF_ROUNDING, _NOTHING_ROUNDS if wide_runtime else _RUNTIME_ROUNDS)
    if exact and not wide_files and wide_runtime:
        advice |= dict.fromkeys(_OF_ROUNDING, _ROUNDED.partition("; and load")[0])
    if exact:  # distances grow with an edit, and only the share that is left of it shrinks
        far = [gate for gate in _OF_ROUNDING if gate != "unrecovered"]
        advice |= {gate: advice[gate].replace(_STRONGER, _WEAKER) for gate in far}
    if not exact and wide_runtime:
        wider = {gate: told for gate, told in advice.items() if _WIDER in told}
        advice |= {
            gate: _CLOSER_IN_FLOAT32 if told == _WIDER else told.replace(f"; without grafts, {_WIDER}", "")
            for gate, told in wider.items()
        }
    return advice
