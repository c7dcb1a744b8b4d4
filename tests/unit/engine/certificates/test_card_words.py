"""Every kind of card: the words it may say of an edit, and the one it never says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from tests.unit.engine.interventions import neuron
from trephine import engine
from trephine.domain import removal as domain_removal
from trephine.domain.edits import Edit
from trephine.domain.exports import (
    Certificate,
    ExportPlan,
    Gate,
    GateResult,
    Measurement,
    PlanStep,
    QuantisedCopy,
    ServerSupport,
    WidenedLayer,
)
from trephine.domain.interventions import Ablate, Add, Scale
from trephine.domain.removal import AttackFigure, Interval, Removal, Verdict
from trephine.engine.certificates.card import model_card

HALF = Interval(value=0.5, low=0.4, high=0.6)
EDIT = Edit(
    name="quiet", version=2, content_hash="c", interventions=(), reason="", author="", evidence=(),
    model="parent", weight_hash="w", create_time="",
)  # fmt: skip
PLAN = ExportPlan(
    edit="edits/quiet", edit_hash="c", parent_hash="w", steps=(), changed_tensors=("a",), untouched_tensors=9,
    config_changes=(), size_growth_bytes=0, servers=(), gates=(), plan_hash="p",
)  # fmt: skip
STEP = PlanStep(intervention=0, tier="graft", tensor="a", description="a step")
KL = Gate(name="kl", limit=1e-3, unit="nats", reason="a | in a cell")
CERTIFICATE = Certificate(
    edit="edits/quiet", edit_hash="c", plan_hash="p", parent_hash="w", dtype="float32", measurements=(),
    gates=(GateResult(gate=KL, measured=1e-9, passed=True), GateResult(gate=KL, measured=1.0, passed=False)),
    changed_tensors=("a",), untouched_tensors_verified=9, environment={}, text="t", n_tokens=10,
)  # fmt: skip
COPY = QuantisedCopy(
    kind="q8_0", file="gguf/q8_0.gguf", size=1, kl=0.1, edit_kl=1.0, recovery=0.9, kl_firing=None,
    edit_kl_firing=None, recovery_firing=None, quantisation_kl=0.1, perplexity_ratio=1.0, top1_agreement=1.0,
)  # fmt: skip
STILL = replace(COPY, kl_firing=0.0, edit_kl_firing=0.0)


def removal(verdict: Verdict, *figures: AttackFigure) -> Removal:
    """Say a word, as attacks may end."""
    return Removal(
        verdict=verdict, why="as it came out", figures=figures, n_tokens=16, n_contexts=8, effect=0.1,
        unrelated_behaviours=3, seed=0,
    )  # fmt: skip


ATTACKS = tuple(
    AttackFigure(
        kind=kind,
        strength=20.0,
        returned=HALF,
        unrelated=HALF,
        excess=HALF,
        unrelated_most=0.75,
        unrelated_behaviours=3,
    )
    for kind in ("recovery", "benign", "few_shot")
)
SECOND = {"retain_text": "second (sha256 ab)", "retain_tokens": "512"}
GROWN = replace(
    PLAN,
    config_changes=("intermediate_size: 96 -> 352", "mlp_bias: False -> True"),
    widened=tuple(
        WidenedLayer(layer=layer, neurons=256, zeros=250 if layer == 4 else 256)
        for layer in (0, 1, 2, 4, 5, 9)
    ),
    size_growth_bytes=3 << 19,
    servers=(
        ServerSupport(server="vllm", loads=True, note="it reads them"),
        ServerSupport(server="llama.cpp", loads=False, note="`n_inner` is none of its fields"),
    ),
)
CARDS = {
    "grown": (GROWN, CERTIFICATE, "- Size: at most 1.5 MiB more than the parent"),
    "refused": (GROWN, CERTIFICATE, "**does not load it**; 'n_inner' is none of its fields."),
    "exact": (PLAN, CERTIFICATE, "No recovery attack has been run"),
    "grafted": (replace(PLAN, steps=(STEP,)), CERTIFICATE, "changed by added neurons"),
    "fitted": (replace(PLAN, fitted=True, caveats=("a caveat",)), CERTIFICATE, "Approximate:"),
    "two texts": (PLAN, replace(CERTIFICATE, environment=SECOND), "512 tokens of `second (sha256 ab)`"),
    "passed": (PLAN, replace(CERTIFICATE, gates=CERTIFICATE.gates[:1]), "**Passed: every gate"),
    "failed": (PLAN, CERTIFICATE, "**Failed: not every gate"),
    "doubtful": (
        PLAN,
        replace(CERTIFICATE, gates=CERTIFICATE.gates[:1], doubt="it | is\nlittle"),
        "**Inconclusive: it | is little.**",
    ),
    "unchanged": (
        replace(PLAN, changed_tensors=()),
        replace(CERTIFICATE, gates=CERTIFICATE.gates[:1], changed_tensors=(), doubt="it changes nothing"),
        "**Inconclusive**: no tensor was changed",
    ),
    "quantised": (PLAN, replace(CERTIFICATE, quantised=(COPY,)), "| 0.9000 | not measured |"),
    "quantised, unmoved": (PLAN, replace(CERTIFICATE, quantised=(STILL,)), "| 0.9000 | nothing to recover |"),
    "undecided": (PLAN, replace(CERTIFICATE, removal=removal("inconclusive")), "## Attacks: inconclusive"),
} | {
    verdict: (PLAN, replace(CERTIFICATE, removal=removal(verdict, *ATTACKS)), f"**{verdict.capitalize()}**")
    for verdict in get_args(Verdict)
}


ABLATED, ADDED, NOTHING = (
    neuron(1, 7, operation) for operation in (Ablate(), Add(amount=2.0), Scale(factor=1.0))
)
EDITS = {"removing": (ABLATED,), "steering": (ADDED,), "both": (ABLATED, ADDED), "neither": (NOTHING,)}


@pytest.mark.parametrize("kind", CARDS)
@pytest.mark.parametrize("does", EDITS)
def test_no_card_says_that_an_edit_complies_with_anything(kind, does):
    """In every branch: exact, grafted, fitted, quantised, attacked with each outcome, of every kind."""
    plan, certificate, own = CARDS[kind]
    hosted = SimpleNamespace(info=SimpleNamespace(name="parent", architecture="Llama", weight_hash="w"))
    text = model_card(hosted, replace(EDIT, interventions=EDITS[does]), plan, certificate)
    assert own in text
    assert "complian" not in text.lower()
    for heading in ("## What was measured", "## Intended use", "## Limits"):
        assert heading in text
    assert ("**missed**" in text) == certificate.failed
    figures = certificate.removal.figures if certificate.removal else ()
    assert text.count("| 0.50 [0.40, 0.60] | 0.75 of 3 | 0.50 [0.40, 0.60] |") == len(figures)
    assert ("**Inconclusive, and no pass**" in text) == (certificate.verdict == "inconclusive")


def test_what_the_author_wrote_is_quoted_as_the_authors():
    """Reason and author stand in code spans, once each, and the card says whose words they are."""
    hosted = SimpleNamespace(info=SimpleNamespace(name="parent", architecture="Llama", weight_hash="w"))
    words = replace(EDIT, reason="fully compliant\n# Compliant", author="`compliant` one")
    text = model_card(hosted, words, PLAN, CERTIFICATE)
    assert "- Reason, in its author's words: `fully compliant # Compliant`\n" in text
    assert "- Author, as given: `'compliant' one`\n" in text
    assert "are its author's words, as they were given" in text
    assert text.lower().count("compliant") == 3
    assert "its claims are its makers'" in text


PASSED = replace(CERTIFICATE, gates=CERTIFICATE.gates[:1])
SHARE = GateResult(
    gate=Gate(name="unrecovered", limit=0.5, unit="share", reason=""), measured=0.39, passed=True
)
FITTED = replace(
    PASSED,
    gates=(SHARE,),
    measurements=(Measurement(name="recovery", value=0.6125, unit="share"),),
)


@pytest.mark.parametrize(
    ("fitted", "certificate", "said"),
    [
        (False, PASSED, "says that this checkpoint does what the intervention did. It"),
        (
            True,
            FITTED,
            "carries 0.613 of the intervention, by KL on the measured text (at least 0.5",
        ),
        (True, replace(FITTED, doubt="it is little"), "**Inconclusive, and no pass**"),
        (False, replace(PASSED, doubt="it is little"), "**Inconclusive, and no pass**"),
        (False, CERTIFICATE, "**Not certified**: a gate above was missed"),
        (True, CERTIFICATE, "**Not certified**: a gate above was missed"),
    ],
)
def test_the_promise_is_no_more_than_the_certificates(fitted, certificate, said):
    """Of a fit the share that it carries; of what missed a gate nothing; the whole of a sound edit alone."""
    hosted = SimpleNamespace(info=SimpleNamespace(name="parent", architecture="Llama", weight_hash="w"))
    text = model_card(hosted, EDIT, replace(PLAN, fitted=fitted), certificate)
    assert said in text
    whole = certificate.passed and not fitted
    assert ("says that this checkpoint does what the intervention did" in text) == whole
    assert ("says that this checkpoint carries" in text) == (certificate.passed and fitted)


@pytest.mark.parametrize(
    ("environment", "said"), [({}, "on one text only."), (SECOND, "on two texts only, the measured one and")]
)
def test_damage_is_of_as_many_texts_as_were_measured(environment, said):
    """The second is named and counted where it was measured, and not otherwise."""
    hosted = SimpleNamespace(info=SimpleNamespace(name="parent", architecture="Llama", weight_hash="w"))
    text = model_card(hosted, EDIT, PLAN, replace(CERTIFICATE, environment=environment))
    assert f"- Damage was measured {said}" in text
    assert text.count("Damage was") == 1 + bool(environment)


@pytest.mark.parametrize(
    ("interventions", "said", "unsaid"),
    [
        ((ABLATED,), "taken away counts as suppressed (not attacked),\n  not removed", "put"),
        ((ADDED,), "is of nothing ablated; a short fine-tuning may undo", "counts as"),
        ((ABLATED, ADDED), "may bring it back, and undo what was put in", "nothing"),
        ((NOTHING,), "there is nothing that one could bring back", "counts as"),
        ((), "there is nothing that one could bring back", "counts as"),
    ],
)
def test_the_word_fits_what_the_edit_does(interventions, said, unsaid):
    """Only what was taken away counts as suppressed; the certificate's word stands on every card."""
    hosted = SimpleNamespace(info=SimpleNamespace(name="parent", architecture="Llama", weight_hash="w"))
    text = model_card(hosted, replace(EDIT, interventions=interventions), PLAN, CERTIFICATE)
    (line,) = [part for part in text.split("\n- ") if part.startswith("No recovery attack")]
    assert said in line
    assert unsaid not in line
    assert "suppressed (not attacked)" in line


