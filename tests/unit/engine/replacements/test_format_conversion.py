"""One set in two layouts: the same activations. Needs the transcoders beside the checkout, and SmolLM2."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.laws import load_model
from tests.replacement_fixtures import Fixture
from trephine.domain.replacements import LoadReplacementSet, ReplacementSource, SetFormat
from trephine.engine.admission.loading import load_replacement_set
from trephine.engine.models.architecture import Architecture, describe_architecture
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.formats.opening import open_set
from trephine.engine.replacements.sets import opened
from trephine.engine.runs.rows import RowInput, run_rows

SHARED = Path(__file__).parents[5] / "shared" / "replacements" / "smollm2-135m-tc"
TEXT = "The capital of France is Paris, and when it rains in the north farmers wait for the river to rise."
LAYERS = (8, 20)
HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}


@cache
def architecture() -> Architecture:
    """Describe a model of SmolLM2's shape; no weight of it is needed, so none is made."""
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=64,
    )
    with torch.device("meta"):
        return describe_architecture(AutoModelForCausalLM.from_config(config))


def converted(folder: Path, layers: Iterable[int] = range(30)) -> Path:
    """Write the SAELens set in circuit-tracer's layout: encoders transposed, thresholds renamed."""
    folder.mkdir()
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"model_name": "smollm2", "prepend_bos": True, **HOOKS})
    )
    for layer in layers:
        stored = load_file(SHARED / f"layer_{layer}" / "sae_weights.safetensors")
        renamed = {
            "W_enc": stored["W_enc"].T.contiguous(),
            "W_dec": stored["W_dec"],
            "b_enc": stored["b_enc"],
            "b_dec": stored["b_dec"],
            "activation_function.threshold": stored["threshold"],
        }
        save_file(renamed, folder / f"layer_{layer}.safetensors")
    return folder


beside_the_checkout = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the transcoders are not beside the checkout"
)


@beside_the_checkout
@torch.inference_mode()
def test_smollm2s_transcoders_in_circuit_tracers_layout_have_the_same_activations(tmp_path: Path) -> None:
    """All 30 layers: same support, same activations, same reconstructions."""
    sets = [
        open_set(folder, SetFormat.AUTO, architecture=architecture(), allow_unverified=False)
        for folder in (SHARED, converted(tmp_path / "tracer"))
    ]
    assert [read.format for read in sets] == [SetFormat.SAELENS, SetFormat.CIRCUIT_TRACER]
    assert [len(read.layers) for read in sets] == [30, 30]
    x = torch.randn(16, 576, generator=torch.Generator().manual_seed(0))
    fired = 0
    for readers in zip(*(read.layers for read in sets), strict=True):
        layers = [reader.read() for reader in readers]
        codes = [layer.encode(x) for layer in layers]
        fired += int(codes[0].active.sum())
        assert torch.equal(codes[0].active, codes[1].active)
        # The same products summed in another order, since one file holds the transpose.
        torch.testing.assert_close(codes[0].activations, codes[1].activations, atol=1e-5, rtol=1e-5)
        written = [next(iter(layer.reconstruct(x).values())) for layer in layers]
        torch.testing.assert_close(written[0], written[1], atol=1e-4, rtol=1e-5)
    assert fired > 0


@pytest.mark.real
@beside_the_checkout
@torch.inference_mode()
def test_both_layouts_load_beside_smollm2_and_fire_alike(smollm2: Path, tmp_path: Path) -> None:
    """Two layers, admitted from either layout with the same figures: the same features fire on a text."""
    torch.set_num_threads(1)
    session = Session(hosted=load_model(smollm2))
    hosted = session.require_model()
    for layer in LAYERS:
        shutil.copytree(SHARED / f"layer_{layer}", tmp_path / "saelens" / f"layer_{layer}")
    converted(tmp_path / "tracer", LAYERS)
    infos = [
        finish(load_replacement_set(session, LoadReplacementSet(source=source)))
        for name in ("saelens", "tracer")
        if (source := ReplacementSource(name=name, folder=str(tmp_path / name)))
    ]
    assert [info.format for info in infos] == [SetFormat.SAELENS, SetFormat.CIRCUIT_TRACER]
    admitted = [info.admission for info in infos]
    assert all(one.passed for one in admitted), admitted
    for first, second in zip(admitted[0].layers, admitted[1].layers, strict=True):
        assert first.layer == second.layer
        assert (first.l0, first.fvu) == pytest.approx((second.l0, second.fvu), rel=1e-5)
    sites = [layer.site_in for layer in infos[0].layers]
    read = run_rows(hosted, [RowInput(hosted.encode(TEXT))], reads=sites).values[0]
    for layer, site in zip(LAYERS, sites, strict=True):
        codes = []
        for info in infos:
            with opened(hosted, info.name, [layer]) as resident:
                codes.append(resident[layer].encode(read[site]))
        assert codes[0].active[1:].sum(-1).float().mean() > 5  # features a token
        assert torch.equal(codes[0].active, codes[1].active)
        torch.testing.assert_close(codes[0].activations, codes[1].activations, atol=1e-5, rtol=1e-5)


def test_a_layer_can_be_shared_between_threads() -> None:
    """SAELens keeps the norm of an input on the layer, so that two threads read each other's."""
    fixture = Fixture(format=SetFormat.SAELENS, name="standard_layer_norm")
    layer, x = fixture.open().layers[0].read(), fixture.expected["x"]
    (alone,) = layer.reconstruct(x).values()
    wrong: list[int] = []

    def work(factor: int) -> None:
        for _ in range(50):
            (found,) = layer.reconstruct(x * factor).values()
            if not torch.allclose(found, alone * factor, atol=1e-2):
                wrong.append(factor)

    threads = [threading.Thread(target=work, args=(factor,)) for factor in (1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
