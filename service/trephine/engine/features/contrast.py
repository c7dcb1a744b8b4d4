"""ContrastFeatures: which features tell two sets of texts apart."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.errors import OverBudgetError, TrephineError
from trephine.domain.features import Contrast, ContrastFeatures, FeatureContrast
from trephine.domain.replacements import ReplacementLayerInfo
from trephine.domain.sites import FeatureRef
from trephine.engine.features.reading import chosen_layers, encode_rows, read_inputs, require_positions
from trephine.engine.features.statistics import auroc, benjamini_hochberg, permutation_p
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.contexts import beginning_caveats
from trephine.engine.runs.batches import batches

_PASS_TOKENS, _PASS_ROWS = 512, 64
_MAX_CELLS = 1 << 28
"""Texts times features: 1 GiB of maxima."""
_SLICE = 1024
"""Features that are tested per quantum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tested:
    """Figures of the features of a layer that vary, `(n,)` each."""

    layer: int
    indices: Tensor
    means: Tensor
    """`(2, n)`."""
    auroc: Tensor
    p_values: Tensor


def contrast_features(
    session: Session, command: ContrastFeatures
) -> Generator[Progress | None, None, Contrast]:
    """Compare maxima over positions >= 1 text by text; one forward pass or one slice of tests per quantum.

    Raises:
        ReplacementNotFoundError: If the set is not loaded.
        LayerOutOfRangeError: If it does not cover a layer.
        InvalidRequestError: If a text is one token long.
        OverBudgetError: If texts times features are too many.
    """
    hosted = session.require_model().pinned()
    layers = chosen_layers(hosted, command.replacement, command.layers)
    rows = [*_encoded(hosted, command.first, "first"), *_encoded(hosted, command.second, "second")]
    _require_room(len(rows), layers)
    caveats = _caveats(hosted, command.replacement, rows)
    yield None
    maxima = yield from _maxima(hosted, command.replacement, layers, rows)
    tested = []
    for number, layer in enumerate(layers):
        yield Progress(stage="test", done=number, total=len(layers))
        tested.append((yield from _test(layer.layer, maxima.pop(layer.layer), command)))
    q_values = benjamini_hochberg(torch.cat([one.p_values for one in tested]))
    return Contrast(
        features=_clearest(tested, q_values, command),
        compared=len(q_values),
        permutations=command.permutations,
        seed=command.seed,
        caveats=caveats,
    )


def _caveats(hosted: HostedModel, name: str, rows: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Say how many texts lack the first token that the set was trained with."""
    said = [caveat for ids in rows for caveat in beginning_caveats(hosted, [name], ids)]
    if not said:
        return ()
    return (f"{len(said)} of {len(rows)} texts: {said[0]}",)


def _encoded(hosted: HostedModel, texts: Sequence[str], field: str) -> list[list[int]]:
    rows = []
    for number, text in enumerate(texts):
        try:
            rows.append(hosted.encode(text))
        except TrephineError as error:
            raise error.with_field(f"{field}[{number}]") from None
        require_positions(rows[-1], field=f"{field}[{number}]")
    return rows


def _require_room(n_texts: int, layers: Sequence[ReplacementLayerInfo]) -> None:
    cells = n_texts * sum(layer.d_sae for layer in layers)
    if cells > _MAX_CELLS:
        raise OverBudgetError(
            f"{n_texts} texts times {cells // n_texts} features do not fit; name fewer layers or texts",
            field="layers",
            limit=_MAX_CELLS,
        )


def _maxima(
    hosted: HostedModel, name: str, layers: tuple[ReplacementLayerInfo, ...], rows: list[list[int]]
) -> Generator[Progress | None, None, dict[int, Tensor]]:
    """Return, per layer, the maximum activation of every feature in every text, `(n_texts, d_sae)`."""
    maxima = {layer.layer: torch.zeros(len(rows), layer.d_sae) for layer in layers}
    for part in batches([len(ids) for ids in rows], max_tokens=_PASS_TOKENS, max_rows=_PASS_ROWS):
        inputs = read_inputs(hosted, layers, [rows[row] for row in part])
        yield Progress(stage="read", done=part.start, total=len(rows))
        for layer in layers:
            for code in encode_rows(hosted, name, inputs, layer):
                maxima[layer.layer][part.start + code.row] = code.activations[1:].amax(0).float().cpu()
            yield None
    return maxima


def _test(layer: int, maxima: Tensor, command: ContrastFeatures) -> Generator[None, None, _Tested]:
    n_first = len(command.first)
    indices = (maxima.amax(0) > maxima.amin(0)).nonzero()[:, 0]
    varied = maxima[:, indices]
    areas, p_values = [], []
    for part in varied.split(_SLICE, dim=1):
        areas.append(auroc(part[:n_first], part[n_first:]))
        p_values.append(permutation_p(part, n_first, permutations=command.permutations, seed=command.seed))
        yield
    means = torch.stack([varied[:n_first].double().mean(0), varied[n_first:].double().mean(0)])
    none = torch.zeros(0, dtype=torch.float64)
    return _Tested(
        layer=layer,
        indices=indices,
        means=means,
        auroc=torch.cat([*areas, none]),
        p_values=torch.cat([*p_values, none]),
    )


def _clearest(
    tested: Sequence[_Tested], q_values: Tensor, command: ContrastFeatures
) -> tuple[FeatureContrast, ...]:
    """Return the smallest p first; of equals the AUROC furthest from 1/2, then the largest difference."""
    found = []
    start = 0
    for one in tested:
        columns = (
            one.indices,
            *one.means,
            one.auroc,
            one.p_values,
            q_values[start : start + len(one.indices)],
        )
        start += len(one.indices)
        for index, first, second, area, p_value, q_value in zip(*(c.tolist() for c in columns), strict=True):
            key = (p_value, -abs(area - 0.5), -abs(first - second), one.layer, index)
            found.append((key, first, second, area, q_value))
    found.sort()
    return tuple(
        FeatureContrast(
            feature=FeatureRef(replacement=command.replacement, layer=key[3], index=key[4]),
            mean_difference=first - second,
            auroc=area,
            p_value=key[0],
            q_value=q_value,
            mean_first=first,
            mean_second=second,
        )
        for key, first, second, area, q_value in found[: command.count]
    )


HANDLERS: dict[type, Handler] = {ContrastFeatures: contrast_features}
"""Commands of this module."""
