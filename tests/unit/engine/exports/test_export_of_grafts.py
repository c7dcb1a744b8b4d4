"""Grafted folders from plan to signature; adapters and deltas of the same edits."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.builders import tiny_folder
from tests.resident_sets import degrade, resident_set
from tests.unit.engine.exporting import compiling, edit_of, exported, hosted_in, planned, write_key
from tests.unit.engine.interventions import neuron
from tests.unit.engine.weights.folders import feature, parent
from trephine.client.deltas import apply_delta, make_delta
from trephine.client.digests import file_digest
from trephine.client.errors import ExportTargetExistsError, HashMismatchError, ParentChangedError
from trephine.client.verification import main as run_verification
from trephine.client.verification import verify_folder
from trephine.domain.exports import ExportOptions
from trephine.domain.interventions import Ablate, Scale, SetTo
from trephine.engine.attack import running
from trephine.engine.attack.request import AttackRequest
from trephine.engine.certificates import certifier, firing_floor
from trephine.engine.certificates.firing import firing_masks
from trephine.engine.certificates.gates import judge
from trephine.engine.models.quanta import finish
from trephine.engine.runs.retain import retain_text, window_logits
from trephine.engine.weights.operations import FeatureOp

ABLATIONS = (feature(0, 3, Ablate()), feature(1, 5, Ablate()))
COUNTS = (
    "files_changed_outside_plan",
    "tensors_changed_outside_plan",
    "planned_tensors_unchanged",
    "elements_off_plan",
    "load_differences",
)
"""Passed here, so that answers alone are judged: a copy misses one of them as well."""


@pytest.fixture(scope="module")
def grafted(tmp_path_factory):
    """A signed export of two features of a degraded set: hosted parent, plan, what was made, folder."""
    base = tmp_path_factory.mktemp("grafted")
    hosted = parent("llama", base / "parent", biases=False)
    resident_set(hosted, "jumprelu")
    degrade(hosted, "layer 1: FVU 1.31 is not below 1")
    edit = edit_of(hosted, *ABLATIONS)
    (base / "exports").mkdir()
    folder = base / "exports" / "edited"
    made = exported(hosted, edit, folder, signing_key=str(write_key(base / "key.pem")))
    return hosted, planned(hosted, edit), made, folder


@pytest.mark.integration
def test_the_certificate_of_a_graft(grafted):
    """Planned bounds, the clean process's own recount of every element, firing tokens apart."""
    _, plan, made, folder = grafted
    found = {m.name: m.value for m in made.certificate.measurements}
    assert made.certificate.passed
    assert {step.tier for step in plan.steps} == {"graft"}
    assert any(change.startswith("mlp_bias: ") for change in plan.config_changes)
    assert plan.size_growth_bytes > 0
    config = json.loads((folder / "config.json").read_text())
    assert len(plan.widened) == config["num_hidden_layers"]
    assert [one.zeros < one.neurons for one in plan.widened] == [
        True,
        True,
        *[False] * (len(plan.widened) - 2),
    ]
    # What the plan counts as zeros is zeros in the files, and no more of it.
    down = AutoModelForCausalLM.from_pretrained(folder).model.layers[0].mlp.down_proj.weight
    added = down[:, -plan.widened[0].neurons :]
    assert int((added == 0).all(0).sum()) == plan.widened[0].zeros
    card = (folder / "README.md").read_text()
    assert f"{plan.widened[0].neurons} in layer 0, {plan.widened[0].zeros} of them zeros" in card
    assert all(f"`{change}`" in card for change in plan.config_changes)
    assert all(server.note for server in plan.servers)
    # A loader of GGUF files drops biases, and a folder whose graft uses them says so.
    assert [server.server for server in plan.servers if not server.loads] == ["transformers, from GGUF"]
    assert found["elements_off_plan"] == found["tensors_changed_outside_plan"] == 0
    assert found["recovery_firing"] > 0.99
    assert found["edit_kl_firing_mean"] > found["kl_intervened_exported_firing_mean"]
    assert {"perplexity_ratio", "kl_intervened_exported_p999", "greedy_match"} <= set(found)
    assert verify_folder(folder).passed


