"""Folders that must not load: each a typed error that names the file, the tensor and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.builders import tiny_hosted
from tests.replacement_fixtures import ROOT, copied, edited, opened, rewritten
from trephine.domain.errors import (
    BrokenReplacementError,
    ReplacementNotFoundError,
    UnsafeReplacementError,
    UnsupportedReplacementError,
)
from trephine.domain.replacements import SetFormat
from trephine.engine.replacements.formats.opening import open_set
from trephine.engine.replacements.formats.saelens_config import ARCHITECTURES, REFUSED

WEIGHTS = "sae_weights.safetensors"


def transcoder(tmp_path: Path) -> Path:
    """Copy the fixture that most of these break."""
    return copied(tmp_path, SetFormat.SAELENS, "jumprelu_transcoder")


def test_a_missing_folder(tmp_path: Path) -> None:
    """Named, not a traceback."""
    with pytest.raises(ReplacementNotFoundError, match="nowhere"):
        opened(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["ae.pt", "pytorch_model.bin", "layer_0/sae.pkl", "params.npz"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    """A folder of pickles alone is refused by name, whatever lies in it."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UnsafeReplacementError, match="never opened") as refused:
        opened(tmp_path)
    assert refused.value.context["file"] == Path(name).name


def test_an_unknown_folder_lists_what_was_found_and_what_is_known(tmp_path: Path) -> None:
    """The message tells both sides."""
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(BrokenReplacementError) as refused:
        opened(tmp_path)
    assert "notes.txt" in refused.value.message
    assert "sae_weights.safetensors" in refused.value.message


def test_a_folder_that_can_be_read_in_two_ways(tmp_path: Path) -> None:
    """Nothing is guessed; the named format opens."""
    folder = copied(tmp_path, SetFormat.CIRCUIT_TRACER, "relu")
    lone = copied(tmp_path, SetFormat.SAELENS, "standard")
    for file in ("cfg.json", WEIGHTS):
        (folder / file).write_bytes((lone / file).read_bytes())
    with pytest.raises(BrokenReplacementError, match="saelens and as circuit_tracer; name the format"):
        opened(folder)
    architecture = tiny_hosted("llama", d_model=16).architecture
    named = open_set(folder, SetFormat.SAELENS, architecture=architecture, allow_unverified=False)
    assert named.format is SetFormat.SAELENS


def test_a_truncated_file(tmp_path: Path) -> None:
    """Seen from the header alone, before any weight is read."""
    path = transcoder(tmp_path) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BrokenReplacementError, match="cut short") as refused:
        opened(path.parent)
    assert refused.value.context["file"] == f"jumprelu_transcoder/{WEIGHTS}"


@pytest.mark.parametrize("content", [b"", b"\x10", b"junk" * 50, b"\x02\x00\x00\x00\x00\x00\x00\x00[]"])
def test_a_file_that_is_no_safetensors(tmp_path: Path, content: bytes) -> None:
    """Whatever it is."""
    path = transcoder(tmp_path) / WEIGHTS
    path.write_bytes(content)
    with pytest.raises(BrokenReplacementError, match=WEIGHTS):
        opened(path.parent)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    """Found when the layer is read, named by file and tensor."""
    folder = transcoder(tmp_path)
    rewritten(folder / WEIGHTS, lambda tensors: tensors["W_dec"][3, 4].fill_(value))
    reader = opened(folder).layers[0]
    with pytest.raises(BrokenReplacementError, match=r"NaN or infinity.*fit the set again") as refused:
        reader.read()
    assert refused.value.context == {"file": f"jumprelu_transcoder/{WEIGHTS}", "tensor": "W_dec"}


@pytest.mark.parametrize(
    ("tensor", "shape"), [("W_enc", (40, 16)), ("W_dec", (16, 40)), ("b_dec", (40,)), ("threshold", (1,))]
)
def test_wrong_shapes(tmp_path: Path, tensor: str, shape: tuple[int, ...]) -> None:
    """Each tensor is held to the configuration."""
    folder = transcoder(tmp_path)
    rewritten(folder / WEIGHTS, lambda tensors: tensors.update({tensor: torch.zeros(shape)}))
    with pytest.raises(BrokenReplacementError, match=rf"tensor {tensor} has shape.*correct its") as refused:
        opened(folder)
    assert refused.value.context["tensor"] == tensor


