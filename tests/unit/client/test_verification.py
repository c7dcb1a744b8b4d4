"""Offline verification: green on what was published, red after any change, naming the file."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import trephine.client
from tests.builders import tiny_folder
from tests.unit.engine.exporting import edit_of, exported, hosted_in, write_key
from tests.unit.engine.interventions import neuron
from trephine.client.cli import main as run_command
from trephine.client.digests import tensor_digests
from trephine.client.errors import InvalidRequestError, SignatureKindError, SignatureUncheckedError
from trephine.client.local_errors import LocalFileError
from trephine.client.verification import main as run_module
from trephine.client.verification import verify_folder
from trephine.domain.interventions import Ablate, Scale

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """One signed export of several shards for the module; never changed."""
    base = tmp_path_factory.mktemp("published")
    hosted = hosted_in(tiny_folder("llama", base / "parent", max_shard_size="60KB"))
    edit = edit_of(hosted, neuron(0, 3, Ablate()), neuron(1, 5, Scale(factor=0.5)))
    exported(hosted, edit, base / "edited", signing_key=str(write_key(base / "key.pem")))
    return base / "edited"


@pytest.fixture
def folder(published, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(published, tmp_path / "edited"))


def flip(path: Path, place: float, bit: int = 0) -> None:
    """Flip one bit of one byte at a share of a file's length."""
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1 << bit
    path.write_bytes(data)


def rewrite(path: Path, **fields: object) -> None:
    """Change fields of a JSON file, then make the list of digests fit, as a forger would."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields, indent=1, sort_keys=True) + "\n")
    relist(path.parent)


def relist(folder: Path) -> None:
    """Write manifest entries and digests anew."""
    manifest = json.loads((folder / "edit_manifest.json").read_text())
    for file in manifest["files"]:
        data = (folder / file["path"]).read_bytes()
        file |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "edit_manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    digests = {
        n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names if n != "trephine.sha256"
    }
    (folder / "trephine.sha256").write_text("".join(f"{digests[n]}  {n}\n" for n in sorted(digests)))


def test_the_package_offers_what_works_on_folders():
    """From `trephine.client`, as documented; other names are no attributes."""
    assert trephine.client.verify_folder is verify_folder
    assert trephine.client.make_delta.__module__ == "trephine.client.deltas"
    assert trephine.client.apply_delta.__module__ == "trephine.client.deltas"
    assert set(trephine.client.__all__) <= {*dir(trephine.client), *trephine.client._OFFLINE}
    assert not hasattr(trephine.client, "nothing_of_the_kind")


def test_what_was_published_verifies(published):
    """Every file is read; the note says what a key inside the folder does not prove."""
    outcome = verify_folder(published)
    assert outcome.problems == ()
    assert outcome.passed
    assert outcome.files == len([p for p in published.rglob("*") if p.is_file()])
    assert "key of your own" in outcome.notes[0]


def test_one_flipped_bit_in_any_file_is_found_and_the_file_named(published, folder):
    """At the beginning, in the middle and at the end of each file, several bits."""
    names = sorted(p.relative_to(published).as_posix() for p in published.rglob("*") if p.is_file())
    assert len(names) > 10
    for name in names:
        for place, bit in ((0.0, 0), (0.31, 5), (0.5, 1), (1.0, 3)):
            flip(folder / name, place, bit)
            outcome = verify_folder(folder)
            assert not outcome.passed, (name, place)
            assert any(name in problem for problem in outcome.problems), (name, place, outcome.problems)
            shutil.copy(published / name, folder / name)
    assert verify_folder(folder).passed


def test_the_stock_tool_agrees_about_one_flipped_byte(folder):
    """`model_signing verify key`, as the documentation types it, beside ours: whole, then spoilt."""
    from click.testing import CliRunner
    from model_signing._cli import main

    words = ["verify", "key", str(folder), "--signature", str(folder / "trephine.sig")]
    asked = [*words, "--public_key", str(folder / "public_key.pem")]
    assert (CliRunner().invoke(main, asked).exit_code, run_module([str(folder)])) == (0, 0)
    flip(min(folder.glob("model-*.safetensors")), 0.5)
    assert CliRunner().invoke(main, asked).exit_code != 0
    assert run_module([str(folder)]) == 3


@pytest.mark.parametrize("name", ["config.json", "trephine.sig", "edit_manifest.json", "trephine.sha256"])
def test_a_missing_file_is_found(folder, name):
    """Papers and payload alike."""
    (folder / name).unlink()
    outcome = verify_folder(folder)
    assert not outcome.passed
    assert any(name in problem for problem in outcome.problems)


def test_a_missing_or_cut_shard_is_one_problem_of_its_own(folder):
    """Not one per tensor; the signature no longer holds either."""
    shard = min(folder.glob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:4])
    cut = verify_folder(folder).problems
    assert sum("no readable safetensors file" in problem for problem in cut) == 1
    assert not any(": tensor " in problem for problem in cut)
    shard.unlink()
    problems = verify_folder(folder).problems
    assert [p for p in problems if p.startswith(shard.name)] == [f"{shard.name}: missing"]
    assert [p.split(":")[0] for p in problems] == [shard.name, "trephine.sig"]


def test_a_public_key_that_cannot_be_read_is_no_broken_signature(published, folder, tmp_path, capsys):
    """Missing, or a private key: an error that says where a server's key lies, and status 2."""
    for key in (tmp_path / "missing.pem", published.parent / "key.pem"):
        with pytest.raises(LocalFileError, match=r"signing\.pub\.pem in its state folder"):
            verify_folder(published, public_key=key)
        assert run_module([str(published), "--public-key", str(key)]) == 2
        assert "state folder" in capsys.readouterr().err
    flip(folder / "config.json", 0.5)
    assert run_module([str(folder)]) == 3
    assert "next: fetch the folder again" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["extra.txt", "pytorch_model.bin", ".hidden", "deep/inside.json"])
