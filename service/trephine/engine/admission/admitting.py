"""Admission: does a set do on this model what it claims?

The probe text runs once through the model; every layer reconstructs what it is meant to reconstruct. A
wrong model, a wrong hook, a lost threshold or a dropped normalisation shows as an L0 far from the claim or
as an FVU of 1 and more. FVU is the sum of squared errors over the sum of per-dimension variances; position 0
is left out of it (an attention sink) and reported apart.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.errors import AdmissionFailedError
from trephine.domain.replacements import Admission, LayerAdmission, ReplacementLayerInfo
from trephine.domain.sites import Site
from trephine.engine.admission.fidelity import Fidelity, LayerFidelity
from trephine.engine.admission.stream import UpwardStream
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.contexts import (
    PROBE,
    Beginning,
    beginning,
    contexts_of,
    n_tokens,
    probe_text,
    text_label,
)
from trephine.engine.replacements.conventions import Convention, Reading, read_as
from trephine.engine.replacements.normalisation import UNNAMED_CENTRING, UNNAMED_FACTOR
from trephine.engine.replacements.positions import EVERYTHING, TrainedTokens
from trephine.engine.replacements.sets import Pager

CONTEXT_TOKENS = 128
L0_FACTOR = 2.0
"""L0 may be half to twice the claim: texts differ by tens of percent, a lost threshold by a factor of ten."""
FVU_LIMIT = 1.0
"""Predicting the mean has an FVU of 1; a dictionary that does worse reconstructs something else."""
MARGIN = 1.1
"""FVU of the second-best input convention over the best one's, each the median over layers. Both are read on
the same tokens, so that noise of the text is about a percent. The wrong one is 15 times worse on SmolLM2's
transcoders (1.6 times in the closest layer) and 1.15 times on random models whose gains spread by 0.3."""
_HELD_BYTES = 8 << 20
"""Activations held at once: a set is probed in groups of layers, upwards, so that this stays small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What a probe found: the verdict, and how inputs are to be read from now on."""

    admission: Admission
    convention: Convention


def admit(
    hosted: HostedModel,
    pager: Pager,
    infos: Sequence[ReplacementLayerInfo],
    readings: Sequence[Reading],
    *,
    prepends_bos: bool | None,
    trained_on: TrainedTokens = EVERYTHING,
) -> Generator[Progress | None, None, Probed]:
    """Probe a set: one context or one layer a quantum; layers come and go within the pager's budget.

    Args:
        hosted: The model.
        pager: The set's layers as they are stored.
        infos: Ascending by layer.
        readings: One per way to read the inputs; the first where nothing is ambiguous.
        prepends_bos: The set's own word.
        trained_on: The set's own word too; other tokens are no part of the figures.

    Raises:
        UnsupportedReplacementError: If the probe's contexts hold no token that it was trained on.
    """
    text, begin = probe_text(), beginning(hosted, prepends_bos)
    contexts = contexts_of(hosted, text, size=CONTEXT_TOKENS, begin=begin)
    first = torch.tensor([i == 0 for context in contexts for i in range(len(context))])
    counted = trained_on.scope(hosted).counted(contexts)
    probe = _Probe(pager, readings, first, counted)
    stream = UpwardStream(hosted, contexts)
    for group in _groups(infos, first.numel()):
        values = yield from stream.advance(
            [site for info in group for site in (info.site_in, info.sites_out[0])]
        )
        for info in group:
            probe.measure(info, values)
            yield Progress(stage="probe", done=len(probe.found), total=len(infos))
    said = f"contexts begin with {begin.text or 'no token of their own'} ({begin.why})"
    if not trained_on.everything:
        said += f"; {trained_on.described()}"
    return _judged(probe, infos, readings, text_label(PROBE, text), n_tokens(contexts), begin, said)


def _groups(infos: Sequence[ReplacementLayerInfo], tokens: int) -> Iterator[list[ReplacementLayerInfo]]:
    group: list[ReplacementLayerInfo] = []
    held = 0
    for info in infos:
        size = (info.d_in + info.d_out) * tokens * 4
        if group and held + size > _HELD_BYTES:
            yield group
            group, held = [], 0
        group.append(info)
        held += size
    if group:
        yield group


class _Probe:
    """Figures per layer and reading. Contributions to later layers wait until those are measured."""

    def __init__(self, pager: Pager, readings: Sequence[Reading], first: Tensor, counted: Tensor) -> None:
        self._pager, self._readings, self._first, self._counted = pager, readings, first, counted
        self._sums: dict[str, dict[Site, Tensor]] = {reading.convention: {} for reading in readings}
        self.found: dict[int, dict[str, LayerFidelity]] = {}

    @torch.inference_mode()
    def measure(self, info: ReplacementLayerInfo, values: dict[Site, Tensor]) -> None:
        """Measure a layer; all layers that write its first output have been, or it is the last of them."""
        target = info.sites_out[0]
        with self._pager.pinned([info.layer]) as layers:
            for reading in self._readings:
                layer = read_as(layers[info.layer], reading)
                device = values[target].device
                figures = Fidelity(info.d_sae, self._first.to(device), self._counted.to(device))
                waiting = self._sums[reading.convention]
                figures.add_layer(layer, values[info.site_in], waiting)
                self.found.setdefault(info.layer, {})[reading.convention] = figures.score(
                    waiting.pop(target), values[target]
                )


def _judged(
    probe: _Probe,
    infos: Sequence[ReplacementLayerInfo],
    readings: Sequence[Reading],
    text: str,
    tokens: int,
    begin: Beginning,
    said: str,
) -> Probed:
    best, settled = _settled(probe, readings)
    layers = tuple(_layer(info, probe.found[info.layer], best, settled) for info in infos)
    failing = [layer for layer in layers if not layer.passed]
    scaled = sum(info.normalisation.startswith(UNNAMED_FACTOR) for info in infos)
    if scaled:
        said += (
            f"; {scaled} of {len(infos)} layers were trained on scaled inputs and do not name the factor "
            "(norm_scaling_factor): they are read as if it were folded into their weights"
        )
    unsaid = sum(info.normalisation.endswith(UNNAMED_CENTRING) for info in infos)
    if unsaid:
        said += (
            f"; {unsaid} of {len(infos)} layers do not say whether the model's weights were centred when "
            "they were trained (model_from_pretrained_kwargs): they are read as if not. If SAELens' list "
            "says center_writing_weights of their release, as it does of gpt2-small-res-jb, import them "
            "(trephine replacements import) or write that into their cfg.json"
        )
    return Probed(
        admission=Admission(
            passed=not failing,
            why=_why(failing, len(layers), said),
            layers=layers,
            text=text,
            tokens=tokens,
            begins_with=begin.text,
        ),
        convention=best,
    )


def _settled(probe: _Probe, readings: Sequence[Reading]) -> tuple[Convention, bool]:
    """Choose a convention for the whole set, and say whether it wins by the margin."""
    concerned = {layer for reading in readings for layer in reading.norms} or set(probe.found)

    def typical(reading: Reading) -> float:
        return median(probe.found[layer][reading.convention].fvu for layer in concerned)

    order = sorted(readings, key=typical)
    clear = len(order) == 1 or order[0].harmless or typical(order[1]) >= MARGIN * typical(order[0])
    return order[0].convention, clear


def _layer(
    info: ReplacementLayerInfo, found: dict[str, LayerFidelity], best: str, settled: bool
) -> LayerAdmission:
    figures = found[best]
    others = [fidelity.fvu for convention, fidelity in found.items() if convention != best]
    problem = _problem(info, figures)
    if problem is None and not settled:
        shown = ", ".join(f"{name} {fidelity.fvu:.3f}" for name, fidelity in found.items())
        problem = f"the input convention cannot be settled: FVU {shown}, and {MARGIN:g} times is asked for"
    claim = "no L0 claimed" if info.claimed_l0 is None else f"{info.claimed_l0:.1f} claimed"
    return LayerAdmission(
        layer=info.layer,
        l0=figures.l0,
        fvu=figures.fvu,
        l0_first=figures.l0_first,
        fvu_first=figures.fvu_first,
        dead_share=figures.dead_share,
        convention=best,
        margin=min(others) / max(figures.fvu, 1e-12) if others else None,
        passed=problem is None,
        why=problem or f"L0 {figures.l0:.1f} ({claim}), FVU {figures.fvu:.3f}",
    )


def _problem(info: ReplacementLayerInfo, figures: LayerFidelity) -> str | None:
    claimed = info.claimed_l0
    if claimed is not None and not claimed / L0_FACTOR <= figures.l0 <= claimed * L0_FACTOR:
        return f"L0 {figures.l0:.1f} where {claimed:.1f} is claimed, FVU {figures.fvu:.3f}"
    if not figures.fvu < FVU_LIMIT:  # NaN fails too
        return f"FVU {figures.fvu:.3f}, no better than the mean, L0 {figures.l0:.1f}"
    return None


def _why(failing: Sequence[LayerAdmission], count: int, said: str) -> str:
    if not failing:
        return f"all {count} layers pass; {said}"
    shown = "; ".join(f"layer {layer.layer}: {layer.why}" for layer in failing[:5])
    more = "" if len(failing) <= 5 else f"; and {len(failing) - 5} more"
    return f"{len(failing)} of {count} layers fail: {shown}{more}; {said}"


def require_admitted(admission: Admission, *, name: str, accept_degraded: bool) -> None:
    """Refuse a set that failed, unless it was asked for all the same.

    Raises:
        AdmissionFailedError: With the figures of the failing layers.
    """
    if admission.passed or accept_degraded:
        return
    failing = [layer for layer in admission.layers if not layer.passed]
    raise AdmissionFailedError(
        f"replacement set {name} does not do on this model what it claims; {admission.why}. Check that it "
        "was trained on this very model, and that the format and its hooks are the right ones; to load it "
        "all the same, flagged as degraded in every result, pass accept_degraded (--accept-degraded)",
        replacement=name,
        layers=len(failing),
        layer=failing[0].layer,
        l0=failing[0].l0,
        fvu=failing[0].fvu,
    )