def test_a_missing_tensor(tmp_path: Path) -> None:
    """A jumprelu without thresholds is not a relu."""
    folder = transcoder(tmp_path)
    rewritten(folder / WEIGHTS, lambda tensors: tensors.__delitem__("threshold"))
    with pytest.raises(BrokenReplacementError, match=r"tensor threshold is missing.*Fetch the set again"):
        opened(folder)


def test_another_models_width(tmp_path: Path) -> None:
    """Both widths and the model that it says it is for are named."""
    folder = transcoder(tmp_path)
    with pytest.raises(
        BrokenReplacementError, match=r"16 wide, but mlp_in of LlamaForCausalLM is 32 wide.*tiny"
    ):
        open_set(
            folder,
            SetFormat.AUTO,
            architecture=tiny_hosted("llama").architecture,
            allow_unverified=False,
        )


def test_another_models_layers(tmp_path: Path) -> None:
    """A layer that the model does not have, and a cross-layer transcoder of another depth."""
    folder = transcoder(tmp_path)

    def deeper(config: dict[str, Any]) -> None:
        config["metadata"]["hf_hook_name"] = "model.layers.7.mlp.input"

    edited(folder / "cfg.json", deeper)
    with pytest.raises(BrokenReplacementError, match=r"layers 0 to 2; it was made for another model\. Load"):
        opened(folder)
    four_deep = tiny_hosted("llama", n_layers=4, d_model=16).architecture
    clt = ROOT / SetFormat.CIRCUIT_TRACER_CLT.value / "relu"
    with pytest.raises(BrokenReplacementError, match=r"writes 3 layers from layer 0 on.*Load the set made"):
        open_set(clt, SetFormat.AUTO, architecture=four_deep, allow_unverified=False)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"architecture": "matching_pursuit"},
            "'matching_pursuit' is not supported: its features are chosen",
        ),
        ({"architecture": "temporal"}, "'temporal' is not supported: its features depend on other"),
        ({"architecture": "magic"}, "'magic' is not supported"),
        ({"normalize_activations": "covariance_whitening"}, "whitening matrices are folded"),
        ({"normalize_activations": "l7"}, "'l7' is not supported"),
        ({"reshape_activations": "cube"}, "'cube' is not supported"),
    ],
)
def test_options_refused_by_name(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    """Never run as something else."""
    folder = copied(tmp_path, SetFormat.SAELENS, "standard")
    edited(folder / "cfg.json", lambda config: config.update(change))
    with pytest.raises(UnsupportedReplacementError, match=match):
        opened(folder)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("hf_hook_name_out", "model.layers.2.mlp.output", "reads layer 1 and writes layer 2"),
        ("hf_hook_name", "model.layers.1.mlp.up_proj.output", "is not understood"),
        ("hf_hook_name", "model.layers.1.mixer.output", "has no module"),
        ("hf_hook_name", "lm_head", "is not understood"),
        ("hook_head_index", 3, "single head"),
    ],
)
def test_hooks_refused_by_name(tmp_path: Path, key: str, value: object, match: str) -> None:
    """An unknown hook is an error, never a silent run of the unmodified model."""
    folder = transcoder(tmp_path)
    edited(folder / "cfg.json", lambda config: config["metadata"].update({key: value}))
    with pytest.raises(UnsupportedReplacementError, match=match):
        opened(folder)


@pytest.mark.parametrize("keys", [("hook_name", "hf_hook_name"), ("hook_name_out", "hf_hook_name_out")])
def test_a_hook_that_is_not_named(tmp_path: Path, keys: tuple[str, ...]) -> None:
    """Nothing is assumed about what it reads or writes."""
    folder = transcoder(tmp_path)

    def forget(config: dict[str, Any]) -> None:
        for key in keys:
            config["metadata"].pop(key)

    edited(folder / "cfg.json", forget)
    with pytest.raises(BrokenReplacementError, match="write it in"):
        opened(folder)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '{"architecture": 3, "metadata": {}}'])
