"""Values of replacement sets, evaluations and fits, small and complete."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from trephine.domain.findings import Figure
from trephine.domain.fitting import FitPoint, FitRecipe, FitReport, FittedLayer, GapClosed
from trephine.domain.replacements import (
    Admission,
    Claim,
    DepthFaithfulness,
    Dictionary,
    LayerAdmission,
    LayerKind,
    LayerScore,
    ReplacementEvaluation,
    ReplacementLayerInfo,
    ReplacementSetInfo,
    Residency,
    SetFormat,
    SplicedLayer,
    SplicedScore,
    SupportRule,
)
from trephine.domain.sites import Site, SiteKind


def write_set(root: Path, name: str = "small") -> Path:
    """A folder that passes every check without an engine: one layer of 6 numbers."""
    folder = root / name / "layer_0"
    folder.mkdir(parents=True)
    header = json.dumps({"W_enc": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}}).encode()
    (folder / "sae_weights.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    (folder / "cfg.json").write_text("{}")
    return folder.parent


def layer_info(layer: int = 0) -> ReplacementLayerInfo:
    """A transcoder of 3 features."""
    return ReplacementLayerInfo(
        layer=layer,
        kind=LayerKind.TRANSCODER,
        support=SupportRule.JUMPRELU,
        site_in=Site(kind=SiteKind.MLP_IN, layer=layer),
        sites_out=(Site(kind=SiteKind.MLP_OUT, layer=layer),),
        d_in=2,
        d_out=2,
        d_sae=3,
        normalisation="none",
        has_skip=False,
        claimed_l0=1.5,
        memory_bytes=24,
        content_hash="l" * 64,
    )


def admission(*, passed: bool = True) -> Admission:
    """One layer, passed or not."""
    why = "every layer is what it claims" if passed else "layer 0: FVU 1.31 is not below 1"
    layer = LayerAdmission(
        layer=0,
        l0=1.4,
        fvu=0.3 if passed else 1.31,
        l0_first=2.0,
        fvu_first=0.9,
        dead_share=0.25,
        convention="stored",
        margin=None,
        passed=passed,
        why=why,
    )
    return Admission(
        passed=passed,
        why=why,
        layers=(layer,),
        text="probe 0123456789ab",
        tokens=512,
        begins_with="<|start|>",
    )


def set_info(
    name: str = "small", *, content_hash: str = "c" * 64, degraded: bool = False, model: str = "tiny"
) -> ReplacementSetInfo:
    """A loaded set of one layer."""
    return ReplacementSetInfo(
        name=name,
        format=SetFormat.SAELENS,
        content_hash=content_hash,
        model=model,
        weight_hash="w" * 64,
        layers=(layer_info(),),
        admission=admission(passed=not degraded),
        degraded=degraded,
        residency=Residency(
            total_bytes=24, resident_bytes=24, peak_bytes=24, budget_bytes=100, loads=1, evictions=0
        ),
    )


def figure(value: float, *, width: float = 0.1, unit: str = "") -> Figure:
    """A number with an interval around it."""
    return Figure(name="f", value=value, low=value - width, high=value + width, unit=unit)


def layer_score(dictionary: Dictionary, fvu: float, layer: int = 0) -> LayerScore:
    """One layer's figures."""
    return LayerScore(
        layer=layer,
        dictionary=dictionary,
        fvu=figure(fvu),
        l0=figure(1.5),
        dead_share=0.25,
        ce_score=figure(1 - fvu),
        ce_score_zero=figure(0.9),
        kl_score=figure(0.8),
        kl_score_zero=figure(0.85),
        top1_agreement=figure(0.7),
        error_share=figure(fvu / 2),
    )


def evaluation(info: ReplacementSetInfo | None = None) -> ReplacementEvaluation:
    """A set that beats a random dictionary and not a frozen decoder."""
    nats = "nats per token"
    return ReplacementEvaluation(
        replacement=info or set_info(),
        layers=(
            layer_score(Dictionary.GIVEN, 0.3),
            layer_score(Dictionary.RANDOM, 0.95),
            layer_score(Dictionary.FROZEN_DECODER, 0.31),
        ),
        spliced=tuple(
            SplicedScore(
                dictionary=one,
                ce_plain=figure(3.2, unit=nats),
                ce_spliced=figure(ce, unit=nats),
                ce_mean_ablated=figure(9.0, unit=nats),
                ce_zero_ablated=figure(11.0, unit=nats),
                ce_score=figure((9 - ce) / 5.8),
                ce_score_zero=figure((11 - ce) / 7.8),
                kl=figure(0.4, unit=nats),
                kl_score=figure(0.9),
                kl_score_zero=figure(0.95),
                top1_agreement=figure(0.8),
                error_share=figure(0.2),
                fvu=figure(ce / 10),
                l0=figure(ce / 2),
                dead_share=ce / 20,
                layers=(SplicedLayer(layer=0, fvu=figure(ce / 10), l0=figure(ce / 2), dead_share=ce / 20),),
            )
            for one, ce in ((Dictionary.GIVEN, 3.9), (Dictionary.RANDOM, 7.5))
        ),
        depths=tuple(
            DepthFaithfulness(
                dictionary=one, depth=1, cosine=figure(1 - nmse / 2), nmse=figure(nmse), pairs=16
            )
            for one, nmse in ((Dictionary.GIVEN, 0.2), (Dictionary.RANDOM, 1.4))
        ),
        claims=(
            Claim(figure="fvu", control=Dictionary.RANDOM, beats=True, difference=figure(-0.65)),
            Claim(figure="fvu", control=Dictionary.FROZEN_DECODER, beats=False, difference=figure(-0.01)),
        ),
        text="heldout 0123456789ab",
        tokens=4096,
        contexts=32,
        seed=0,
        caveats=("position 0 is left out",),
        seconds=12.5,
    )


def fit_report(recipe: FitRecipe | None = None) -> FitReport:
    """A fit of one layer."""
    return FitReport(
        recipe=recipe or FitRecipe(layers=(0,), d_sae=3, k=1, tokens=1000),
        layers=(FittedLayer(layer=0, fvu=0.3, l0=1.5, dead_share=0.0),),
        curve=(FitPoint(phase="local", layer=-1, tokens=1000, fvu=0.3, l0=1.5, dead_share=0.0, kl=None),),
        gap=GapClosed(
            ce_plain=3.0,
            ce_local=3.5,
            ce_end_to_end=3.2,
            ce_local_control=None,
            closed=0.6,
            l0_change=0.01,
        ),
        corpus="own samples",
        tokens=1000,
        model="tiny",
        weight_hash="w" * 64,
        seconds=2.0,
        peak_bytes=1 << 20,
        resumed=0,
    )
