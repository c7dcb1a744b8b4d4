"""What a plan says of servers: by architecture, and by the field of the config that an export changes."""

from __future__ import annotations

import pytest

from tests.builders import tiny_config
from tests.resident_sets import resident_set
from tests.unit.engine.weights.folders import compiled, feature, parent
from trephine.domain.interventions import Ablate
from trephine.engine.exports.servers import supporting_servers
from trephine.engine.weights.compiling import WeightProgram

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gemma2": "Gemma2ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
}
READ_FROM_GGUF = {"llama", "qwen2", "qwen3"}
WIDTH = {"gpt2": {"n_inner": 160}}
UNTIED = {"tie_word_embeddings": False}


def config_of(family):
    """Make a config of which transformers' GGUF loader reads every field, where it reads any."""
    config = tiny_config(family)
    if family == "llama":
        config.mlp_bias = config.attention_bias = False
    if family == "gpt2":
        config.n_inner = None
    if family == "qwen3":
        config.head_dim, config.attention_bias = 128, False
    return config


def support(family, fields, config=None, tied=True):
    """Return what is said of each server if an export changes these fields."""
    program = WeightProgram(changes=(), config=fields)
    config = config or config_of(family)
    found = supporting_servers(ARCHITECTURES[family], config, program, tied=tied)
    return {s.server: s for s in found}


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_an_export_of_the_parents_shapes_loads_where_the_parent_does(family):
    """Only what reads GGUF files back is asked about the architecture itself."""
    found = support(family, {})
    refusing = set() if family in READ_FROM_GGUF else {"transformers, from GGUF"}
    assert {name for name, s in found.items() if not s.loads} == refusing
    assert "wherever the parent converts" in found["llama.cpp"].note


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_wider_mlps_are_read_from_the_config(family):
    """But not by llama.cpp's converter of GPT-2, which takes four times the model's width."""
    found = support(family, WIDTH.get(family, {"intermediate_size": 160}))
    assert found["vllm"].loads
    assert found["llama.cpp"].loads == (family != "gpt2")
    assert found["transformers, from GGUF"].loads == (family in READ_FROM_GGUF)
    if family == "gpt2":
        assert "n_inner" in found["llama.cpp"].note
        assert "--keep-shapes" in found["llama.cpp"].note


@pytest.mark.parametrize("family", sorted(set(ARCHITECTURES) - {"gpt_neox"}))
def test_an_unembedding_of_its_own_is_an_ordinary_tensor(family):
    """But not to Gemma-2 in vLLM and llama.cpp. A GPT-NeoX has one already."""
    found = support(family, UNTIED)
    for server in ("vllm", "llama.cpp"):
        assert found[server].loads == (family != "gemma2")
    if family == "gemma2":
        assert "asserts" in found["vllm"].note
        assert "lm_head.weight" in found["llama.cpp"].note


def test_one_refused_field_refuses_the_folder():
    """Whatever else changes, and the note is about what is refused."""
    found = support("gemma2", {**UNTIED, "intermediate_size": 160})
    assert not found["vllm"].loads
    assert "intermediate_size" not in found["vllm"].note


@pytest.mark.parametrize(
    ("family", "fields", "why"),
    [
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "rotary scaling of type llama3"),
        ("llama", {"attention_bias": True}, "biases"),
        ("qwen3", {"head_dim": 64}, "heads of 128"),
    ],
)
def test_what_the_gguf_loader_leaves_out_of_the_parent_is_named(family, fields, why):
    """A config field of the parent may rule it out, as it rules out a plan with GGUF files."""
    config = config_of(family)
    for name, value in fields.items():
        setattr(config, name, value)
    answer = support(family, {}, config)["transformers, from GGUF"]
    assert not answer.loads
    assert why in answer.note


def test_biases_are_lost_on_the_way_through_gguf_only():
    """VLLM and llama.cpp read them."""
    found = support("llama", {"mlp_bias": True, "intermediate_size": 160})
    assert {name for name, s in found.items() if not s.loads} == {"transformers, from GGUF"}
    assert "--gguf" in found["transformers, from GGUF"].note


def test_a_real_graft_of_gpt2_changes_the_refused_field(tmp_path):
    """The table names the field that the compiler writes."""
    hosted = parent("gpt2", tmp_path / "parent")
    resident_set(hosted, "jumprelu")
    program = compiled(hosted, (feature(0, 3, Ablate()),))
    found = supporting_servers(hosted.info.architecture, hosted.model.config, program, tied=True)
    assert [s.server for s in found if not s.loads] == ["llama.cpp", "transformers, from GGUF"]


@pytest.mark.parametrize(
    ("family", "fields", "refusing"),
    [("gpt2", {"n_inner": 96}, {"llama.cpp"}), ("gemma2", UNTIED, {"vllm", "llama.cpp"})],
)
@pytest.mark.parametrize("changed", [{}, {"intermediate_size": 160}, {"n_inner": 160}])
def test_what_an_earlier_export_changed_is_still_there(family, fields, refusing, changed):
    """An export of an export is loaded by none that refuses its parent, whatever this one changes."""
    config = config_of(family)
    for name, value in fields.items():
        setattr(config, name, value)
    found = support(family, changed, config)
    assert {name for name in ("vllm", "llama.cpp") if not found[name].loads} == refusing
    assert all(found[name].note.startswith("nor does it load the parent") for name in refusing)
    assert support(family, {}, config_of(family))["llama.cpp"].loads


@pytest.mark.parametrize("changed", [{}, {"intermediate_size": 160}])
def test_two_embeddings_that_the_config_calls_one_are_one_in_vllm(changed):
    """Stock transformers takes both from the files, and would be certified for a server that takes one."""
    config = config_of("llama")
    config.tie_word_embeddings = True
    found = support("llama", changed, config, tied=False)["vllm"]
    assert not found.loads
    assert "set the field to false" in found.note
    assert support("llama", changed, config, tied=True)["vllm"].loads
    config.tie_word_embeddings = False
    assert support("llama", changed, config, tied=False)["vllm"].loads