def test_an_attack_on_an_edit_that_only_puts_in_is_of_what_the_parent_does():
    """Nothing was removed or suppressed of the edit's own; the word is of what it replaced."""
    hosted = SimpleNamespace(info=SimpleNamespace(name="parent", architecture="Llama", weight_hash="w"))
    attacked = replace(CERTIFICATE, removal=removal("suppressed", *ATTACKS))
    for interventions, qualified in (((ADDED,), True), ((ABLATED,), False), ((ABLATED, ADDED), False)):
        text = model_card(hosted, replace(EDIT, interventions=interventions), PLAN, attacked)
        assert ("**Suppressed**, of what the parent does" in text) == qualified


def test_a_card_says_what_a_loader_meets():
    """Every field of the config, every widened layer with its zeros, the size, and who takes it."""
    hosted = SimpleNamespace(info=SimpleNamespace(name="parent", architecture="Llama", weight_hash="w"))
    text = model_card(hosted, EDIT, GROWN, CERTIFICATE)
    for line in (
        "Architecture: `Llama`, as the parent's.",
        "that changed: `intermediate_size: 96 -> 352`, `mlp_bias: False -> True`.",
        "256 in layer 4, 250 of them zeros; 256 in each of the layers 0-2, 5, 9, all of them zeros, since",
        "- vllm: loads it; it reads them.",
        "- llama.cpp: **does not load it**; 'n_inner' is none of its fields.",
    ):
        assert line in text
    plain = model_card(hosted, EDIT, PLAN, CERTIFICATE)
    assert "that changed: none." in plain
    assert "Neurons added to MLPs: none; every tensor keeps its shape." in plain


def test_no_source_of_a_card_knows_the_word():
    """Nor any branch that no card above takes, nor a gate's reason, a step, a doubt, or an attack's why."""
    sources = [*Path(engine.__path__[0]).rglob("*.py"), Path(domain_removal.__file__)]
    texts = {path.name: path.read_text(encoding="utf-8").lower() for path in sources}
    assert {"card.py", "card_attacks.py", "card_features.py", "gates.py", "doubts.py"} <= set(texts)
    assert "suppressed" in texts["card_attacks.py"]
    assert not [name for name, text in texts.items() if "complian" in text]
