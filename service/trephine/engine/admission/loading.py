"""Loading replacement sets beside a model, forgetting them, listing them."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from trephine.domain.commands import Progress
from trephine.domain.errors import AlreadyExistsError, InvalidRequestError, OverBudgetError
from trephine.domain.replacements import (
    Admission,
    ListReplacementSets,
    LoadReplacementSet,
    ReplacementLayerInfo,
    ReplacementSetInfo,
    ReplacementSets,
    ReplacementSource,
    UnloadReplacementSet,
)
from trephine.domain.sites import NEURONS
from trephine.engine.admission.admitting import admit, require_admitted
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.contexts import PROBE, probe_text, text_label
from trephine.engine.replacements.conventions import Reading, following, readings
from trephine.engine.replacements.formats.opening import open_set
from trephine.engine.replacements.identity import check_model, check_sites
from trephine.engine.replacements.layer import LayerReader, ReadSet
from trephine.engine.replacements.residency import LayerPager, default_budget
from trephine.engine.replacements.sets import ReplacementSet, require_set

Steps = Generator[Progress | None, None, ReplacementSetInfo]


def load_replacement_set(session: Session, command: LoadReplacementSet) -> Steps:
    """Open a set, check that it is this model's, admit it, and register it.

    Loading what is loaded already is no work. Nothing is registered if anything fails.

    Raises:
        InvalidRequestError: If the name is reserved.
        AlreadyExistsError: If the name serves a set of other content.
        BrokenReplacementError: If files are broken, or of another model.
        UnsupportedReplacementError: If the format or architecture is not supported.
        OverBudgetError: If one layer alone exceeds the memory budget.
        AdmissionFailedError: If it does not do what it claims, and degraded sets are not accepted.
    """
    hosted, source = session.require_model(), command.source
    if source.name == NEURONS:
        raise InvalidRequestError(
            "`neurons` names the model's own MLP neurons, which are always there; choose another name",
            field="source.name",
        )
    found = _open(hosted, source)
    infos = yield from _described(found)
    digest = set_hash(infos)
    known = hosted.replacements.get(source.name)
    if known is not None:
        return _same(known, digest, source)
    check_model(hosted, found.model_name)
    check_sites(hosted, infos)
    budget = _budget(hosted, source, infos)
    before = command.admitted if _is_same(hosted, command.admitted, infos, digest) else None
    peak = 0
    if before is None:
        admission, reading, peak = yield from _admitted(hosted, source, found, infos, budget)
    else:
        admission, reading = _taken_over(hosted, source, found, before.admission)
    pager = _pager(hosted, source, following(found.layers, reading), budget, peak)
    info = ReplacementSetInfo(
        name=source.name,
        format=found.format,
        content_hash=digest,
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
        layers=infos,
        admission=admission,
        degraded=not admission.passed,
        residency=pager.residency(),
    )
    if source.name in hosted.replacements:  # another load was quicker; this one yielded meanwhile
        return _same(hosted.replacements[source.name], digest, source)
    hosted.replacements[source.name] = ReplacementSet(admitted=info, pager=pager, trained_on=found.trained_on)
    return info


def _open(hosted: HostedModel, source: ReplacementSource) -> ReadSet:
    return open_set(
        Path(source.folder),
        source.format,
        architecture=hosted.architecture,
        allow_unverified=source.allow_unverified,
    )


def _described(found: ReadSet) -> Generator[Progress | None, None, tuple[ReplacementLayerInfo, ...]]:
    """Describe and hash every layer, one a quantum."""
    infos: list[ReplacementLayerInfo] = []
    for reader in found.layers:
        infos.append(reader.info)
        yield Progress(stage="hash", done=len(infos), total=len(found.layers))
    return tuple(infos)


def set_hash(infos: Sequence[ReplacementLayerInfo]) -> str:
    """Return the sha256 over the layers' hashes, in order of layers."""
    listed = "".join(f"{info.layer} {info.content_hash}\n" for info in infos)
    return hashlib.sha256(listed.encode()).hexdigest()


