"""Law 8 on tiny models, and everything that can happen to an export on its way."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cache
from inspect import isgeneratorfunction
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.builders import FAMILIES, tiny_folder
from tests.file_limits import files_end_at
from tests.retained import retain_ids
from tests.unit.engine.exporting import compiling, edit_of, exported, hosted_in, planned, write_key
from tests.unit.engine.interventions import neuron
from trephine.client.verification import verify_folder
from trephine.domain.commands import Progress
from trephine.domain.errors import (
    DiskFullError,
    ExportTargetExistsError,
    GateMissedError,
    InvalidRequestError,
    ParentChangedError,
    TrephineError,
)
from trephine.domain.exports import Export, ExportPlan
from trephine.domain.interventions import Ablate, Scale
from trephine.engine.certificates.card import _SHOWN
from trephine.engine.certificates.certification import Findings
from trephine.engine.exports import export
from trephine.engine.exports.planning import plan_hash
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.shards import overwrite, read_entries, read_tensor, sha256_of
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import window_logits

PLAN = (
    neuron(0, 3, Ablate()),
    neuron(1, 5, Scale(factor=0.37)),
    neuron(2, 60, Ablate()),
    neuron(0, 8, Scale(factor=-1.5)),
)


@pytest.fixture
def parent(tmp_path):
    """A parent folder of several shards."""
    return tiny_folder("llama", tmp_path / "parent", max_shard_size="40KB")


@pytest.fixture
def root(tmp_path):
    """An export root."""
    (tmp_path / "exports").mkdir()
    return tmp_path / "exports"


@dataclass(frozen=True)
class Published:
    """An export as it was made; nothing in it is changed."""

    hosted: HostedModel
    plan: ExportPlan
    made: Export
    folder: Path
    key: Path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Exports of `PLAN` by family, each made once: its clean process takes seconds."""

    @cache
    def of(family: str) -> Published:
        base = tmp_path_factory.mktemp(family)
        hosted = hosted_in(tiny_folder(family, base / "parent", max_shard_size="40KB"))
        edit = edit_of(hosted, *PLAN)
        key = write_key(base / "key.pem")
        folder = base / "exports" / "edited"
        folder.parent.mkdir()
        made = exported(hosted, edit, folder, signing_key=str(key))
        return Published(hosted, planned(hosted, edit), made, folder, key)

    return of


def measured(certificate):
    return {m.name: m.value for m in certificate.measurements}


@pytest.mark.integration
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gpt_neox_sequential"])
def test_law_8_the_reloaded_checkpoint_is_the_intervened_runtime(family, published):
    """Stock transformers on the published files: within the planned bound, far below the edit's effect."""
    one = published(family)
    hosted, made = one.hosted, one.made
    assert made.certificate.passed
    stock = AutoModelForCausalLM.from_pretrained(one.folder).eval()
    limit = next(g.limit for g in one.plan.gates if g.name == "kl_intervened_exported_mean")
    for window in retain_ids(hosted)[:2]:
        with torch.inference_mode():
            logits = stock(torch.tensor([window])).logits[0]
            intervened, original = window_logits(hosted, window, PLAN), window_logits(hosted, window)
        assert float(kl_divergence(intervened, logits).mean()) <= limit <= 1e-6
        assert float(kl_divergence(original, logits).mean()) > 1e-4
    found = measured(made.certificate)
    assert found["kl_intervened_exported_mean"] <= limit
    assert found["elements_off_plan"] == found["tensors_changed_outside_plan"] == 0
    assert found["greedy_match"] == 1.0
    assert found["recovery"] > 0.999
    assert verify_folder(one.folder).passed


@pytest.mark.integration
@pytest.mark.parametrize("family", ["gpt2"])
def test_law_8_in_bfloat16(family, tmp_path, root):
    """Within the planned bound, which comes from the parent's own noise; weights are still exact."""
    hosted = hosted_in(tiny_folder(family, tmp_path / "parent", dtype=torch.bfloat16), torch.bfloat16)
    made = exported(hosted, edit_of(hosted, *PLAN), root / "edited")
    found = measured(made.certificate)
    assert made.certificate.dtype == "bfloat16"
    assert found["elements_off_plan"] == 0
    floor = found["noise_floor_attention_mean"] + found["noise_floor_dtype_mean"]
    assert (
        found["kl_intervened_exported_mean"] <= 1.5 * floor * 1.2
    )  # planned and certified floors differ slightly
    assert found["retain_kl_original_exported_mean"] > 5 * found["kl_intervened_exported_mean"]