@pytest.mark.integration
def test_the_parents_answers_fail_the_gates_of_a_graft(grafted):
    """Of a weak edit too, which over all tokens, and in nats, passes for the edit."""
    hosted, *_ = grafted
    edit = edit_of(hosted, feature(0, 3, Scale(factor=0.999)))
    plan = planned(hosted, edit)
    assert {step.tier for step in plan.steps} == {"graft"}
    assert plan.doubt == ""
    found = _measured(hosted, edit)
    results = {r.gate.name: r for r in judge(plan.gates, dict.fromkeys(COUNTS, 0.0) | found)}
    assert results["kl_intervened_exported_mean"].passed
    assert [name for name, result in results.items() if not result.passed] == ["unrecovered_firing"]
    assert results["unrecovered_firing"].measured == pytest.approx(1.0)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("operation", "said"),
    [(Scale(factor=1 + 1e-9), "moves less than rounding"), (SetTo(value=1.0), "no edited feature fires")],
)
def test_an_edit_that_cannot_be_told_from_rounding_is_inconclusive(grafted, operation, said, monkeypatch):
    """The plan says so before anything is written."""
    hosted, *_ = grafted
    if isinstance(operation, SetTo):
        name = "set:0:3"
        silent = [torch.zeros(len(window), dtype=torch.bool) for window in retain_text(hosted).windows]
        monkeypatch.setattr(firing_floor, "masks_by_feature", lambda *_: _returning({name: silent}))
    plan = planned(hosted, edit_of(hosted, feature(0, 3, operation)))
    assert said in plan.doubt
    assert "nothing is certified" in plan.doubt
    assert "unrecovered_firing" not in {gate.name for gate in plan.gates}


@pytest.mark.integration
def test_an_inconclusive_export_is_published_and_is_no_pass(grafted, tmp_path, capsys):
    """Signed and whole; certificate, card and verifier say the word, and a forged pass is found."""
    hosted, *_ = grafted
    (tmp_path / "exports").mkdir()
    folder = tmp_path / "exports" / "edited"
    key = str(write_key(tmp_path / "key.pem"))
    edit = edit_of(hosted, feature(0, 3, Scale(factor=1 + 1e-9)))
    made = exported(hosted, edit, folder, signing_key=key).certificate
    assert all(result.passed for result in made.gates)
    assert (made.verdict, made.passed, made.failed) == ("inconclusive", False, False)
    written = json.loads((folder / "certificate.json").read_text())
    assert (written["verdict"], written["passed"], written["doubt"]) == ("inconclusive", False, made.doubt)
    card = (folder / "README.md").read_text()
    assert "**Inconclusive: the edit moves less than rounding" in card
    assert "The certificate says that this checkpoint does what the intervention did" not in card
    outcome = verify_folder(folder)
    assert (outcome.passed, outcome.verdict, outcome.doubt) == (True, "inconclusive", made.doubt)
    assert run_verification([str(folder)]) == 4
    assert "certificate: inconclusive: the edit moves" in capsys.readouterr().out
    for forged in ({"passed": True}, {"verdict": "passed"}, {"doubt": ""}):
        (folder / "certificate.json").write_text(json.dumps(written | forged))
        problems = verify_folder(folder).problems
        assert any("its verdict is not" in one or "its doubt is not" in one for one in problems), forged


