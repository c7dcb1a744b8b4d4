"""The command line against a fake server: streams, exit codes, escapes."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.grpc_server import FakeService
from trephine.client import server_process
from trephine.client.cli import main, service
from trephine.client.cli.exit_codes import INTERRUPTED, ExitCode
from trephine.v1 import audit_service_pb2, edit_service_pb2, model_service_pb2
from trephine.v1.audit_service_pb2 import RunAuditRequest

Run = Callable[..., int]


@pytest.fixture
def run(address: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against the fake and return its exit status."""

    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["trephine", "--server", address, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return command


def test_results_go_to_stdout_and_progress_to_stderr(run: Run, capsys: pytest.CaptureFixture[str]):
    """A pipe sees the result only; progress is plain lines without escapes."""
    assert run("discover", "Mary", "--target", " Mary", "--model", "tiny") == ExitCode.PASS
    out, err = capsys.readouterr()
    assert "circuits/c1" in out
    assert "discover" not in out
    assert "discover: step" in err
    assert "\x1b" not in out + err


def test_a_model_is_used_as_it_is_loaded(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """Commands name no type: what was loaded in another is served under that name, and is said to be."""
    fake.dtype = "bfloat16"
    assert run("generate", "When Mary", "-m", "tiny") == 0
    assert fake.operations == {}
    assert "models/tiny is loaded in bfloat16" in capsys.readouterr().err


def test_json_is_the_response_and_nothing_else(run: Run, capsys: pytest.CaptureFixture[str]):
    """`--json` prints the contract's message; progress stays on stderr."""
    assert run("--json", "discover", "Mary", "--target", " Mary", "--model", "tiny") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "circuits/c1"
    assert run("--json", "models", "list") == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 2


def test_untrusted_text_is_shown_escaped(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """Neither a prompt, a token, a stage nor generated text reaches the terminal as an escape."""
    fake.prompt = "\x1b[2J\u202e[bold]x[/bold] \u2028"
    assert run("discover", "Mary", "--target", " Mary", "--model", "tiny") == 0
    assert run("generate", "Mary", "--model", "tiny") == 0
    assert run("generate", "Mary", "--model", "tiny", "--steer", "1:2+=3") == 0
    out, err = capsys.readouterr()
    for character in "\x1b\u202e\u2028":
        assert character not in out + err
    assert "[bold]x[/bold]" in out
    assert "\\x1b[31m" in out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("models", "describe", "nothing"), ExitCode.INTERNAL, "SERVER_UNREACHABLE"),
        (("operations", "show", "operations/none"), ExitCode.USAGE, "RESOURCE_NOT_FOUND"),
        (("discover", "Mary"), ExitCode.USAGE, "--target"),
        (("nonsense",), ExitCode.USAGE, "nonsense"),
        (("plan", "quiet"), ExitCode.USAGE, "No such command 'plan'. Did you mean 'export --plan'?"),
        (("fetch", "smollm2"), ExitCode.USAGE, "No such command 'fetch'. Did you mean 'models fetch'"),
        (("exprt", "quiet"), ExitCode.USAGE, "Did you mean 'export', 'exports'?"),
        (("generate", "x", "--steer", "1:2~3"), ExitCode.USAGE, "1:2~3"),
        (("ablate", "x", "--target", "y", "--feature", "twelve"), ExitCode.USAGE, "LAYER:INDEX"),
        (("ablate", "x", "--target", "y", "--positions", "a"), ExitCode.USAGE, "4,5,-1"),
        (("edits", "create", "e"), ExitCode.USAGE, "--feature"),
        (("edits", "create", "e", "--feature", "1:2", "--detach"), ExitCode.USAGE, "--circuit"),
        (("audit", "--auditor", "a"), ExitCode.USAGE, "--out"),
        (("audit", "--auditor", "a", "--out", "o", "--fail-on", "awful"), ExitCode.USAGE, "critical"),
        (("--token-file", "/nonexistent", "models", "list"), ExitCode.USAGE, "token file"),
    ],
)
def test_wrong_use_has_its_status_and_says_what_to_do(
    words: tuple[str, ...], code: ExitCode, says: str, run: Run, capsys: pytest.CaptureFixture[str]
):
    """Bad input is 2, a broken server 1; the message is on stderr."""
    if words[:2] == ("models", "describe"):
        words = ("models", "describe", "tiny")
    assert run(*words) == code
    out, err = capsys.readouterr()
    assert says in err
    assert out == ""


def finding(severity: int, fingerprint: str = "f" * 16) -> audit_service_pb2.Finding:
    return audit_service_pb2.Finding(rule="sample/rule", severity=severity, fingerprint=fingerprint)


