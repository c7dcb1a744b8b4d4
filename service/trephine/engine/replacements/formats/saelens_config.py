"""SAELens' `cfg.json`, of version 6 and of the flat kind before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trephine.domain.errors import BrokenReplacementError, UnsupportedReplacementError
from trephine.domain.replacements import LayerKind, SupportRule
from trephine.engine.replacements.formats.folders import setting
from trephine.engine.replacements.formats.saelens_model import LoadedAs, loaded_as
from trephine.engine.replacements.normalisation import NormalisationRule
from trephine.engine.replacements.positions import TrainedTokens

CONFIG: Final = "cfg.json"
_LONGEST: Final = 1 << 20
"""Stands for the length of a training context that is not named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What an architecture of SAELens' registry is."""

    kind: LayerKind
    support: SupportRule
    vectors: tuple[str, ...] = ("b_enc",)
    """Tensors of length `d_sae` beside `W_enc`, `W_dec` and `b_dec`."""
    has_skip: bool = False


_JUMP = ("b_enc", "threshold")
ARCHITECTURES: Final[Mapping[str, Traits]] = {
    "standard": Traits(kind=LayerKind.SAE, support=SupportRule.RELU),
    "gated": Traits(kind=LayerKind.SAE, support=SupportRule.GATED, vectors=("b_gate", "b_mag", "r_mag")),
    "topk": Traits(kind=LayerKind.SAE, support=SupportRule.TOPK),
    "abstopk": Traits(kind=LayerKind.SAE, support=SupportRule.ABS_TOPK),
    "jumprelu": Traits(kind=LayerKind.SAE, support=SupportRule.JUMPRELU, vectors=_JUMP),
    "transcoder": Traits(kind=LayerKind.TRANSCODER, support=SupportRule.RELU),
    "skip_transcoder": Traits(kind=LayerKind.SKIP_TRANSCODER, support=SupportRule.RELU, has_skip=True),
    "jumprelu_transcoder": Traits(kind=LayerKind.TRANSCODER, support=SupportRule.JUMPRELU, vectors=_JUMP),
    "jumprelu_skip_transcoder": Traits(
        kind=LayerKind.SKIP_TRANSCODER, support=SupportRule.JUMPRELU, vectors=_JUMP, has_skip=True
    ),
}
REFUSED: Final[Mapping[str, str]] = {
    "matching_pursuit": "its features are chosen one after the other, so that no linear encoder exists",
    "temporal": "its features depend on other positions",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeLensConfig:
    """One folder's configuration, whichever version wrote it."""

    folder: Path
    architecture: str
    d_in: int
    d_out: int
    d_sae: int
    k: int | None
    rescaled: bool
    """TopK selects by pre-activation times decoder norm."""
    finetuned: bool
    """Features are multiplied by a vector of their own before they are decoded (before version 6)."""
    apply_b_dec_to_input: bool
    normalisation: NormalisationRule
    norm_factor: float | None
    """Of `expected_average_only_in`; None if it is not named."""
    hook: str
    hook_out: str | None
    prepend_bos: bool | None
    trained_on: TrainedTokens
    model: LoadedAs
    """How the model was loaded that it was trained on."""
    model_name: str | None
    l0: float | None
    stored: Mapping[str, Any]
    """As read; a part of the hash."""

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.folder.name}/{CONFIG}"


def parse_config(folder: Path, stored: Mapping[str, Any]) -> SaeLensConfig:
    """Check a configuration.

    Raises:
        BrokenReplacementError: If a setting is missing or of a wrong type.
        UnsupportedReplacementError: If it names an architecture or option that is not supported.
    """
    label = f"{folder.name}/{CONFIG}"
    flat = not isinstance(stored.get("metadata"), dict)
    config = _upgraded(stored, label) if flat else dict(stored)
    metadata = config["metadata"]
    architecture = _architecture(config, label)
    _refuse_options(config, metadata, label)
    d_in = setting(config, "d_in", int, label)
    is_sae = ARCHITECTURES[architecture].kind is LayerKind.SAE
    selects = ARCHITECTURES[architecture].support in (SupportRule.TOPK, SupportRule.ABS_TOPK)
    return SaeLensConfig(
        folder=folder,
        architecture=architecture,
        d_in=d_in,
        d_out=d_in if is_sae else setting(config, "d_out", int, label),
        d_sae=setting(config, "d_sae", int, label),
        k=_k(config, label) if selects else None,
        rescaled=selects and bool(config.get("rescale_acts_by_decoder_norm", False)),
        finetuned=bool(config.get("finetuning_scaling_factor", False)),
        apply_b_dec_to_input=is_sae and bool(config.get("apply_b_dec_to_input", True)),
        normalisation=_normalisation(config, label),
        norm_factor=_norm_factor(metadata.get("norm_scaling_factor") or config.get("norm_scaling_factor")),
        hook=_hook(metadata, label),
        hook_out=metadata.get("hf_hook_name_out") or metadata.get("hook_name_out"),
        prepend_bos=metadata.get("prepend_bos"),
        trained_on=_trained_on(metadata, label),
        model=loaded_as(metadata, label, flat=flat),
        model_name=metadata.get("model_name"),
        l0=_claimed_l0(metadata),
        stored=stored,
    )