@pytest.mark.integration
def test_a_graft_into_bfloat16_files_is_held_against_bfloat16(tmp_path):
    """Loaded in float32 and run as stored: what it costs the parent is planned as the certifier finds it."""
    hosted = hosted_in(tiny_folder("llama", tmp_path / "parent", dtype=torch.bfloat16))
    resident_set(hosted, "relu")
    (tmp_path / "exports").mkdir()
    made = exported(hosted, edit_of(hosted, *ABLATIONS), tmp_path / "exports" / "edited").certificate
    found = {m.name: m.value for m in made.measurements}
    gates = {r.gate.name: r.gate.limit for r in made.gates if "stored" in r.gate.name}
    limit = gates.pop("kl_intervened_exported_in_stored_dtype_mean")
    assert limit == pytest.approx(3.0 * found["noise_floor_dtype_mean"], rel=0.02)
    limit = gates.pop("kl_intervened_exported_in_stored_dtype_firing_mean")
    assert 0.98 < limit / (1.5 * found["noise_floor_dtype_firing_mean"]) < 2.0  # or the intervened parent's
    apart = {name.partition(":")[2]: limit for name, limit in gates.items()}
    assert set(apart) == {"set:0:3", "set:1:5"}  # each on its own tokens as well, within three floors
    for name, limit in apart.items():
        assert 0.98 < limit / (3.0 * found[f"noise_floor_dtype_firing_mean:{name}"]) < 2.0
        assert found[f"kl_intervened_exported_in_stored_dtype_firing_mean:{name}"] <= limit
    assert made.verdict == "passed"
    assert {"noise_floor_dtype_first_mean", "noise_floor_attention_firing_mean"} <= set(found)


def _returning(value):
    yield
    return value


@torch.inference_mode()
def _measured(hosted, edit):
    """What the certifier measures of a copy of the parent."""
    windows = retain_text(hosted).windows
    plain = [window_logits(hosted, window) for window in windows]
    after = [window_logits(hosted, window, edit.interventions) for window in windows]
    ops = [FeatureOp(feature=edit.interventions[0].target.feature)]
    left = [certifier.kl(p, q) for p, q in zip(after, plain, strict=True)]
    same = [torch.zeros_like(kl) for kl in left]
    losses = [torch.zeros(1)] * len(windows)
    measured = {"nonfinite_values": 0.0}
    damage = [certifier.kl(q, p) for p, q in zip(after, plain, strict=True)]
    firing = finish(firing_masks(hosted, windows, ops, edit.interventions))
    lists = {"intervened": left, "original": same, "damage": damage, "edit": left, "firing": firing}
    lists |= {"top": same, "loss": losses, "loss_intervened": losses}
    certifier.describe(measured, lists)
    return measured


@pytest.mark.integration
def test_an_export_says_that_its_set_failed_admission(grafted):
    """Plan, certificate and the card's limits name the set and why; an edit of neurons has nothing to say."""
    hosted, plan, made, folder = grafted
    said = "The set set failed admission and was accepted all the same: layer 1: FVU 1.31 is not below 1"
    assert plan.caveats == made.certificate.caveats
    own_text = "The gains of grafted neurons were chosen on the very text that is measured here"
    assert plan.caveats[0] == said
    assert [one.startswith(own_text) for one in plan.caveats] == [False, True]
    limits = (folder / "README.md").read_text().partition("## Limits")[2]
    assert f"- {said}\n" in limits
    assert json.loads((folder / "certificate.json").read_text())["caveats"] == [*plan.caveats]
    assert planned(hosted, edit_of(hosted, neuron(0, 3, Ablate()))).caveats == ()


