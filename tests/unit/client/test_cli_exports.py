"""Signing, listing and showing exports on the command line, against a fake server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.fakes.grpc_server import FakeService
from trephine.client.cli import main, service
from trephine.client.cli.certificate_text import stored_floor
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.decoding import decode
from trephine.client.types import Certificate
from trephine.v1 import edit_history_pb2, removal_pb2
from trephine.v1 import edit_service_pb2 as pb
from trephine.v1 import export_signing_pb2 as signing

Run = Callable[..., int]
ME = signing.SignedBy(
    kind=signing.SIGNATURE_KIND_SIGSTORE, identity="me@example.org", identity_provider="https://idp.org"
)
GATE = pb.GateResult(gate=pb.Gate(name="kl_mean", limit=1.0), measured=0.5, passed=True)


FIGURES = [
    pb.Measurement(name="kl_intervened_exported_p999", value=0.00123, unit="nats"),
    pb.Measurement(name="recovery", value=0.9987, unit="share"),
    pb.Measurement(name="kl_intervened_exported_mean", value=2e-7, unit="nats/token"),
    pb.Measurement(name="kl_intervened_exported_firing_mean", value=3e-7, unit="nats/token"),
    pb.Measurement(name="noise_floor_attention_mean", value=1e-11, unit="nats/token"),
    pb.Measurement(name="noise_floor_dtype_mean", value=1e-3, unit="nats/token"),
    pb.Measurement(name="noise_floor_dtype_firing_mean", value=4e-3, unit="nats/token"),
    pb.Measurement(name="kl_intervened_exported_in_stored_dtype_firing_mean", value=5e-3, unit="nats/token"),
    pb.Measurement(name="top1_agreement", value=0.75, unit="share"),
    pb.Measurement(name="recovery_both_in_stored_dtype_firing", value=0.96, unit="share"),
    pb.Measurement(name="greedy_match_in_stored_dtype", value=0.5, unit="share"),
    pb.Measurement(name="noise_greedy_match_in_stored_dtype", value=0.625, unit="share"),
    pb.Measurement(name="perplexity_ratio_both_in_stored_dtype", value=1.001, unit="ratio"),
]


DOUBT = "the edit moves less than rounding"
SET = edit_history_pb2.EditSet(name="measured", content_hash="c" * 64)


def stored(name: str, verdict: str = "PASSED", **fields: object) -> pb.Export:
    """An export that was not attacked."""
    fate = removal_pb2.Fate(verdict=removal_pb2.REMOVAL_VERDICT_SUPPRESSED, reason="not attacked")
    certificate = pb.Certificate(
        edit="edits/quiet", passed=verdict == "PASSED", gates=[GATE], measurements=FIGURES, fate=fate,
        verdict=f"EXPORT_VERDICT_{verdict}", doubt=DOUBT * (verdict == "INCONCLUSIVE"), dtype="bfloat16",
        environment={"compute_dtype": "float32"}, sets=[SET],
    )  # fmt: skip
    return pb.Export(name=f"exports/{name}", certificate=certificate, signed=True, **fields)


MAIN = {
    "KL from the intervened runtime, all tokens\t2.00e-07\t1.00e-11\tthe parent's own rounding",
    "KL from the intervened runtime, firing tokens\t3.00e-07\t-\t",
    "KL from the intervened runtime, run in bfloat16, firing tokens\t5.00e-03\t4.00e-03"
    "\tthe parent's own, as stored: bfloat16 against float32",
    "edit that is carried, all tokens\t0.9987\t-\t",
    "top-1 agreement\t0.7500\t-\t",
    "edit that is carried, run in bfloat16, as is the runtime, firing tokens\t0.9600\t-\t",
    "greedy tokens that match, run in bfloat16\t0.5000\t0.6250"
    "\tthe parent's own, as stored: bfloat16 against float32",
    "ratio of perplexities, run in bfloat16, as is the runtime\t1.0010\t-\t",
}
"""Rows that `show` and `export` print of the figures above; what was not measured has none."""


class Exports(FakeService):
    """A server with two exports; it refuses to sign where it is told to."""

    unreachable = False
    verdict = "PASSED"

    def ListExports(self, request, context):
        """One page each."""
        self._note(request, context)
        if not request.page_token:
            return pb.ListExportsResponse(
                exports=[stored("new", signed_by=ME, create_time="2026-02-01T00:00:00Z")], next_page_token="2"
            )
        return pb.ListExportsResponse(exports=[stored("old\x1b[2J", "INCONCLUSIVE")])

    def GetExport(self, request, context):
        """There is `new`."""
        self._note(request, context)
        if request.name != "exports/new":
            self._fail(context, grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND", f"no export {request.name}")
        return stored("new", signed_by=ME, create_time="2026-02-01T00:00:00Z")

    def PlanExport(self, request, context):
        """One of nothing."""
        self._note(request, context)
        return pb.ExportPlan(edit=request.edit)

    def ExportCheckpoint(self, request, context):
        """Sign, or say that Sigstore is away."""
        if self.unreachable:
            self._fail(context, grpc.StatusCode.UNAVAILABLE, "SIGSTORE_UNREACHABLE", "no network")
        self._note(request, context)
        made = self._export(f"exports/{request.export_id}")
        made.certificate.CopyFrom(stored("new", self.verdict).certificate)
        return self._start("ExportCheckpoint", made)


@pytest.fixture
def fake() -> FakeService:
    """In the place of the ordinary fake."""
    return Exports()


@pytest.fixture
def run(address: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against the fake and return its exit status."""

    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["trephine", "--server", address, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return command


@pytest.mark.parametrize(
    ("stored", "compute", "floor", "label"),
    [
        ("float16", "float32", "float16", ", as stored: float16 against float32"),
        ("float16", "float32", None, ": bfloat16 against float32"),
        ("float16", "bfloat16", "float32", ": float32 against bfloat16"),
        ("bfloat16", None, None, " rounding"),
    ],
)
def test_the_floor_of_a_folder_as_stored_names_its_types(
    stored: str, compute: str | None, floor: str | None, label: str
):
    """It says that it is of the stored type where it is; older certificates measured bfloat16 in any case."""
    told = {"compute_dtype": compute, "floor_dtype": floor}
    environment = {name: dtype for name, dtype in told.items() if dtype}
    certificate = decode(Certificate, pb.Certificate(dtype=stored, environment=environment))
    assert stored_floor(certificate) == f"the parent's own{label}"


def test_exports_are_listed_with_who_signed(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """Every page, escapes shown; as JSON the response itself; an edit reaches the request."""
    assert run("exports", "list", "--edit", "quiet@2") == 0
    assert fake.requests[0].edit == "edits/quiet@2"
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    fields = ["edits/quiet", "1 of 1 hold", "suppressed (not attacked)"]
    assert lines[1] == [
        "exports/new",
        "2026-02-01T00:00:00Z",
        fields[0],
        "PASSED",
        *fields[1:],
        "by me@example.org",
    ]
    assert lines[2] == ["exports/old\\x1b[2J", "", fields[0], "INCONCLUSIVE", *fields[1:], "by key"]
    assert run("--json", "exports", "list") == 0
    listed = json.loads(capsys.readouterr().out)["exports"]
    assert [one["name"] for one in listed] == ["exports/new", "exports/old\x1b[2J"]


def test_one_export_is_shown(run: Run, capsys: pytest.CaptureFixture[str]):
    """The certificate's figures, who signed, when; no folder of this machine."""
    assert run("exports", "show", "new") == 0
    out = capsys.readouterr().out
    assert "me@example.org, for whom https://idp.org vouches" in out
    assert "kl_mean\t0.5" in out
    assert "kl_intervened_exported_p999\t0.00123\tnats" in out
    assert "recovery\t0.999\tshare" in out
    assert "behaviour: suppressed (not attacked)" in out
    assert "folder" not in out
    assert f"set          measured, content {SET.content_hash}" in out
    assert "verdict      PASSED" in out
    assert set(out.splitlines()) >= MAIN
    assert run("exports", "show", "nobody") == ExitCode.USAGE


@pytest.mark.parametrize(
    ("words", "given"), [((), None), (("--sigstore",), ""), (("--identity-token-file", "TOKEN"), "a.b.c")]
)
def test_a_token_goes_into_the_request_and_the_name_says_sigstore(
    fake: FakeService, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], words, given
):
    """The key is the default; a token file asks for Sigstore by itself; nothing prints the token."""
    (tmp_path / "token").write_text("a.b.c\n")
    words = [str(tmp_path / "token") if word == "TOKEN" else word for word in words]
    assert run("export", "no-mary", "--out", str(tmp_path / "out"), *words) == 0
    (asked,) = [one for one in fake.requests if isinstance(one, pb.ExportCheckpointRequest)]
    assert asked.HasField("sigstore") == (given is not None)
    assert asked.sigstore.identity_token == (given or "")
    assert asked.sigstore.HasField("identity_token") == bool(given)
    assert ("-sigstore-" in asked.export_id) == (given is not None)
    assert "a.b.c" not in "".join(capsys.readouterr())


def test_how_long_an_attack_trains_goes_into_the_request_and_the_name(
    fake: FakeService, run: Run, tmp_path: Path
):
    """Unset where it is not asked; another length is another export."""
    for number, words in enumerate(((), ("--attack-steps", "200"))):
        assert run("export", "no-mary", "--out", str(tmp_path / str(number)), "--attack", *words) == 0
    plain, longer = [one for one in fake.requests if isinstance(one, pb.ExportCheckpointRequest)]
    assert plain.attack
    assert not plain.HasField("attack_steps")
    assert "-attacked-" in plain.export_id
    assert longer.attack_steps == 200
    assert longer.export_id.split("-", 1)[1] != plain.export_id.split("-", 1)[1]


@pytest.mark.parametrize(
    "words",
    [
        ("--out", "somewhere"),
        ("--attack",),
        ("--attack-steps", "0"),
        ("--sigstore",),
        ("--identity-token-file", "token"),
        ("--keep-rejected",),
        ("--detach",),
        ("--attack", "--detach"),
    ],
)
def test_a_plan_refuses_what_only_an_export_does(
    fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
):
    """By the option's name, before the server is asked: dropped in silence, it would seem to be done."""
    assert run("export", "no-mary", "--plan", *words) == ExitCode.USAGE
    err = capsys.readouterr().err
    assert all(word in err for word in words if word.startswith("--"))
    assert "leave --plan out to export" in err
    assert fake.requests == []


def test_a_plan_takes_all_that_it_depends_on(fake: FakeService, run: Run, tmp_path: Path):
    """The text, what fits must carry, shapes, GGUF files and the model."""
    (tmp_path / "text").write_text("some text")
    words = ("--text", str(tmp_path / "text"), "--min-recovery", "0.5", "--keep-shapes", "--gguf", "q8_0")
    assert run("export", "no-mary", "--plan", *words, "--model", "smollm2") == 0
    (asked,) = [one for one in fake.requests if isinstance(one, pb.PlanExportRequest)]
    assert (asked.text, asked.min_recovery, asked.keep_shapes) == ("some text", 0.5, True)
    assert len(asked.gguf) == 1


def test_refusals_say_what_to_do(
    fake: FakeService, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """No network: the key signs without; a token file that is not there is a local error."""
    fake.unreachable = True
    assert run("export", "no-mary", "--out", str(tmp_path / "out"), "--sigstore") == ExitCode.INTERNAL
    err = capsys.readouterr().err
    assert "no network" in err
    assert "without --sigstore the server's key signs" in err
    assert not (tmp_path / "out").exists()
    missing = str(tmp_path / "none")
    assert run("export", "no-mary", "--out", str(tmp_path / "out"), "--identity-token-file", missing) != 0
    err = capsys.readouterr().err
    assert f"cannot read the identity token {missing}: No such file" in err
    assert "Write the OpenID Connect token there, or leave --identity-token-file out" in err


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        ("PASSED", ExitCode.PASS),
        ("INCONCLUSIVE", ExitCode.INCONCLUSIVE),
        ("UNSPECIFIED", ExitCode.INTERNAL),
        ("FAILED", ExitCode.INTERNAL),
    ],
)
def test_an_export_ends_with_its_verdict(
    fake: FakeService, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], verdict, status
):
    """An inconclusive one comes home, says so and exits with 4; one that did not pass does not come."""
    fake.verdict = verdict
    assert run("export", "no-mary", "--out", str(tmp_path / "out")) == status
    out = capsys.readouterr().out
    assert (tmp_path / "out").exists() == (status != ExitCode.INTERNAL)
    if status != ExitCode.INTERNAL:
        assert f"verdict      {verdict}" in out
        assert (f"INCONCLUSIVE: {DOUBT}" in out) == (verdict == "INCONCLUSIVE")
        assert set(out.splitlines()) >= MAIN
        assert "recovery\t" not in out  # every figure by its name: `exports show`


def test_serve_passes_what_signs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Keys, tokens and trust reach the server's own flags, as absolute paths."""
    seen: list[str] = []
    monkeypatch.setattr(service, "become_service", lambda *words: seen.extend(words))
    monkeypatch.setattr(
        sys, "argv", ["trephine", "--state", str(tmp_path), "serve", "--signing-key", "k.pem"]
    )
    sys.argv += ["--sigstore-token-file", "/t", "--sigstore-trust-config", "/c.json"]
    with pytest.raises(SystemExit):
        main()
    assert seen[seen.index("--signing-key") + 1] == str(Path("k.pem").absolute())
    assert seen[seen.index("--sigstore-token-file") + 1] == "/t"
    assert seen[seen.index("--sigstore-trust-config") + 1] == "/c.json"
