"""From counts to figures, and from figures to claims: does the set beat its controls?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from trephine.domain.replacements import Claim, Dictionary, LayerScore, SplicedLayer, SplicedScore
from trephine.engine.admission.measurement import ALL, MEAN, PLAIN, ZERO, Measured
from trephine.engine.admission.perturbation import Pair, over_depths
from trephine.engine.admission.splice import LayerSource
from trephine.engine.replacements.scores import Bootstrap, Ratio

_GIVEN = Dictionary.GIVEN.value
_NAMED = 6
"""Claims that a caveat names one by one."""
_ALIKE = 0.1
"""L0 of a control may differ so far from the set's without a word."""


class Verdicts:
    """Figures with intervals out of what was measured.

    Args:
        measured: The counts.
        given: The set.
        samples: Bootstrap samples.
        seed: Of the bootstrap.
    """

    def __init__(self, measured: Measured, given: LayerSource, *, samples: int, seed: int) -> None:
        self._measured = measured
        self._sites = {info.layer: info.sites_out[0] for info in given.infos}
        self._samples, self._seed = samples, seed

    def layers(self, controls: Sequence[Dictionary], layers: Sequence[int]) -> tuple[LayerScore, ...]:
        """Score every layer alone, the set first and its controls after it."""
        return tuple(self._layer(layer, kind) for layer in layers for kind in (Dictionary.GIVEN, *controls))

    def spliced(self, controls: Sequence[Dictionary]) -> tuple[SplicedScore, ...]:
        """Score all layers spliced at once."""
        return tuple(self._spliced(kind) for kind in (Dictionary.GIVEN, *controls))

    def claims(self, controls: Sequence[Dictionary], layers: Sequence[int]) -> tuple[Claim, ...]:
        """Compare the set with every control on every figure; a positive difference is the set's."""
        return tuple(claim for control in controls for claim in self._claims(control, layers))

    def of_perturbations(self, controls: Sequence[Dictionary], pairs: Sequence[Pair]) -> Iterator[Claim]:
        """Compare the set with every control on the same perturbations, over all depths."""
        given = over_depths(pairs, Dictionary.GIVEN)
        for control in controls if pairs else ():
            other = over_depths(pairs, control)
            yield self._claim("perturbations, cosine", control, given[0], other[0])
            yield self._claim("perturbations, nmse", control, other[1], given[1])

    def caveats(self, claims: Sequence[Claim]) -> Iterator[str]:
        """Say on which figures the set does not beat a control."""
        for control in dict.fromkeys(claim.control for claim in claims):
            of_control = [claim for claim in claims if claim.control is control]
            lost = [claim.figure for claim in of_control if not claim.beats]
            if lost:
                more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
                yield (
                    f"the set does not beat the {control.value} control on {len(lost)} of {len(of_control)} "
                    f"figures: {', '.join(lost[:_NAMED])}{more}"
                )

    def sizes(self, controls: Sequence[Dictionary]) -> Iterator[str]:
        """Say of which controls more, or fewer, features are active on the scored text than of the set."""
        for control in controls:
            apart = {layer: self._apart(layer, control) for layer in self._sites}
            unlike = [layer for layer, by in apart.items() if abs(by) > _ALIKE]
            if unlike:
                worst = max(unlike, key=lambda layer: abs(apart[layer]))
                yield (
                    f"L0 of the {control.value} control is more than {_ALIKE:.0%} from the set's on the "
                    f"scored text in {len(unlike)} of {len(apart)} layers, furthest in layer {worst} "
                    f"({apart[worst]:+.0%}): the text that it was fitted on differs; elsewhere it is closer"
                )

    def _apart(self, layer: int, control: Dictionary) -> float:
        given = self._measured.l0(_GIVEN, layer).value
        return self._measured.l0(control.value, layer).value / given - 1 if given else 0.0

    def _bootstrap(self, ratio: Ratio) -> Bootstrap:
        return Bootstrap(len(ratio.numerator), self._samples, self._seed)

    def _layer(self, layer: int, kind: Dictionary) -> LayerScore:
        measured, name = self._measured, kind.value
        fvu, l0 = measured.fvu(name, layer, self._sites[layer]), measured.l0(name, layer)
        whole = self._bootstrap(fvu)
        part = self._bootstrap(measured.top1((name, layer)))
        return LayerScore(
            layer=layer,
            dictionary=kind,
            fvu=whole.figure("fvu", fvu),
            l0=whole.figure("l0", l0),
            dead_share=measured.counts[name, layer].dead_share,
            ce_score=part.figure("ce_score", measured.ce_score(name, layer, MEAN)),
            ce_score_zero=part.figure("ce_score_zero", measured.ce_score(name, layer, ZERO)),
            kl_score=part.figure("kl_score", measured.kl_score(name, layer, MEAN)),
            kl_score_zero=part.figure("kl_score_zero", measured.kl_score(name, layer, ZERO)),
            top1_agreement=part.figure("top1_agreement", measured.top1((name, layer))),
            error_share=whole.figure("error_share", measured.error_share(name, [layer])),
        )

    def _spliced(self, kind: Dictionary) -> SplicedScore:
        measured, name = self._measured, kind.value
        bootstrap = self._bootstrap(measured.top1((name, ALL)))
        nats = "nats/token"

        def ce(run: str) -> Ratio:
            return measured.ce((run, ALL))

        return SplicedScore(
            dictionary=kind,
            ce_plain=bootstrap.figure("ce_plain", ce(PLAIN), nats),
            ce_spliced=bootstrap.figure("ce_spliced", ce(name), nats),
            ce_mean_ablated=bootstrap.figure("ce_mean_ablated", ce(MEAN), nats),
            ce_zero_ablated=bootstrap.figure("ce_zero_ablated", ce(ZERO), nats),
            ce_score=bootstrap.figure("ce_score", measured.ce_score(name, ALL, MEAN)),
            ce_score_zero=bootstrap.figure("ce_score_zero", measured.ce_score(name, ALL, ZERO)),
            kl=bootstrap.figure("kl", measured.kl((name, ALL)), nats),
            kl_score=bootstrap.figure("kl_score", measured.kl_score(name, ALL, MEAN)),
            kl_score_zero=bootstrap.figure("kl_score_zero", measured.kl_score(name, ALL, ZERO)),
            top1_agreement=bootstrap.figure("top1_agreement", measured.top1((name, ALL))),
            error_share=bootstrap.figure("error_share", measured.error_share(name, list(self._sites))),
            fvu=bootstrap.mean("fvu", self._fvu_spliced(name)),
            l0=bootstrap.mean("l0", [measured.l0(name, layer, spliced=True) for layer in self._sites]),
            dead_share=fmean(measured.counts_spliced[name, layer].dead_share for layer in self._sites),
            layers=tuple(self._spliced_layer(layer, name, bootstrap) for layer in self._sites),
        )

    def _spliced_layer(self, layer: int, name: str, bootstrap: Bootstrap) -> SplicedLayer:
        measured = self._measured
        return SplicedLayer(
            layer=layer,
            fvu=bootstrap.figure("fvu", measured.fvu(name, layer, self._sites[layer], spliced=True)),
            l0=bootstrap.figure("l0", measured.l0(name, layer, spliced=True)),
            dead_share=measured.counts_spliced[name, layer].dead_share,
        )

    def _fvu_spliced(self, name: str) -> list[Ratio]:
        return [self._measured.fvu(name, layer, site, spliced=True) for layer, site in self._sites.items()]

    def _claims(self, control: Dictionary, layers: Sequence[int]) -> Iterator[Claim]:
        measured, other, covered = self._measured, control.value, list(self._sites)
        yield from self._scored(control, ALL, "all layers spliced")
        yield self._claim_of_means(
            "all layers spliced, fvu", control, self._fvu_spliced(other), self._fvu_spliced(_GIVEN)
        )
        yield self._claim(
            "error share",
            control,
            measured.error_share(other, covered),
            measured.error_share(_GIVEN, covered),
        )
        for layer in layers:
            site = self._sites[layer]
            fvu, given = measured.fvu(other, layer, site), measured.fvu(_GIVEN, layer, site)
            yield self._claim(f"layer {layer}, fvu", control, fvu, given)
            share, given = measured.error_share(other, [layer]), measured.error_share(_GIVEN, [layer])
            yield self._claim(f"layer {layer}, error_share", control, share, given)
            yield from self._scored(control, layer, f"layer {layer}")

    def _scored(self, control: Dictionary, layer: int, where: str) -> Iterator[Claim]:
        measured, other = self._measured, control.value
        for name, figure in (("ce_score", measured.ce_score), ("kl_score", measured.kl_score)):
            for ablation, suffix in ((MEAN, ""), (ZERO, "_zero")):
                given, against = figure(_GIVEN, layer, ablation), figure(other, layer, ablation)
                yield self._claim(f"{where}, {name}{suffix}", control, given, against)
        given, against = measured.top1((_GIVEN, layer)), measured.top1((other, layer))
        yield self._claim(f"{where}, top1_agreement", control, given, against)

    def _claim(self, figure: str, control: Dictionary, better: Ratio, worse: Ratio) -> Claim:
        """Compare two ratios; the first is the one that should be larger."""
        return self._claim_of_means(figure, control, [better], [worse])

    def _claim_of_means(
        self, figure: str, control: Dictionary, better: Sequence[Ratio], worse: Sequence[Ratio]
    ) -> Claim:
        """Compare the means of two lists of ratios; the first is the one that should be larger."""
        difference = self._bootstrap(better[0]).difference_of_means("difference", better, worse)
        return Claim(
            figure=figure,
            control=control,
            beats=difference.low is not None and difference.low > 0,
            difference=difference,
        )