def test_an_additional_file_is_found(folder, name):
    """Also hidden ones and those in new folders: they could be loaded instead."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    outcome = verify_folder(folder)
    assert not outcome.passed
    assert any(name in problem for problem in outcome.problems)


def test_links_are_refused(folder, tmp_path):
    """A link shows today what is elsewhere tomorrow."""
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    assert not verify_folder(folder).passed


def test_a_link_to_a_folder_stands_for_what_it_leads_to(folder, tmp_path):
    """As `current` does for the latest export: whole where that is whole, and spoilt where it is not."""
    (tmp_path / "current").symlink_to(folder)
    outcome = verify_folder(tmp_path / "current", public_key=folder / "public_key.pem")
    assert (outcome.passed, outcome.problems) == (True, ())
    flip(folder / "config.json", 0.5)
    assert not verify_folder(tmp_path / "current").passed


def test_a_key_that_signs_no_export_is_no_broken_signature(published, tmp_path, capsys):
    """Of RSA, and of another curve: the folder is not said to be spoilt for it."""
    keys = (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256K1()))
    for key in keys:
        path = tmp_path / "other.pem"
        path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        with pytest.raises(LocalFileError, match=r"other\.pem is no public key of the kind that signs"):
            verify_folder(published, public_key=path)
        assert run_module([str(published), "--public-key", str(path)]) == 2
        assert "state folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json was signed and is missing"),
        (lambda f: (f / "new.txt").write_text("x"), "new.txt was not signed"),
        (lambda f: flip(f / "tokenizer.json", 0.5), "tokenizer.json is not what was signed"),
        (lambda f: (f / "public_key.pem").unlink(), "the folder's own public_key.pem is missing"),
        (
            lambda f: (f / "public_key.pem").write_text("x"),
            "the folder's own public_key.pem is no public key",
        ),
        (lambda f: cut(f / "trephine.sig", 100), "it is no signature that can be read"),
        (lambda f: (f / "trephine.sig").write_text("{}"), "it is no signature that can be read"),
        (lambda f: other_key(f / "public_key.pem"), "it was made with another key"),
    ],
)
def test_why_a_signature_does_not_hold_is_said_in_words(spoil, said, folder):
    """And not in the library's, which are of its parsers, or list digests and paths."""
    spoil(folder)
    (problem,) = (p for p in verify_folder(folder).problems if p.startswith("trephine.sig: does"))
    assert problem == f"trephine.sig: does not hold: {said}"


def cut(path: Path, length: int) -> None:
    """Leave the first bytes of a file."""
    path.write_bytes(path.read_bytes()[:length])


