"""An auditor written against `trephine.domain` alone. Its parameter `behave` says what it does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from trephine.domain.findings import (
    AuditorInfo,
    AuditOutcome,
    Evidence,
    Figure,
    Finding,
    Rule,
    Severity,
    Verdict,
)
from trephine.domain.generation import Sampling, ScoredRow
from trephine.domain.ports import AuditContext, AuditSubject

INFO = AuditorInfo(
    name="toy",
    version="0.0.1",
    question="Does the model answer at all?",
    evidence="None worth the name.",
    blind_spot="Everything.",
    rules=(Rule(id="toy/rule", title="A rule", description="Something.", help="Nothing."),),
)

PASSED = AuditOutcome(
    verdict=Verdict.PASS, why="It answered.", findings=(), figures=(Figure(name="power", value=0.9),)
)
FINDING = Finding(
    rule="toy/rule",
    severity=Severity.HIGH,
    title="It answers",
    explanation="It was asked and it answered.",
    effect=Figure(name="effect", value=0.5, low=0.2, high=0.8),
    p_value=0.01,
    evidence=(Evidence(text="abc", spans=(), figures=(), seed=0),),
    fingerprint="toy",
)
FAILED = AuditOutcome(
    verdict=Verdict.FAIL, why="It failed.", findings=(FINDING,), figures=(Figure(name="controls", value=99),)
)


class ToyAuditor:
    """Behaves as the parameter `behave` says; passes without one."""

    def info(self) -> AuditorInfo:
        """Who it is."""
        return INFO

    def run(self, subject: AuditSubject, context: AuditContext) -> object:
        """Do what was asked for."""
        behaviour = context.spec.parameters.get("behave", "passes")
        context.progress(behaviour, 1, 1)
        return BEHAVIOURS[behaviour](subject, context)


def _raises(subject: AuditSubject, context: AuditContext) -> object:
    raise RuntimeError("the toy is broken")


def _raises_unprintably(subject: AuditSubject, context: AuditContext) -> object:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    raise Unprintable


def _hangs(subject: AuditSubject, context: AuditContext) -> object:
    while True:
        time.sleep(60)


def _spins(subject: AuditSubject, context: AuditContext) -> object:
    while True:
        pass


def _leaves_a_child(subject: AuditSubject, context: AuditContext) -> object:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    return replace(PASSED, why=str(child.pid))


def _exits(subject: AuditSubject, context: AuditContext) -> object:
    sys.exit(0)


def _dies(subject: AuditSubject, context: AuditContext) -> object:
    os._exit(0)


def _floods(subject: AuditSubject, context: AuditContext) -> object:
    for _ in range(3_000):
        sys.stdout.write("x" * 9_999 + "\n")
    sys.stdout.write("the last line\n")
    return PASSED


def _garbles(subject: AuditSubject, context: AuditContext) -> object:
    for fd in range(3, 64):
        try:
            os.write(fd, b"PASS " * 100)
        except OSError:
            continue
    time.sleep(600)
    return PASSED


def _tells_environment(subject: AuditSubject, context: AuditContext) -> object:
    return replace(PASSED, why="\n".join(f"{key}={value}" for key, value in os.environ.items()))


def _tells_modules(subject: AuditSubject, context: AuditContext) -> object:
    return replace(PASSED, why=" ".join(sorted({name.split(".")[0] for name in sys.modules})))


def _asks_everything(subject: AuditSubject, context: AuditContext) -> object:
    info = subject.describe()
    tokens = subject.tokenize("some text")
    completions = subject.sample(["a", "b" * 50, "c"], max_new_tokens=3, sampling=Sampling())
    scores = subject.score([ScoredRow(prompt="a", continuation="b")])
    told = [info.name, len(tokens), *(each.text for each in completions), len(scores)]
    return replace(PASSED, why=repr(told))


def _asks_for(command: str) -> Callable[[AuditSubject, AuditContext], object]:
    """Reach past the subject for a command that writes or reads files."""

    def ask(subject: AuditSubject, context: AuditContext) -> object:
        bodies = {
            "LoadModel": {"source": {"name": "x", "folder": "/etc"}},
            "CompileExport": {},
            "AskStatus": {},
        }
        subject._channel.call(command, bodies[command])
        return PASSED

    return ask


def _returns(outcome: object) -> Callable[[AuditSubject, AuditContext], object]:
    return lambda subject, context: outcome


BEHAVIOURS: dict[str, Callable[[AuditSubject, AuditContext], object]] = {
    "passes": _returns(PASSED),
    "fails": _returns(FAILED),
    "is_inconclusive": _returns(
        AuditOutcome(
            verdict=Verdict.INCONCLUSIVE, why="Who knows.", findings=(), figures=(), would_decide="More."
        )
    ),
    "raises": _raises,
    "raises_unprintably": _raises_unprintably,
    "hangs": _hangs,
    "spins": _spins,
    "leaves_a_child": _leaves_a_child,
    "exits": _exits,
    "dies": _dies,
    "floods": _floods,
    "garbles": _garbles,
    "tells_environment": _tells_environment,
    "tells_modules": _tells_modules,
    "asks_everything": _asks_everything,
    "asks_for_loading": _asks_for("LoadModel"),
    "asks_for_export": _asks_for("CompileExport"),
    "asks_for_status": _asks_for("AskStatus"),
    "returns_none": _returns(None),
    "returns_text": _returns("PASS"),
    "returns_true": _returns(True),
    "returns_wrong_verdict": _returns(replace(PASSED, verdict="great")),
    "returns_wrong_findings": _returns(replace(FAILED, findings=("bad",))),
    "returns_unserialisable": _returns(replace(PASSED, why=object())),
    "passes_without_power": _returns(replace(PASSED, figures=())),
    "fails_without_findings": _returns(replace(FAILED, findings=())),
    "fails_with_nan_p": _returns(replace(FAILED, findings=(replace(FINDING, p_value=float("nan")),))),
}