@pytest.mark.integration
def test_one_flipped_byte_breaks_signature_and_verification(grafted, tmp_path):
    """In a grown tensor, which has no parent's bytes to be held against."""
    import shutil

    *_, folder = grafted
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shard = sorted(copy.glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    outcome = verify_folder(copy)
    assert not outcome.passed
    assert any("trephine.sig" in problem for problem in outcome.problems)


@pytest.mark.integration
def test_a_delta_rebuilds_the_folder_byte_for_byte(grafted, tmp_path):
    """Grown tensors cost what was added; another parent and a damaged delta are refused, nothing stays."""
    hosted, _, _, folder = grafted
    delta = make_delta(hosted.folder, folder, tmp_path / "delta")
    rebuilt = apply_delta(delta, hosted.folder, tmp_path / "rebuilt")
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert {n: file_digest(rebuilt / n) for n in names} == {n: file_digest(folder / n) for n in names}
    assert verify_folder(rebuilt).passed
    weights = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    assert (delta / "delta.bin").stat().st_size < 0.5 * weights
    with pytest.raises(ExportTargetExistsError):
        apply_delta(delta, hosted.folder, rebuilt)
    with pytest.raises(ParentChangedError):
        apply_delta(delta, folder, tmp_path / "wrong")
    description = json.loads((delta / "delta.json").read_text())
    description["files"][-1]["sha256"] = "0" * 64
    (delta / "delta.json").write_text(json.dumps(description))
    with pytest.raises(HashMismatchError):
        apply_delta(delta, hosted.folder, tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()
    assert not list(tmp_path.glob(".trephine-tmp-*"))


@pytest.mark.integration
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_low_rank_edits_come_as_an_adapter_too(family, tmp_path):
    """Stock PEFT loads it onto the parent and answers as the full folder does."""
    hosted = parent(family, tmp_path / "parent")
    (tmp_path / "exports").mkdir()
    folder = tmp_path / "exports" / "edited"
    edit = edit_of(
        hosted, neuron(0, 3, Ablate()), neuron(0, 9, Scale(factor=0.3)), neuron(2, 5, Scale(factor=-2.0))
    )
    exported(hosted, edit, folder)
    plain = AutoModelForCausalLM.from_pretrained(hosted.folder).eval()
    full = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        original = plain(ids).logits.clone()
        adapted = PeftModel.from_pretrained(plain, folder / "adapter").eval()(ids).logits
        wanted = full(ids).logits
    assert float((adapted - wanted).abs().max()) < 1e-4 < float((original - wanted).abs().max())
    # Readers that know one alpha for all modules, and their own ranks, must come to the same scale of 1.
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    factors = load_file(folder / "adapter" / "adapter_model.safetensors")
    ranks = {tensor.shape[0] for name, tensor in factors.items() if "lora_A" in name}
    assert ranks == {config["lora_alpha"]} == {config["r"]} == {2}
    assert not config.keys() & {"rank_pattern", "alpha_pattern"}


@pytest.mark.integration
def test_an_edit_that_adds_neurons_has_no_adapter(grafted):
    """PEFT keeps shapes; a delta is the way then."""
    *_, folder = grafted
    assert not (folder / "adapter").exists()


@pytest.mark.integration
def test_an_attacked_export_carries_its_word_inside_what_is_signed(grafted, tmp_path, monkeypatch):
    """In the certificate, on the card, and in the outcome of an offline check."""
    asked = []

    def brief(**fields: Any) -> AttackRequest:
        asked.append(fields["training_steps"])
        return AttackRequest(**(fields | {"training_steps": 2, "recovery_steps": 2}))

    monkeypatch.setattr(running, "AttackRequest", brief)
    hosted, plan, *_ = grafted
    edit = edit_of(hosted, *ABLATIONS)
    (tmp_path / "exports").mkdir()
    folder = tmp_path / "exports" / "attacked"
    key = str(write_key(tmp_path / "key.pem"))
    with torch.inference_mode():
        options = ExportOptions(attack=True, attack_steps=120)
        made = finish(compiling(hosted, edit, plan, folder, signing_key=key, options=options))
    removal = made.certificate.removal
    assert removal is not None
    assert asked == [120]
    assert removal.n_tokens > 0
    written = json.loads((folder / "certificate.json").read_text())["removal"]
    assert written["verdict"] == removal.verdict
    assert f"## Attacks: {removal.verdict}" in (folder / "README.md").read_text()
    outcome = verify_folder(folder)
    assert outcome.passed
    assert outcome.removal == removal.verdict