@pytest.mark.parametrize(
    ("verdict", "severities", "code"),
    [
        ("PASS", [], ExitCode.PASS),
        ("NOT_APPLICABLE", [], ExitCode.PASS),
        ("INCONCLUSIVE", [], ExitCode.INCONCLUSIVE),
        ("UNSPECIFIED", [], ExitCode.INCONCLUSIVE),
        ("FAIL", [4], ExitCode.FINDINGS),
        ("FAIL", [3], ExitCode.FINDINGS),
        ("FAIL", [2], ExitCode.PASS),
        ("FAIL", [], ExitCode.FINDINGS),
        ("INCONCLUSIVE", [5], ExitCode.FINDINGS),
        ("FAIL", [99], ExitCode.FINDINGS),
    ],
)
def test_audits_decide_the_status(
    verdict: str, severities: list[int], code: ExitCode, fake: FakeService, run: Run, tmp_path: Path
):
    """With --fail-on medium: findings from medium on fail, doubt is never a pass; reports always appear."""
    fake.report.verdict = audit_service_pb2.Verdict.Value(f"VERDICT_{verdict}")
    fake.report.findings.extend(finding(number) for number in severities)
    words = ("audit", "--model", "tiny", "--auditor", "sample", "--fail-on", "medium", "--out", str(tmp_path))
    assert run(*words) == code
    assert {path.name for path in tmp_path.iterdir()} == {
        "audit.json",
        "audit.sarif",
        "audit.junit.xml",
        "audit.html",
    }


def test_of_several_audits_none_runs_if_one_does_not_exist(
    fake: FakeService, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The first took its minutes, and the command failed at the second's name."""
    words = ("audit", "--model", "tiny", "--auditor", "sample", "--auditor", "nope")
    for way in (("--out", str(tmp_path)), ("--detach",)):
        assert run(*words, *way) == ExitCode.USAGE
        assert "there is no auditor 'nope'; installed: sample" in capsys.readouterr().err
    assert not any(isinstance(one, RunAuditRequest) for one in fake.requests)
    assert list(tmp_path.iterdir()) == []


def test_accepted_findings_pass_until_their_day(fake: FakeService, run: Run, tmp_path: Path):
    """A baseline covers a known finding; not a worse one, not after its day; a broken file is status 5."""
    fake.report.verdict = audit_service_pb2.VERDICT_FAIL
    fake.report.findings.extend([finding(4)])
    baseline = tmp_path / "baseline.json"
    words = ("audit", "--model", "tiny", "--auditor", "sample", "--out", str(tmp_path / "o"))

    def status(**changes: str) -> int:
        entry = {"fingerprint": "f" * 16, "severity": "high", "expires": "2999-01-01", "reason": "known"}
        baseline.write_text(json.dumps({"accepted": [entry | changes]}))
        return run(*words, "--baseline", str(baseline))

    assert status() == ExitCode.PASS
    assert status(severity="medium") == ExitCode.FINDINGS
    assert status(expires="2020-01-01") == ExitCode.FINDINGS
    assert status(fingerprint="0" * 16) == ExitCode.FINDINGS
    assert status(reason="") == ExitCode.BASELINE_INVALID
    assert run(*words, "--baseline", str(tmp_path / "missing")) == ExitCode.BASELINE_INVALID


def test_an_accepted_finding_hides_no_doubt(fake: FakeService, run: Run, tmp_path: Path):
    """With the finding in the baseline, or below --fail-on, the undecided rules make it 4, not 0."""
    fake.report.verdict = audit_service_pb2.VERDICT_FAIL
    fake.report.findings.extend([finding(3)])
    entry = {"fingerprint": "f" * 16, "severity": "high", "expires": "2999-01-01", "reason": "known"}
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps({"accepted": [entry]}))
    words = ("audit", "--model", "tiny", "--auditor", "sample", "--out", str(tmp_path / "o"))
    covered = [("--baseline", str(baseline)), ("--fail-on", "critical")]
    assert [run(*words, *way) for way in covered] == [ExitCode.PASS] * 2
    fake.report.undecided.append("sample/other")
    assert [run(*words, *way) for way in covered] == [ExitCode.INCONCLUSIVE] * 2
    assert run(*words) == ExitCode.FINDINGS