def other_key(path: Path) -> None:
    """Put another key of the right kind in the place of one."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def test_swapped_shards_are_found_by_their_tensors(folder):
    """Even if every list of digests was made to fit."""
    one, two = sorted(folder.glob("model-*.safetensors"))[:2]
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    relist(folder)
    problems = verify_folder(folder).problems
    assert any("tensor" in p for p in problems)
    assert any("trephine.sig" in p for p in problems)


def test_a_raised_measurement_is_judged_again(folder):
    """A certificate that shows a figure above its limit does not pass, whatever it says itself."""
    certificate = json.loads((folder / "certificate.json").read_text())
    gates, name = certificate["gates"], certificate["gates"][0]["gate"]["name"]
    gates[0]["measured"] = 1.0
    rewrite(folder / "certificate.json", gates=gates)
    problems = verify_folder(folder).problems
    assert any(p.startswith(f"gate {name}") for p in problems)
    assert any("marked wrongly" in p for p in problems)
    assert any("does not show what was measured" in p for p in problems)


def test_a_loosened_gate_is_found(folder):
    """The certificate's limits must be the plan's, and the plan's hash must be its own."""
    certificate = json.loads((folder / "certificate.json").read_text())
    certificate["gates"][0]["gate"]["limit"] = 9.0
    rewrite(folder / "certificate.json", gates=certificate["gates"])
    assert any("not those of the plan" in p for p in verify_folder(folder).problems)
    plan = json.loads((folder / "edit_manifest.json").read_text())["plan"]
    plan["gates"][0]["limit"] = 9.0
    rewrite(folder / "edit_manifest.json", plan=plan)
    problems = verify_folder(folder).problems
    assert any("not the one that its hash names" in p for p in problems)


@pytest.mark.parametrize("field", ["edit_hash", "parent_hash", "plan_hash"])
def test_the_chain_of_hashes_is_followed(folder, field):
    """A certificate of another edit, parent or plan does not certify this folder."""
    rewrite(folder / "certificate.json", **{field: "0" * 64})
    problems = [p for p in verify_folder(folder).problems if p.startswith("certificate.json")]
    assert len(problems) == 1


def test_a_change_that_was_not_planned_is_found_in_the_manifest(folder):
    """A tensor whose digests differ must be one of the plan's."""
    tensors = json.loads((folder / "edit_manifest.json").read_text())["tensors"]
    tensors["model.norm.weight"]["before"] = "0" * 64
    rewrite(folder / "edit_manifest.json", tensors=tensors)
    assert any("model.norm.weight" in p for p in verify_folder(folder).problems)


def test_a_whole_forgery_fails_at_the_signature(folder, tmp_path):
    """Who makes every digest fit cannot make the signature fit; nor replace it against a trusted key."""
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    relist(folder)
    assert [p.split(":")[0] for p in verify_folder(folder).problems] == ["trephine.sig"]


def test_a_trusted_key_proves_who_signed(published, tmp_path):
    """The published key's owner passes, anybody else's key does not."""
    from trephine.engine.exports.signing import write_public_key

    write_public_key(published.parent / "key.pem", tmp_path)
    outcome = verify_folder(published, public_key=tmp_path / "public_key.pem")
    assert outcome.passed
    assert outcome.notes == ("signed with the key whose public half is public_key.pem",)
    write_public_key(write_key(tmp_path / "other.pem"), tmp_path)
    outcome = verify_folder(published, public_key=tmp_path / "public_key.pem")
    assert [p.split(":")[0] for p in outcome.problems] == ["trephine.sig"]