def _upgraded(stored: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Turn a flat configuration from before version 6 into the nested kind."""
    old = dict(stored)
    for before, after in (
        ("hook_point", "hook_name"),
        ("hook_point_head_index", "hook_head_index"),
        ("activation_fn_str", "activation_fn"),
    ):
        if before in old:
            old.setdefault(after, old.pop(before))
    activation = old.get("activation_fn", "relu")
    if activation == "topk":
        old["architecture"] = "topk"
        old["k"] = (old.get("activation_fn_kwargs") or {}).get("k", old.get("k"))
    elif activation != "relu":
        raise UnsupportedReplacementError(
            f"{label}: activation_fn {activation!r} is not supported", file=label
        )
    normalised = old.get("normalize_activations")
    if isinstance(normalised, bool):
        old["normalize_activations"] = "expected_average_only_in" if normalised else "none"
    # The flat kind had BOS in front and the shift on unless it said otherwise.
    return {"architecture": "standard", **old, "metadata": {"prepend_bos": True, **old}}


def _architecture(config: Mapping[str, Any], label: str) -> str:
    name: str = setting(config, "architecture", str, label)
    if name not in ARCHITECTURES:
        why = REFUSED.get(name, "it is not in SAELens' registry of inference architectures")
        raise UnsupportedReplacementError(
            f"{label}: architecture {name!r} is not supported: {why}. Supported: {', '.join(ARCHITECTURES)}",
            file=label,
            architecture=name,
        )
    return name


def _refuse_options(config: Mapping[str, Any], metadata: Mapping[str, Any], label: str) -> None:
    if metadata.get("hook_head_index") is not None:
        raise UnsupportedReplacementError(
            f"{label}: dictionaries of a single head (hook_head_index) are not supported", file=label
        )
    reshape = config.get("reshape_activations") or "none"
    if reshape not in ("none", "hook_z"):
        raise UnsupportedReplacementError(
            f"{label}: reshape_activations {reshape!r} is not supported", file=label
        )
    if config.get("finetuning_scaling_factor") and config.get("rescale_acts_by_decoder_norm"):
        raise UnsupportedReplacementError(
            f"{label}: finetuning_scaling_factor and rescale_acts_by_decoder_norm together are not supported",
            file=label,
        )


def _normalisation(config: Mapping[str, Any], label: str) -> NormalisationRule:
    name = config.get("normalize_activations") or "none"
    try:
        return NormalisationRule(name)
    except ValueError as error:
        known = ", ".join(rule.value for rule in NormalisationRule)
        extra = (
            " Its whitening matrices are folded into the weights at the end of training; this file's were not"
            if name == "covariance_whitening"
            else ""
        )
        raise UnsupportedReplacementError(
            f"{label}: normalize_activations {name!r} is not supported; supported: {known}.{extra}",
            file=label,
            normalisation=str(name),
        ) from error


def _hook(metadata: Mapping[str, Any], label: str) -> str:
    hook = metadata.get("hf_hook_name") or metadata.get("hook_name")
    if not isinstance(hook, str):
        raise BrokenReplacementError(
            f"{label} names no hook (hook_name or hf_hook_name in its metadata), so that nobody can know "
            "what it reads; write it in",
            file=label,
        )
    return hook


def _k(config: Mapping[str, Any], label: str) -> int:
    k: int = setting(config, "k", int, label)
    if k < 1:
        raise BrokenReplacementError(
            f"{label} has k = {k}; a TopK dictionary needs k of 1 or more", file=label
        )
    return k


def _trained_on(metadata: Mapping[str, Any], label: str) -> TrainedTokens:
    excluded = metadata.get("exclude_special_tokens") or False
    listed = excluded if isinstance(excluded, list) else []
    if not isinstance(excluded, bool | list) or not all(type(token) is int for token in listed):
        raise BrokenReplacementError(
            f"{label}: exclude_special_tokens is {excluded!r}; it is true, false or a list of token ids",
            file=label,
        )
    return TrainedTokens(
        without_special=excluded is True,
        without=tuple(sorted(set(listed))),
        positions=_positions(metadata, label),
    )


def _positions(metadata: Mapping[str, Any], label: str) -> range | None:
    """Read `seqpos_slice`: the arguments of a slice over positions of a training context."""
    given = metadata.get("seqpos_slice")
    if given is None or (isinstance(given, list) and not any(part is not None for part in given)):
        return None
    whole = isinstance(given, list) and all(part is None or type(part) is int for part in given)
    if not whole or len(given) > 3 or (len(given) == 3 and given[2] == 0):
        raise BrokenReplacementError(
            f"{label}: seqpos_slice is {given!r}; it is a list of one to three whole numbers or null",
            file=label,
        )
    size = metadata.get("context_size")
    if not isinstance(size, int):
        if any(part is not None and part < 0 for part in given):
            raise UnsupportedReplacementError(
                f"{label}: seqpos_slice {given} counts from the end of a training context, and no "
                "context_size says how long that was; write it into the metadata",
                file=label,
            )
        size = _LONGEST
    found = range(size)[slice(*given)]
    if not found:
        raise BrokenReplacementError(
            f"{label}: seqpos_slice {given} leaves no position of {size}; correct it", file=label
        )
    return found if found.step > 0 else found[::-1]


def _norm_factor(named: Any) -> float | None:
    return float(named) if isinstance(named, int | float) else None


def _claimed_l0(metadata: Mapping[str, Any]) -> float | None:
    claimed = metadata.get("l0")
    return float(claimed) if isinstance(claimed, int | float) and claimed > 0 else None