def test_a_configuration_that_is_none(tmp_path: Path, text: str) -> None:
    """Empty, a list, cut short, of wrong types."""
    folder = transcoder(tmp_path)
    (folder / "cfg.json").write_text(text)
    with pytest.raises(BrokenReplacementError, match=r"cfg\.json"):
        opened(folder)


def test_two_dictionaries_of_one_layer(tmp_path: Path) -> None:
    """Features are addressed by layer; two readings of one would be confused."""
    copied(tmp_path, SetFormat.SAELENS, "standard")
    copied(tmp_path, SetFormat.SAELENS, "transcoder")
    with pytest.raises(BrokenReplacementError, match="two dictionaries of the folder read layer 1"):
        opened(tmp_path)


def test_unverified_formats_must_be_allowed(tmp_path: Path) -> None:
    """No writer of gemma-scope-2's layout could be had."""
    folder = copied(tmp_path, SetFormat.GEMMA_SCOPE_2_CLT, "affine")
    with pytest.raises(UnsupportedReplacementError, match=r"allow_unverified \(--unverified-format\)"):
        opened(folder)
    assert opened(folder, allow_unverified=True).format is SetFormat.GEMMA_SCOPE_2_CLT


def test_sparsify_groupmax_is_refused(tmp_path: Path) -> None:
    """It would load as TopK."""
    folder = copied(tmp_path, SetFormat.SPARSIFY, "sae")
    edited(folder / "layers.1" / "cfg.json", lambda config: config.update(activation="groupmax"))
    with pytest.raises(UnsupportedReplacementError, match="groupmax"):
        opened(folder)


def test_sparsify_skip_that_the_configuration_denies(tmp_path: Path) -> None:
    """A skip path is not dropped in silence."""
    folder = copied(tmp_path, SetFormat.SPARSIFY, "skip_transcoder")
    edited(folder / "layers.1.mlp" / "cfg.json", lambda config: config.update(skip_connection=False))
    with pytest.raises(BrokenReplacementError, match="W_skip"):
        opened(folder)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"activation_function": "gelu"}, UnsupportedReplacementError, "gelu"),
        (
            {"activation_function": "jump_relu"},
            BrokenReplacementError,
            "no tensor activation_function.threshold",
        ),
        ({"activation_function": "topk"}, BrokenReplacementError, "has k = None"),
        ({"feature_input_hook": None}, BrokenReplacementError, "feature_input_hook"),
        ({"feature_input_hook": "hook_scale"}, UnsupportedReplacementError, "hook_scale"),
    ],
)
def test_circuit_tracer_configurations(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], match: str
) -> None:
    """What the configuration says must be known and be in the file."""
    folder = copied(tmp_path, SetFormat.CIRCUIT_TRACER, "relu")
    edited(folder / "config.yaml", lambda config: config.update(change))
    with pytest.raises(error, match=match):
        opened(folder)


def test_a_yaml_that_builds_objects_builds_none(tmp_path: Path) -> None:
    """YAML tags are data here, never calls."""
    folder = copied(tmp_path, SetFormat.CIRCUIT_TRACER, "relu")
    (folder / "config.yaml").write_text(f"!!python/object/apply:pathlib.Path.touch [{tmp_path}/made]")
    with pytest.raises(BrokenReplacementError, match=r"config\.yaml"):
        opened(folder)
    assert not (tmp_path / "made").exists()


def test_linked_folders_are_not_followed(tmp_path: Path) -> None:
    """A link inside a root does not lead out of it."""
    outside = transcoder(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "layer_1").symlink_to(outside)
    with pytest.raises(BrokenReplacementError, match="holds nothing"):
        opened(tmp_path / "set")


def test_integers_are_no_weights(tmp_path: Path) -> None:
    """A dtype that dictionaries are not stored in is refused by name."""
    folder = transcoder(tmp_path)
    save_file({"W_enc": torch.zeros(16, 40, dtype=torch.int8)}, folder / WEIGHTS)
    with pytest.raises(UnsupportedReplacementError, match="I8"):
        opened(folder)


