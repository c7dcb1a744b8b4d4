"""How SAELens loaded the model that a dictionary was trained on: `model_from_pretrained_kwargs`.

TransformerLens rewrites weights on request. What the model says stays the same, what lies at some of its
sites does not. Each request is honoured, without effect at the dictionary's sites, or refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from trephine.domain.errors import BrokenReplacementError, UnsupportedReplacementError
from trephine.domain.replacements import LayerKind
from trephine.domain.sites import SiteKind
from trephine.engine.models.architecture import Architecture
from trephine.engine.replacements.hooks import HookPoint

KEY: Final = "model_from_pretrained_kwargs"
_CENTRING: Final = "center_writing_weights"
_CENTRED: Final = frozenset(
    {SiteKind.RESID_PRE, SiteKind.RESID_MID, SiteKind.RESID_POST, SiteKind.ATTN_OUT, SiteKind.MLP_OUT}
)
"""What is written in the residual stream's space: with centred weights it has no mean over dimensions."""
_NO_EFFECT: Final = frozenset(
    {
        "attn_implementation",
        "cache_dir",
        "center_unembed",
        "default_padding_side",
        "default_prepend_bos",
        "device",
        "device_map",
        "dtype",
        "first_n_layers",
        "local_files_only",
        "low_cpu_mem_usage",
        "move_to_device",
        "n_ctx",
        "n_devices",
        "token",
        "torch_dtype",
        "trust_remote_code",
    }
)
"""They choose where and how precisely the same activations are computed, or change logits alone."""
_CHANGE_VALUES: Final = frozenset({"fold_value_biases", "refactor_factored_attn_matrices"})
_OTHER_MODEL: Final = frozenset({"checkpoint_index", "checkpoint_value", "revision"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAs:
    """What was asked for when the model was loaded; what is off or null is left out."""

    asked: Mapping[str, Any]
    named: bool = True
    """False for a flat file that says nothing: those are older than the setting."""

    @property
    def centring(self) -> bool:
        """True if weights that write the residual stream were to be centred."""
        return bool(self.asked.get(_CENTRING))


def loaded_as(metadata: Mapping[str, Any], label: str, *, flat: bool) -> LoadedAs:
    """Read the setting.

    Raises:
        BrokenReplacementError: If it is no mapping.
    """
    given = metadata.get(KEY)
    if given is not None and not isinstance(given, dict):
        raise BrokenReplacementError(
            f"{label}: {KEY} is {given!r}; it is a mapping of settings or null", file=label
        )
    asked = {name: value for name, value in (given or {}).items() if value is not None and value is not False}
    return LoadedAs(asked=asked, named=given is not None or not flat)


def reads_centred(
    how: LoadedAs, architecture: Architecture, point: HookPoint, out: HookPoint, kind: LayerKind, label: str
) -> bool:
    """Say whether the dictionary was trained on activations without their mean over dimensions.

    Raises:
        UnsupportedReplacementError: If the model was loaded in a way that changes what the dictionary reads
            or writes, and that cannot be had from the model as it is.
    """
    for name, value in how.asked.items():
        _require_known(name, value, point, label)
    if not how.centring or not _can_be_centred(architecture):
        return False
    if kind is LayerKind.SAE:
        return point.site.kind in _CENTRED
    if out.site.kind in _CENTRED:
        raise _refused(
            label,
            _CENTRING,
            True,
            "what this transcoder writes was trained without its mean over dimensions, and nothing that it "
            "reads tells that mean. Train it on the model as it is, or take the setting out of the file: "
            "the mean is then a part of its error",
        )
    return False


def centring_matters(architecture: Architecture, point: HookPoint) -> bool:
    """Say whether an activation of this site is another one in a model with centred weights."""
    return _can_be_centred(architecture) and point.site.kind in _CENTRED


def _can_be_centred(architecture: Architecture) -> bool:
    """TransformerLens leaves models alone whose norms do not take the mean out, as do we."""
    return all(block.attention_norm.centred and block.mlp_norm.centred for block in architecture.blocks)


def _require_known(name: str, value: Any, point: HookPoint, label: str) -> None:
    if name == _CENTRING or name in _NO_EFFECT or (name == "revision" and value == "main"):
        return
    if name == "fold_ln":
        # Folded into the next weights, a norm's gain is no part of what an MLP reads.
        if point.site.kind is SiteKind.MLP_IN and not point.pre_gain and not point.ambiguous:
            raise _refused(
                label,
                name,
                value,
                "the MLP's input was then read before the norm's gain. Name the hook as "
                "blocks.L.ln2.hook_normalized, which means that, and take the setting out of the file",
            )
        return
    if name in _CHANGE_VALUES:
        if point.site.kind is SiteKind.ATTN_Z:
            raise _refused(
                label, name, value, "it changes the values of attention heads, which this dictionary reads"
            )
        return
    if name in _OTHER_MODEL:
        raise _refused(
            label,
            name,
            value,
            "the dictionary was trained on another state of the model. Load that one, and take the setting "
            "out of the file",
        )
    raise _refused(
        label,
        name,
        value,
        "it is not known here what it does to activations. If it does nothing, take it out of the file",
    )


def _refused(label: str, name: str, value: Any, why: str) -> UnsupportedReplacementError:
    return UnsupportedReplacementError(
        f"{label}: {KEY} has {name} = {value!r}: {why}", file=label, setting=name
    )