def test_a_key_answers_no_question_about_an_identity(published, folder, tmp_path, capsys):
    """An error of its own, for programs as well; half a question and two questions are refused."""
    asked = {"identity": "me@example.org", "identity_provider": "https://accounts.google.com"}
    with pytest.raises(SignatureKindError, match="names no identity: verify it with --public-key"):
        verify_folder(published, **asked)
    words = ["--identity", "me@example.org", "--identity-provider", "https://accounts.google.com"]
    assert run_module([str(published), "--json", *words]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "SIGNATURE_KIND"
    for half in ("identity", "identity_provider"):
        with pytest.raises(InvalidRequestError, match="go together"):
            verify_folder(published, **{half: asked[half]})
    with pytest.raises(InvalidRequestError, match="not both"):
        verify_folder(published, **asked, public_key=published / "public_key.pem")
    (tmp_path / "other.json").write_text("{}")
    for file in ("none.json", "other.json"):
        with pytest.raises(LocalFileError, match="trust configuration"):
            verify_folder(published, **asked, sigstore_trust_config=tmp_path / file)
    (folder / "trephine.sig").unlink()
    assert "trephine.sig: missing, and an identity was given" in verify_folder(folder, **asked).problems


@pytest.fixture
def bare(monkeypatch):
    """An installation without the package that checks signatures."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "model_signing"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "model_signing", None)


def forge(folder: Path) -> None:
    """Change a file and make every digest fit."""
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    relist(folder)


def claim_sigstore(folder: Path) -> None:
    """Put something in the signature's place that looks as if Sigstore had made it."""
    (folder / "trephine.sig").write_text('{"verificationMaterial": {"certificate": {}}}')
    relist(folder)


def strip(folder: Path) -> None:
    """Make it a folder that was published without a signature."""
    for name in ("trephine.sig", "public_key.pem"):
        (folder / name).unlink()
    manifest = json.loads((folder / "edit_manifest.json").read_text())
    manifest["files"] = [file for file in manifest["files"] if file["path"] != "public_key.pem"]
    (folder / "edit_manifest.json").write_text(json.dumps(manifest))
    relist(folder)


@pytest.mark.parametrize(
    "change", [lambda folder: None, forge, claim_sigstore], ids=["genuine", "forged", "as if by Sigstore"]
)
def test_a_signature_that_cannot_be_checked_is_no_pass(change, bare, folder, monkeypatch, capsys):
    """Without the package, with or without a trusted key: an error that says what to install, status 2."""
    change(folder)
    kind = "sigstore" if change is claim_sigstore else "key"
    asked = {} if kind == "sigstore" else {"public_key": folder / "public_key.pem"}
    for trust in ({}, asked):
        with pytest.raises(SignatureUncheckedError, match=r"pip install 'trephine\[verify\]'"):
            verify_folder(folder, **trust)
    assert run_module([str(folder), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "SIGNATURE_UNCHECKED"
    monkeypatch.setattr(sys, "argv", ["trephine", "verify", str(folder)])
    with pytest.raises(SystemExit) as ended:
        run_command()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert "verified" not in printed.out
    assert "pip install 'trephine[verify]'" in printed.err


def test_what_is_spoilt_is_named_where_the_signature_cannot_be_checked(bare, folder):
    """That much needs no package: status 3, and what was left undone is a note."""
    flip(folder / "config.json", 0.5)
    outcome = verify_folder(folder)
    assert not outcome.passed
    assert any("config.json" in problem for problem in outcome.problems)
    assert any("pip install 'trephine[verify]'" in note for note in outcome.notes)
    assert run_module([str(folder)]) == 3


@pytest.mark.parametrize("installed", [True, False])
def test_without_a_signature_only_who_asks_for_one_is_refused(installed, folder, published, request):
    """The package makes no difference: whole is a pass that says what it does not prove; asked, no pass."""
    if not installed:
        request.getfixturevalue("bare")
    strip(folder)
    outcome = verify_folder(folder)
    assert outcome.passed
    assert outcome.notes == ("not signed: nothing proves who made this folder",)
    asked = verify_folder(folder, public_key=published / "public_key.pem")
    assert asked.problems == ("trephine.sig: missing, and a public key was given",)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"plan": 3}', "\x00", "{" * 5000, "[" * 100_000])
@pytest.mark.parametrize("name", ["certificate.json", "edit_manifest.json"])
def test_unreadable_papers_are_a_problem_and_no_crash(folder, name, content):
    """Whatever lies there instead of JSON of the right shape."""
    (folder / name).write_text(content)
    outcome = verify_folder(folder)
    assert not outcome.passed
    assert outcome.problems


def test_a_folder_of_something_else_is_not_verified(tmp_path):
    """An ordinary checkpoint, an empty folder, no folder."""
    plain = tiny_folder("llama", tmp_path / "plain")
    for path in (plain, tmp_path / "nowhere"):
        assert not verify_folder(path).passed
    (tmp_path / "empty").mkdir()
    assert "missing" in verify_folder(tmp_path / "empty").problems[0]


def test_the_module_is_a_program_without_torch(published, folder):
    """`python -m trephine.client.verification FOLDER --json`: 0 and JSON, or 3; torch is never imported."""
    command = [sys.executable, "-m", "trephine.client.verification"]
    good = subprocess.run([*command, str(published), "--json"], capture_output=True, check=False)
    assert good.returncode == 0
    assert json.loads(good.stdout)["passed"] is True
    flip(folder / "config.json", 0.5)
    bad = subprocess.run([*command, str(folder)], capture_output=True, check=False)
    assert bad.returncode == 3
    assert b"PROBLEM config.json" in bad.stdout
    assert b"Warning" not in bad.stderr
    code = "import sys, trephine.client.verification; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_stock_tool_checks_the_bytes_too(published):
    """`sha256sum --check` reads the list of digests."""
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "trephine.sha256"], cwd=published, check=False
    )
    assert done.returncode == 0


def test_gaps_between_tensors_are_refused(tmp_path):
    """Bytes that belong to no tensor could hide anything."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match="gaps"):
        list(tensor_digests(path))