def test_the_hash_sees_weights_and_configuration(tmp_path: Path) -> None:
    """The same files hash the same anywhere; one weight or setting changes it."""
    first = opened(transcoder(tmp_path / "a")).layers[0].info.content_hash
    folder = transcoder(tmp_path / "b")
    assert opened(folder).layers[0].info.content_hash == first
    rewritten(folder / WEIGHTS, lambda tensors: tensors["W_enc"][0, 0].add_(1e-3))
    changed = opened(folder).layers[0].info.content_hash
    edited(folder / "cfg.json", lambda config: config["metadata"].update(l0=7))
    assert len({first, changed, opened(folder).layers[0].info.content_hash}) == 3


def test_stored_dtypes_stay_and_arithmetic_is_wide(tmp_path: Path) -> None:
    """float16 on disk is float16 in memory; activations are float32, or float64 for a float64 site."""
    folder = transcoder(tmp_path)
    rewritten(folder / WEIGHTS, lambda t: t.update(W_enc=t["W_enc"].half(), W_dec=t["W_dec"].half()))
    reader = opened(folder).layers[0]
    layer = reader.read()
    wide = torch.randn(4, 16, dtype=torch.float64)
    assert reader.info.memory_bytes == 2 * 2 * 16 * 40 + 4 * (40 + 40 + 16)
    assert layer.encode(wide.half()).activations.dtype == torch.float32
    assert layer.encode(wide).activations.dtype == torch.float64
    assert json.loads((folder / "cfg.json").read_text())["dtype"] == "float32"


def test_every_architecture_of_saelens_is_supported_or_refused_by_name() -> None:
    """The list is what sae-lens itself registers for inference, as its writer script noted it."""
    registered = set(json.loads((ROOT / "saelens_registry.json").read_text(encoding="utf-8")))
    assert registered == set(ARCHITECTURES) | set(REFUSED)
    assert not set(ARCHITECTURES) & set(REFUSED)


def test_a_file_that_is_shortened_after_it_was_opened(tmp_path: Path) -> None:
    """The engine does not die of it, neither while it reads nor with a layer in memory."""
    folder = transcoder(tmp_path)
    reader = opened(folder).layers[0]
    layer, x = reader.read(), torch.ones(2, 16)
    before = layer.encode(x).activations
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:600])
    assert torch.equal(layer.encode(x).activations, before)
    with pytest.raises(BrokenReplacementError, match="became shorter"):
        reader.read()


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "none"},
    ],
)
def test_a_header_that_lies(tmp_path: Path, entry: dict[str, Any]) -> None:
    """Negative sizes and offsets, bytes that do not make the shape."""
    header = json.dumps({"W_enc": entry}).encode()
    path = transcoder(tmp_path) / WEIGHTS
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(BrokenReplacementError, match="no readable safetensors"):
        opened(path.parent)


@pytest.mark.parametrize("lost", ["cfg.json", WEIGHTS])
def test_a_layer_that_lacks_a_file_is_not_left_out_in_silence(tmp_path: Path, lost: str) -> None:
    """A set is what its folder says, or an error; partial coverage is a choice, not an accident."""
    folder = tmp_path / "set"
    for layer, name in ((1, "transcoder"), (2, "standard")):
        copied(folder, SetFormat.SAELENS, name).rename(folder / f"layer_{layer}")
    (folder / "layer_2" / lost).unlink()
    with pytest.raises(BrokenReplacementError, match=f"set/layer_2 lacks {lost}"):
        opened(folder)


@pytest.mark.parametrize("lost", ["W_enc_1.safetensors", "W_dec_1.safetensors"])
def test_a_cross_layer_transcoder_that_lacks_a_file(tmp_path: Path, lost: str) -> None:
    """Either half."""
    folder = copied(tmp_path, SetFormat.CIRCUIT_TRACER_CLT, "relu")
    (folder / lost).unlink()
    with pytest.raises(BrokenReplacementError, match=f"relu lacks {lost}"):
        opened(folder)