@pytest.mark.integration
def test_a_no_op_export_leaves_every_tensor_and_file_as_it_was(parent, root):
    """Law 8: every tensor hash, and indeed every byte of the shards, equals the parent's."""
    (parent / "README.md").write_text("the parent's card")
    (parent / "pytorch_model.bin").write_text("unedited")
    hosted = hosted_in(parent)
    made = exported(hosted, edit_of(hosted), root / "same")
    entries = read_entries(parent)
    assert read_entries(root / "same") == entries
    assert all(sha256_of(parent, e) == sha256_of(root / "same", e) for e in entries.values())
    for name in {e.file for e in entries.values()} | {
        "config.json",
        "tokenizer.json",
        "generation_config.json",
    }:
        assert (root / "same" / name).read_bytes() == (parent / name).read_bytes()
    assert (root / "same" / "README.parent.md").read_text() == "the parent's card"
    assert not (root / "same" / "pytorch_model.bin").exists()
    manifest = json.loads((root / "same" / "edit_manifest.json").read_text())
    assert "pytorch_model.bin" in manifest["parent"]["left_out"]
    assert {f["path"] for f in manifest["parent"]["files"]} >= {"pytorch_model.bin", "README.md"}
    assert made.certificate.untouched_tensors_verified == len(entries)
    assert measured(made.certificate)["kl_intervened_exported_mean"] < 1e-9
    assert (made.certificate.verdict, made.certificate.passed) == ("inconclusive", False)
    assert made.certificate.doubt.startswith("the edit changes no tensor")
    assert (made.certificate.fate.verdict, made.certificate.fate.reason) == (
        "inconclusive",
        "no tensor was changed",
    )
    outcome = verify_folder(root / "same")
    assert (outcome.passed, outcome.verdict) == (True, "inconclusive")
    assert outcome.behaviour == "inconclusive (no tensor was changed)"
    assert "suppressed" not in (root / "same" / "README.md").read_text()