def test_detach_prints_the_name_and_leaves(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """The operation's name is the result; the work goes on."""
    fake.endless = True
    assert run("discover", "Mary", "--target", " Mary", "--model", "tiny", "--detach") == 0
    assert capsys.readouterr().out == "operations/1\n"
    assert not fake.cancelled.is_set()


def test_a_revision_can_be_named(fake: FakeService, run: Run):
    """`models load --revision` reaches the request."""
    assert run("models", "load", "tiny", "--revision", "refs/pr/3") == 0
    (asked,) = [one for one in fake.requests if isinstance(one, model_service_pb2.LoadModelRequest)]
    assert asked.revision == "refs/pr/3"


@pytest.mark.parametrize(("words", "device"), [((), ""), (("--device", "cuda:1"), "cuda:1")])
def test_a_device_can_be_named(fake: FakeService, run: Run, words, device):
    """`models load --device` reaches the request; unset, the server chooses cpu."""
    assert run("models", "load", "tiny", *words) == 0
    (asked,) = [one for one in fake.requests if isinstance(one, model_service_pb2.LoadModelRequest)]
    assert asked.device == device


def test_detached_audits_print_a_name_each(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """Every auditor's operation is started and named, one a line; no report is waited for."""
    fake.endless, fake.more_auditors = True, ["one", "two"]
    assert run("audit", "--model", "tiny", "--auditor", "one", "--auditor", "two", "--detach") == 0
    assert capsys.readouterr().out == "operations/1\noperations/2\n"
    asked = [one.auditor for one in fake.requests if isinstance(one, audit_service_pb2.RunAuditRequest)]
    assert asked == ["one", "two"]
    assert not fake.cancelled.is_set()


def test_a_detached_search_stores_no_edit(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """`edits create --circuit --detach` names the search; nothing is stored from a result nobody has."""
    fake.endless = True
    words = ("edits", "create", "no-mary", "--circuit", "c1", "--model", "tiny", "--detach")
    assert run(*words) == 0
    assert capsys.readouterr().out == "operations/1\n"
    assert isinstance(fake.requests[-1], edit_service_pb2.ProposeEditRequest)
    assert not fake.cancelled.is_set()


def interrupt_after(*events: threading.Event) -> None:
    """Press Ctrl-C once after each event, in order."""

    def press() -> None:
        for event in events:
            event.wait()
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()


def test_ctrl_c_cancels_the_operation(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """The first Ctrl-C asks the server to stop and waits for it; the status is the shell's."""
    fake.endless = True
    interrupt_after(fake.watched)
    assert run("discover", "Mary", "--target", " Mary", "--model", "tiny") == INTERRUPTED
    assert fake.cancelled.is_set()
    assert "cancelled operations/1" in capsys.readouterr().err


def test_a_second_ctrl_c_leaves_at_once(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """While the server takes its time to stop, the second Ctrl-C does not wait for it."""
    fake.endless = fake.deaf = True
    interrupt_after(fake.watched, fake.cancelled)
    assert run("discover", "Mary", "--target", " Mary", "--model", "tiny") == INTERRUPTED
    assert "left operations/1" in capsys.readouterr().err


def test_without_the_service_the_client_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Commands that need a local server name the extra, and the alternative."""
    monkeypatch.setattr(server_process, "_NEEDED", ("no_such_module_here",))
    for words in (["models", "list"], ["doctor"], ["serve"]):
        monkeypatch.setattr(sys, "argv", ["trephine", "--state", str(tmp_path), *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == ExitCode.USAGE
        assert "pip install 'trephine[service]'" in capsys.readouterr().err


def test_doctor_looks_at_the_folder_and_in_the_form_that_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The global options reach it: it told of the user's own state folder, and in text."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(service, "run_service", lambda *words: asked.append(words) or 0)
    monkeypatch.setattr(sys, "argv", ["trephine", "--json", "--state", str(tmp_path), "doctor"])
    with pytest.raises(SystemExit):
        main()
    assert asked == [("doctor", "--state", str(tmp_path), "--json")]


def test_a_settings_file_reaches_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """As an absolute path, beside what flags say."""
    said: list[str] = []
    monkeypatch.setattr(service, "become_service", lambda *words: said.extend(words))
    monkeypatch.chdir(tmp_path)
    words = ["--state", "here", "serve", "--config", "server.toml"]
    monkeypatch.setattr(sys, "argv", ["trephine", *words])
    with pytest.raises(SystemExit):
        main()
    assert said == ["serve", "--state", f"{tmp_path}/here", "--config", f"{tmp_path}/server.toml"]


def test_every_command_has_help_for_newcomers(run: Run, capsys: pytest.CaptureFixture[str]):
    """Each command explains itself in sentences, and the larger ones show an example."""
    for words in (
        ("discover",),
        ("ablate",),
        ("generate",),
        ("export",),
        ("verify",),
        ("audit",),
        ("demo",),
        ("serve",),
        ("models", "fetch"),
        ("models", "load"),
        ("edits", "create"),
        ("circuits", "export"),
    ):
        assert run(*words, "--help") == 0
        assert f"  trephine {' '.join(words)}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("models", "list"), ("doctor",), ("serve",)])
def test_an_empty_state_is_an_error_and_not_the_current_folder(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
):
    """As `--state "$UNSET"` is: a server's files would appear wherever one happens to be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["trephine", "--state", "", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == ExitCode.USAGE
    assert "--state is empty and names no file or folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