def _same(known: ReplacementSet, digest: str, source: ReplacementSource) -> ReplacementSetInfo:
    """Return what is loaded if it is the same, and refuse another set under its name."""
    if known.admitted.content_hash != digest:
        raise AlreadyExistsError(
            f"the name {source.name} serves a replacement set of other content "
            f"({known.admitted.content_hash[:12]}, not {digest[:12]}); choose another name or unload it",
            replacement=source.name,
        )
    return known.info


def _budget(hosted: HostedModel, source: ReplacementSource, infos: Sequence[ReplacementLayerInfo]) -> int:
    given = source.memory_budget_bytes
    budget = default_budget(hosted.model.device) if given is None else given
    largest = max(infos, key=lambda info: info.memory_bytes)
    if largest.memory_bytes > budget:
        raise OverBudgetError(
            f"layer {largest.layer} of {source.name} alone takes {largest.memory_bytes / 1e6:.1f} MB and the "
            f"memory budget is {budget / 1e6:.1f} MB; raise the budget",
            field="source.memory_budget_bytes",
            needed_bytes=largest.memory_bytes,
            budget_bytes=budget,
        )
    return budget


def _pager(
    hosted: HostedModel, source: ReplacementSource, readers: Sequence[LayerReader], budget: int, peak: int = 0
) -> LayerPager:
    return LayerPager(
        readers,
        budget_bytes=budget,
        folder=Path(source.folder),
        reopen=partial(_reopened, hosted, source),
        device=hosted.model.device,
        peak_bytes=peak,
    )


def _reopened(hosted: HostedModel, source: ReplacementSource) -> Sequence[LayerReader]:
    return _open(hosted, source).layers


def _admitted(
    hosted: HostedModel,
    source: ReplacementSource,
    found: ReadSet,
    infos: Sequence[ReplacementLayerInfo],
    budget: int,
) -> Generator[Progress | None, None, tuple[Admission, Reading, int]]:
    """Probe a set; return the verdict, how inputs are read, and the weights resident at most meanwhile."""
    possible = readings(hosted.architecture, found)
    pager = _pager(hosted, source, found.layers, budget)
    probed = yield from admit(
        hosted, pager, infos, possible, prepends_bos=found.prepends_bos, trained_on=found.trained_on
    )
    pager.clear()
    require_admitted(probed.admission, name=source.name, accept_degraded=source.accept_degraded)
    chosen = next(reading for reading in possible if reading.convention == probed.convention)
    return probed.admission, chosen, pager.residency().peak_bytes


def _is_same(
    hosted: HostedModel,
    before: ReplacementSetInfo | None,
    infos: Sequence[ReplacementLayerInfo],
    digest: str,
) -> bool:
    """True if a probe would find again what it found before: same weights of both, same text and reading."""
    if before is None or before.content_hash != digest or before.weight_hash != hosted.info.weight_hash:
        return False
    if [layer.normalisation for layer in before.layers] != [info.normalisation for info in infos]:
        return False  # admitted by a version that read its configuration in another way
    return before.admission.text == text_label(PROBE, probe_text())


def _taken_over(
    hosted: HostedModel, source: ReplacementSource, found: ReadSet, admission: Admission
) -> tuple[Admission, Reading]:
    require_admitted(admission, name=source.name, accept_degraded=source.accept_degraded)
    possible = {reading.convention: reading for reading in readings(hosted.architecture, found)}
    settled = admission.layers[0].convention
    return admission, next(reading for name, reading in possible.items() if name == settled)


def unload_replacement_set(session: Session, command: UnloadReplacementSet) -> Steps:
    """Forget a set; its layers leave memory with the last pass that uses them.

    Raises:
        ReplacementNotFoundError: If there is none of that name.
    """
    yield from ()
    hosted = session.require_model()
    info = require_set(hosted, command.name).info
    del hosted.replacements[command.name]
    return replace(info, residency=replace(info.residency, resident_bytes=0))


def list_replacement_sets(
    session: Session, command: ListReplacementSets
) -> Generator[Progress | None, None, ReplacementSets]:
    """List the loaded sets, by name."""
    yield from ()
    loaded = session.require_model().replacements
    return ReplacementSets(sets=tuple(loaded[name].info for name in sorted(loaded)))


HANDLERS: dict[type, Handler] = {
    LoadReplacementSet: load_replacement_set,
    UnloadReplacementSet: unload_replacement_set,
    ListReplacementSets: list_replacement_sets,
}