@pytest.mark.integration
def test_what_is_published(published):
    """Signed, certified, described, listed; loadable with its tokenizer; no trace of the build."""
    one = published("llama")
    made, folder = one.made, one.folder
    assert made.signed
    assert [p.name for p in folder.parent.iterdir()] == ["edited"]
    on_disk = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert [f.path for f in made.files] == on_disk
    assert {f.path: f.size for f in made.files} == {p: (folder / p).stat().st_size for p in on_disk}
    assert AutoTokenizer.from_pretrained(folder)(" Mary")["input_ids"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "compliant" not in card.lower()
    assert "| kl_intervened_exported_mean |" in card
    assert "a 'reason' with </script> and a line end" in card  # one line, inside a code span
    private = one.key.read_text().splitlines()[1]
    assert not any(private in (folder / p).read_text(errors="replace") for p in on_disk)
    outcome = verify_folder(folder)
    assert outcome.passed
    assert outcome.files == len(on_disk)


@pytest.mark.integration
def test_every_figure_of_the_card_is_the_certificates(published):
    """The table's, line by line, and every gate's: read from the folder, as anybody may."""
    folder = published("llama").folder
    certificate = json.loads((folder / "certificate.json").read_text(encoding="utf-8"))
    found = {one["name"]: one["value"] for one in certificate["measurements"]}
    card = (folder / "README.md").read_text(encoding="utf-8")
    shown = [(name, text) for name, text in _SHOWN if name in found]
    for (name, text), (label, value) in zip(shown, cells(card, "measurement"), strict=True):
        assert label.startswith(text)
        assert value == (f"{found[name]:.5f}" if "perplexity" in name else f"{found[name]:.3g}")
    for one, (name, value, *_) in zip(certificate["gates"], cells(card, "gate"), strict=True):
        assert name == one["gate"]["name"]
        assert found[name] == one["measured"] == pytest.approx(float(value), rel=5e-3)


def cells(card: str, table: str) -> list[list[str]]:
    """Return the rows of a card's table, by its first column's title."""
    rows = card.partition(f"\n| {table} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [row.removeprefix("| ").removesuffix(" |").split(" | ") for row in rows]


@pytest.mark.integration
def test_a_missed_gate_leaves_nothing(published, root, monkeypatch):
    """The error has the figures, here those of a sound export; a bound is never widened."""
    one = published("llama")
    hosted, edit = one.hosted, edit_of(one.hosted, *PLAN)
    certificate = one.made.certificate
    found = Findings(measurements=measured(certificate), environment=certificate.environment)
    monkeypatch.setattr(export, "certify", lambda *_, **__: returning(found))
    plan = impossible(planned(hosted, edit))
    with torch.inference_mode(), pytest.raises(GateMissedError) as caught:
        finish(compiling(hosted, edit, plan, root / "edited"))
    assert "kl_intervened_exported_mean = " in caught.value.message
    assert "planned at most -1" in caught.value.message
    assert "What to do: files and runtime are float32 already" in caught.value.message
    assert list(root.iterdir()) == []


@pytest.mark.integration
def test_a_missed_gate_can_be_kept_for_inspection(parent, root, tmp_path):
    """As NAME.rejected, unsigned, and never verified."""
    hosted = hosted_in(parent)
    edit = edit_of(hosted, *PLAN)
    plan = impossible(planned(hosted, edit))
    options = {"keep_rejected": True, "signing_key": str(write_key(tmp_path / "key.pem"))}
    with torch.inference_mode(), pytest.raises(GateMissedError, match=r"kept as edited\.rejected"):
        finish(compiling(hosted, edit, plan, root / "edited", **options))
    assert [p.name for p in root.iterdir()] == ["edited.rejected"]
    assert not (root / "edited.rejected" / "trephine.sig").exists()
    outcome = verify_folder(root / "edited.rejected")
    assert not outcome.passed
    assert any("kl_intervened_exported_mean" in problem for problem in outcome.problems)
    with pytest.raises(ExportTargetExistsError):
        next(compiling(hosted, edit, plan, root / "edited", **options))


def returning(value):
    """A quantum of work that comes to a value."""
    yield None
    return value


def impossible(plan):
    """Plan a first gate that nothing can meet."""
    plan = replace(plan, gates=(replace(plan.gates[0], limit=-1.0), *plan.gates[1:]))
    return replace(plan, plan_hash=plan_hash(plan))


def test_a_target_that_exists_is_refused_at_once(parent, root):
    """Before anything is copied."""
    hosted = hosted_in(parent)
    edit = edit_of(hosted, *PLAN)
    (root / "edited").mkdir()
    with pytest.raises(ExportTargetExistsError):
        next(compiling(hosted, edit, planned(hosted, edit), root / "edited"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda plan: replace(plan, gates=(replace(plan.gates[0], limit=1.0), *plan.gates[1:])),
        lambda plan: replace(plan, plan_hash="0" * 64),
        lambda plan: rehashed(replace(plan, edit_hash="0" * 64)),
        lambda plan: rehashed(replace(plan, changed_tensors=plan.changed_tensors[1:])),
    ],
    ids=["loosened gate", "other hash", "other edit", "fewer tensors"],
)
def test_only_the_plan_of_this_edit_is_carried_out(parent, root, spoil):
    """A plan that was altered, or is of something else, writes nothing."""
    hosted = hosted_in(parent)
    edit = edit_of(hosted, *PLAN)
    with pytest.raises(ParentChangedError, match="plan"):
        next(compiling(hosted, edit, spoil(planned(hosted, edit)), root / "edited"))
    assert list(root.iterdir()) == []


def rehashed(plan):
    return replace(plan, plan_hash=plan_hash(plan))


@pytest.mark.integration
def test_a_parent_that_may_only_be_read_is_exported_and_stays_as_it_is(parent, root):
    """Files and folder without a right to write: the export is whole, the parent is as it was.

    A superuser may write in spite of modes, so that bytes, modes, times and names of the parent are compared.
    """
    hosted = hosted_in(parent)
    for file in parent.iterdir():
        file.chmod(0o444)
    parent.chmod(0o555)
    before = standing(parent)
    try:
        made = exported(hosted, edit_of(hosted, *PLAN), root / "edited")
        assert standing(parent) == before
    finally:
        parent.chmod(0o755)
    assert {mode for name, (mode, _, _) in before.items() if name != "."} == {0o444}
    assert made.certificate.passed
    assert verify_folder(root / "edited").passed
    assert all(path.stat().st_mode & 0o200 for path in [root / "edited", *(root / "edited").rglob("*")])
    changed = [
        entry for entry in read_entries(parent).values() if entry.name in made.certificate.changed_tensors
    ]
    assert changed
    assert all(sha256_of(parent, entry) != sha256_of(root / "edited", entry) for entry in changed)


def standing(folder):
    """Mode, time of change and digest of a folder and of everything in it, by name."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        about = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[path.relative_to(folder).as_posix()] = (about.st_mode & 0o777, about.st_mtime_ns, digest)
    return found


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_files_that_changed_since_loading_are_refused(parent, root, how):
    """What would be compiled is not what was measured, whether loaded weights are mapped or copied."""
    hosted = hosted_in(parent)
    edit = edit_of(hosted, *PLAN)
    plan = planned(hosted, edit)
    entry = read_entries(parent)["model.norm.weight"]
    if how == "replaced":
        shutil.copy(parent / entry.file, parent / "new")
        (parent / "new").replace(parent / entry.file)
    overwrite(parent, entry, read_tensor(parent, entry) * 2)
    with torch.inference_mode(), pytest.raises(ParentChangedError):
        finish(compiling(hosted, edit, plan, root / "edited"))
    assert list(root.iterdir()) == []


def swapped(folder):
    """Swap two ids of a tokenizer: its tokens are others, its weights' hash is not."""
    told = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words = told["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (folder / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")


def turned(folder):
    """Give another rotary base."""
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    told["rope_parameters"]["rope_theta"] = 77.0
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")


BESIDE = {
    "tokenizer.json": swapped,
    "config.json": turned,
    "tokenizer_config.json": lambda folder: (folder / "tokenizer_config.json").unlink(),
    "special_tokens_map.json": lambda folder: (folder / "special_tokens_map.json").write_text("{}"),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("when", ["before the plan", "after the plan"])
def test_files_beside_the_weights_that_changed_since_loading_are_refused(parent, root, name, when):
    """By name, before anything is compiled: figures would be of what was loaded, and the folder of these."""
    hosted = hosted_in(parent)
    edit = edit_of(hosted, *PLAN)
    if when == "before the plan":
        BESIDE[name](parent)
        with pytest.raises(ParentChangedError, match=f"^{name} .* load the model again") as refused:
            planned(hosted, edit)
    else:
        plan, seen = planned(hosted, edit), []
        BESIDE[name](parent)
        steps = map(seen.append, compiling(hosted, edit, plan, root / "edited"))
        with torch.inference_mode(), pytest.raises(ParentChangedError, match=f"^{name} ") as refused:
            list(steps)
        assert {progress.stage for progress in seen if progress} == {"copy"}
    assert refused.value.context["file"] == name
    assert list(root.iterdir()) == []
    assert exportable(hosted_in(parent))


def exportable(hosted):
    """Whether a plan of a model that was loaded again is made."""
    return planned(hosted, edit_of(hosted, *PLAN)).plan_hash


def test_what_is_not_copied_may_change(parent, root):
    """An earlier export's papers, hidden files and other weights are no part of what is exported."""
    hosted = hosted_in(parent)
    for name in (".cache", "certificate.json", "model.gguf"):
        (parent / name).write_text("x")
    assert exportable(hosted)


def test_a_disk_without_room_is_refused_before_any_work(parent, root, monkeypatch):
    """The prediction counts the copy and the evidence."""
    hosted = hosted_in(parent)
    edit = edit_of(hosted, *PLAN)
    plan = planned(hosted, edit)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DiskFullError) as caught:
        next(compiling(hosted, edit, plan, root / "edited"))
    assert caught.value.context["needed"] > caught.value.context["free"]
    assert list(root.iterdir()) == []


WRITERS = ("copy_file", "write_weights", "write_adapter", "write_evidence", "certify")


@pytest.mark.parametrize("place", WRITERS)
def test_a_disk_that_fills_up_leaves_nothing(parent, root, monkeypatch, place):
    """Wherever the space ends, what was half written is removed and the error is typed."""
    hosted = hosted_in(parent)
    edit = edit_of(hosted, *PLAN)
    plan = planned(hosted, edit)
    writer = getattr(export, place)

    def at_once(*args: object, **kwargs: object) -> object:
        with files_end_at(100):
            return writer(*args, **kwargs)

    def by_quanta(*args: object, **kwargs: object) -> Generator[object, None, object]:
        with files_end_at(100):
            return (yield from writer(*args, **kwargs))

    monkeypatch.setattr(export, place, by_quanta if isgeneratorfunction(writer) else at_once)
    with torch.inference_mode(), pytest.raises(DiskFullError, match="make room"):
        finish(compiling(hosted, edit, plan, root / "edited"))
    assert list(root.iterdir()) == []


@pytest.mark.integration
def test_ending_an_export_ends_its_clean_process_and_leaves_nothing(parent, root):
    """Closing the generator, which is what a cancelled call does, is enough."""
    hosted = hosted_in(parent)
    edit = edit_of(hosted, *PLAN)
    plan = planned(hosted, edit)
    before = set(psutil.Process().children(recursive=True))
    with torch.inference_mode():
        work = compiling(hosted, edit, plan, root / "edited")
        while not (started := set(psutil.Process().children(recursive=True)) - before):
            next(work)
        assert list(root.glob(".trephine-tmp-*"))
        work.close()
    assert not any(process.is_running() for process in started)
    assert list(root.iterdir()) == []


@pytest.mark.integration
def test_a_folder_that_stock_transformers_cannot_load_is_never_published(parent, root, monkeypatch):
    """The clean process fails; its last words are in the error."""
    hosted = hosted_in(parent)
    edit = edit_of(hosted, *PLAN)
    plan = planned(hosted, edit)
    original = export.write_evidence

    def sabotage(hosted, retain, interventions, features, folder, **options: object):
        (folder.parent / "checkpoint" / "config.json").write_text("{}")
        return original(hosted, retain, interventions, features, folder, **options)

    monkeypatch.setattr(export, "write_evidence", sabotage)
    with torch.inference_mode(), pytest.raises(GateMissedError, match="clean process"):
        finish(compiling(hosted, edit, plan, root / "edited"))
    assert list(root.iterdir()) == []


def test_a_broken_signing_key_is_refused(parent, root, tmp_path, monkeypatch):
    """Named as the field it is; nothing is published unsigned instead."""
    from trephine.engine.exports import signing

    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(InvalidRequestError) as caught:
        signing.write_public_key(tmp_path / "key.pem", tmp_path)
    assert caught.value.context["field"] == "signing_key"
    assert isinstance(caught.value, TrephineError)


def test_every_quantum_before_certification_is_one_file_or_tensor(parent, root):
    """Progress is told, in the order of the work."""
    hosted = hosted_in(parent)
    edit = edit_of(hosted, *PLAN)
    work = compiling(hosted, edit, planned(hosted, edit), root / "edited")
    stages: list[str] = []
    with torch.inference_mode():
        for event in work:
            if isinstance(event, Progress) and event.stage not in stages:
                stages.append(event.stage)
            if "evidence" in stages:
                break
    work.close()
    assert stages == ["copy", "check parent", "compile", "evidence"]


def test_a_clean_process_that_hangs_is_given_up(parent, root, monkeypatch, tmp_path):
    """After its time limit, with nothing published."""
    from trephine.domain.errors import DeadlinePassedError
    from trephine.engine.certificates import certification, clean_process

    script = tmp_path / "hang.py"
    script.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(certification, "SCRIPT", script)
    monkeypatch.setattr(clean_process, "TIME_LIMIT_SECONDS", 0.3)
    hosted = hosted_in(parent)
    edit = edit_of(hosted, *PLAN)
    plan = planned(hosted, edit)
    with torch.inference_mode(), pytest.raises(DeadlinePassedError):
        finish(compiling(hosted, edit, plan, root / "edited"))
    assert list(root.iterdir()) == []
