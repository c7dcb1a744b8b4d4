"""Which features an export benchmark ablates: drawn by seed from those that matter, over all depths.

What a feature must fulfil is held against the very tokens that its figures will be of: all those of the
measured text on which it fires. That is no selection by outcome: the condition is of the unedited model and
the intervened runtime alone, and no export has been compiled when it is decided. Held against other tokens it
would be another feature's as often as not: of a draw that asked for two firing tokens of another text, four
of ten did less than `LEAST_KL` where they were measured.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.replacements import NAME
from trephine.domain.interventions import Ablate, FeatureTarget, Intervention, Operation
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.replacements.sets import opened
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import windows_logits
from trephine.engine.weights.capture import captured, stacked

LEAST_KL = 1e-2
"""Nats by which a feature that matters moves the tokens on which it fires, if it is ablated."""
DENSITY = (1e-3, 0.2)
ENOUGH = 16
"""Firing tokens that a feature's figures are of. A mean over a few is a matter of one or two of them; sixteen
are what an attack on an edit tests on as well."""
FITTABLE = 2
"""Firing tokens of the text that fits are made on: no tier can be fitted where nothing fires."""
WINDOW = 128
FIT_WINDOWS = 16
MEASURED_WINDOWS = 48
"""With the former 8,192 tokens."""
TRIES = 6
"""Candidates of a layer before another one is turned to."""
ROUNDS = 40
Windows = list[tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Parts of one text: grafts are fitted on the first, figures are of windows of the second."""

    fit: Windows
    measured: Windows

    @property
    def digest(self) -> str:
        """Tell texts apart."""
        return hashlib.sha256(repr((self.fit, self.measured)).encode()).hexdigest()


def split(hosted: HostedModel, text: str, fit: int = FIT_WINDOWS, measured: int = MEASURED_WINDOWS) -> Texts:
    """Cut a text into windows."""
    tokens: list[int] = list(hosted.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    windows = [tuple(tokens[n * WINDOW : (n + 1) * WINDOW]) for n in range(fit + measured)]
    return Texts(fit=windows[:fit], measured=windows[fit:])


# --- which features ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A feature that matters, and where that was seen."""

    feature: FeatureRef
    density: float
    """Over both texts."""
    tokens: int
    """Of the measured text, on which it fires: its figures are of these."""
    kl: float
    """KL(original || ablated), mean over these, nats."""
    kl_of_edit: float
    """KL(ablated || original), of which recovery is a share."""


def draw(
    hosted: HostedModel,
    texts: Texts,
    count: int,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[Drawn]:
    """Draw features that matter, spread over thirds of the layers; each is confirmed by its real ablation.

    Args:
        hosted: With a set of transcoders that read the MLPs' inputs, named as benches name it.
        texts: What fits and figures are of.
        count: How many features.
        seed: Of the order in which layers and candidates are tried.
        say: Told of every layer that was tried.

    Raises:
        LookupError: The text has too few of them.
    """
    n_layers, generator = hosted.info.n_layers, random.Random(seed)
    sites = [Site(kind=SiteKind.MLP_IN, layer=layer) for layer in range(n_layers)]
    inputs = finish(captured(hosted, texts.fit + texts.measured, sites, ()))
    trials = [
        Trial(hosted=hosted, texts=texts, layer=n, inputs=stacked(inputs[site]))
        for n, site in enumerate(sites)
    ]
    chosen: list[Drawn] = []
    for third in range(3):
        part = [trial for trial in trials if trial.layer * 3 // n_layers == third]
        chosen += _of_layers(part, (count + 2 - third) // 3, generator, say)
    return sorted(chosen, key=lambda each: each.feature)


def _of_layers(
    trials: list[Trial], wanted: int, generator: random.Random, say: Callable[[str], None]
) -> list[Drawn]:
    """Draw from some layers, another one at each turn."""
    chosen: list[Drawn] = []
    tried: set[tuple[int, int]] = set()
    for _ in range(ROUNDS):
        generator.shuffle(trials)
        for trial in trials[: wanted - len(chosen)]:
            active, indices = trial.candidates()
            order = [index for index in indices if (trial.layer, index) not in tried]
            generator.shuffle(order)
            tried |= {(trial.layer, index) for index in order[:TRIES]}
            found = trial.first(order[:TRIES], active)
            chosen += [] if found is None else [found]
            say(f"layer {trial.layer}, of {len(order)} candidates: {_told(found)}")
    if len(chosen) < wanted:
        layers = ", ".join(str(number) for number in sorted(trial.layer for trial in trials))
        raise LookupError(
            f"{len(chosen)} of {wanted} features that matter in layers {layers}: give more text"
        )
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A layer, and the text that its features are held against."""

    hosted: HostedModel
    texts: Texts
    layer: int
    inputs: Tensor
    """Of the MLP over both texts, `(n, d_model)`."""

    def candidates(self) -> tuple[Tensor, list[int]]:
        """Choose features by what needs no ablation.

        Of those of fitting density that fire often enough it is the quarter that writes most where it fires:
        the others hardly ever reach `LEAST_KL`, and trying them all would take hours.

        Returns:
            Where the layer's features fire over both texts, bool `(n, d_sae)`; indices of the candidates.
        """
        with opened(self.hosted, NAME, [self.layer]) as layers:
            code, norms = layers[self.layer].encode(self.inputs), layers[self.layer].decoder_norms()
        active = code.active.cpu()
        size = (code.activations.abs().sum(0) / code.active.sum(0).clamp_min(1) * norms).cpu()
        fits = self._fit(active)
        strong = fits & (size >= size[fits].quantile(0.75)) if bool(fits.any()) else fits
        return active, strong.nonzero()[:, 0].tolist()

    def _fit(self, active: Tensor) -> Tensor:
        """Hold all features against density and counts, `(d_sae,)`."""
        fit, measured = active[: self._n_fit], active[self._n_fit :]
        density = active.double().mean(0)
        fits = (density >= DENSITY[0]) & (density <= DENSITY[1])
        return fits & (fit.sum(0) >= FITTABLE) & (measured.sum(0) >= ENOUGH)

    @property
    def _n_fit(self) -> int:
        return sum(map(len, self.texts.fit))

    def first(self, indices: Sequence[int], active: Tensor) -> Drawn | None:
        """Return the first of some features that matters."""
        for index in indices:
            fires = active[self._n_fit :, index].unflatten(0, (len(self.texts.measured), -1))
            densest = int(fires.sum(1).argmax())
            if self.effects(index, [densest], fires)[0] < LEAST_KL:
                continue  # most fail here, after a single window
            kl, kl_of_edit = self.effects(index, heard(fires), fires)
            if min(kl, kl_of_edit) >= LEAST_KL:
                return Drawn(
                    feature=self._ref(index),
                    density=float(active[:, index].double().mean()),
                    tokens=int(fires.sum()),
                    kl=kl,
                    kl_of_edit=kl_of_edit,
                )
        return None

    def effects(self, index: int, chosen: Sequence[int], fires: Tensor) -> tuple[float, float]:
        """Return KL(original || ablated) and KL(ablated || original), nats.

        Both are means over the firing tokens of some of the measured windows.
        """
        ablation, there, back = (intervention(self._ref(index), Ablate()),), 0.0, 0.0
        for start in range(0, len(chosen), 2):
            part = list(chosen[start : start + 2])
            windows = [self.texts.measured[n] for n in part]
            plain, changed = (windows_logits(self.hosted, windows, each) for each in ((), ablation))
            for n, p, c in zip(part, plain, changed, strict=True):
                there += float(kl_divergence(p, c)[fires[n]].sum())
                back += float(kl_divergence(c, p)[fires[n]].sum())
        count = max(int(fires[list(chosen)].sum()), 1)
        return there / count, back / count

    def _ref(self, index: int) -> FeatureRef:
        return FeatureRef(replacement=NAME, layer=self.layer, index=index)


def _told(found: Drawn | None) -> str:
    if found is None:
        return "none of those tried"
    return f"feature {found.feature.index}, {found.kl:.2e} nats on {found.tokens} tokens"


def intervention(feature: FeatureRef, operation: Operation) -> Intervention:
    """Change a feature everywhere."""
    return Intervention(target=FeatureTarget(feature=feature), operation=operation)


def firing(hosted: HostedModel, windows: Windows, features: Sequence[FeatureRef]) -> dict[FeatureRef, Tensor]:
    """Return where each feature is active, bool `(n_windows, n_pos)`."""
    sites = {ref: Site(kind=SiteKind.MLP_IN, layer=ref.layer) for ref in features}
    inputs = finish(captured(hosted, windows, sorted(set(sites.values())), ()))
    masks: dict[FeatureRef, Tensor] = {}
    for ref, site in sites.items():
        with opened(hosted, NAME, [ref.layer]) as layers:
            active = layers[ref.layer].encode_features(stacked(inputs[site]), [ref.index])[:, 0] != 0
        masks[ref] = active.reshape(len(windows), -1).cpu()
    return masks


def heard(fires: Tensor) -> list[int]:
    """Number the windows in which something fires, of `(n_windows, n_pos)`."""
    return fires.any(1).nonzero()[:, 0].tolist()
