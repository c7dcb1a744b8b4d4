"""Requests and reports of spurious features on the wire."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.spurious_report import judged, report
from tests.spurious_texts import ambiguous, attribute_texts
from trephine.app.spurious.spurious_removals import StoredRemoval
from trephine.client.cli.output import Output
from trephine.client.cli.remove_spurious import show_removal
from trephine.client.endpoint import REQUEST_BYTES
from trephine.client.errors import InvalidRequestError as ClientInvalid
from trephine.client.errors import LocalFileError, MessageTooLargeError
from trephine.client.labelled_files import TextColumns as Columns
from trephine.client.labelled_files import read_texts
from trephine.client.results import removal_of
from trephine.client.spurious_requests import read_overrides, remove_spurious
from trephine.client.types import (
    AttributeText,
    FeatureOverride,
    FeatureRef,
    LabelledText,
    LabelTokens,
    OutcomeGround,
    Probe,
    RemovalArm,
    RewardModel,
    StockClassifier,
    Verdict,
)
from trephine.domain.dataset_circuits import Estimator
from trephine.domain.errors import EmptyPromptError, InvalidRequestError
from trephine.domain.spurious_digests import texts_digest
from trephine.domain.spurious_heads import ClassifierHead, Pooling, ProbeHead, RewardHead, TokenHead
from trephine.domain.spurious_outcomes import unmeasured
from trephine.domain.spurious_removal import RemovalBudget, Standing
from trephine.rpc.wire.spurious_heads import decision_from_wire, decision_to_wire
from trephine.rpc.wire.spurious_removals import removal_to_wire, remove_from_wire
from trephine.server.listener import MESSAGE_BYTES

TEXTS = [LabelledText(text=one.text, label=one.label, attribute=one.attribute) for one in ambiguous(10)]
EXAMPLES = [AttributeText(text=one.text, attribute=one.attribute) for one in attribute_texts()]


def _sent(**options: Any):
    return remove_spurious("tiny", TEXTS, attribute_texts=EXAMPLES, **options)


def test_what_is_left_out_has_the_defaults_of_the_contract():
    """A probe in the stock form, neurons, attribution patching, a refit."""
    command = remove_from_wire(_sent()).command
    assert command.decision == ProbeHead()
    assert command.budget == RemovalBudget()
    assert (command.replacement, command.layers, command.refit) == ("neurons", None, True)
    assert command.estimator is Estimator.ATTRIBUTION_PATCHING


def test_everything_that_is_sent_arrives():
    """Fields of rules and budget, heads, overrides."""
    said = FeatureOverride(feature=FeatureRef(layer=1, index=2), remove=True, reason="a name")
    asked = remove_from_wire(
        _sent(
            decision=Probe(layer=1, pooling="mean", penalty=0.5), counts=(3, 9), candidates=5, clusters=2,
            spurious_above=0.7, estimator="relp", swaps=[("he", "she")], overrides=[said], seed=4,
            edit_id="clean", unproven=True, author="us", refit=False, layers=(0, 1),
        )
    )  # fmt: skip
    command = asked.command
    assert command.decision == ProbeHead(layer=1, pooling=Pooling.MEAN, penalty=0.5)
    assert (command.budget.counts, command.budget.candidates) == ((3, 9), 5)
    assert (command.judging.clusters, command.judging.spurious_above) == (2, 0.7)
    assert (command.estimator, command.refit, command.layers, command.seed) == (
        Estimator.RELP, False, (0, 1), 4,
    )  # fmt: skip
    assert command.overrides[0].reason == "a name"
    assert (asked.edit_id, asked.author, asked.unproven) == ("clean", "us", True)


def test_pairs_arrive_and_are_told_again():
    """Of every split, with the head that is trained on them; an empty name is refused."""
    texts = [replace(one, pair=f"{n % 10}") for n, one in enumerate(TEXTS)]
    asked = remove_spurious(
        "tiny", texts, attribute_texts=EXAMPLES, decision=Probe(layer=1, pooling="mean", pairs=True)
    )
    command = remove_from_wire(asked).command
    assert [one.pair for one in command.training] == [one.pair for one in texts]
    assert command.decision == ProbeHead(layer=1, pooling=Pooling.MEAN, pairs=True)
    assert decision_from_wire(decision_to_wire(command.decision)) == command.decision
    asked.training[3].pair = ""
    with pytest.raises(InvalidRequestError) as caught:
        remove_from_wire(asked)
    assert caught.value.context["field"] == "training[3].pair"


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (LabelTokens(tokens={"Q": " a", "W": " b"}, template="{text}?"), TokenHead),
        (StockClassifier(source="judge"), ClassifierHead),
        (RewardModel(source="judge", threshold=0.0, positive_label="Q"), RewardHead),
    ],
)
def test_heads_go_there_and_back(sent, read):
    """A threshold of zero is one; a template that says nothing is refused."""
    message = _sent(decision=sent, refit=False).decision
    head = decision_from_wire(message)
    assert isinstance(head, read)
    assert decision_to_wire(head) == message


def test_bad_fields_are_named():
    """By their place in the request."""
    request = _sent()
    request.training[3].text = ""
    with pytest.raises(EmptyPromptError) as empty:
        remove_from_wire(request)
    assert empty.value.context["field"] == "training[3].text"
    request = _sent()
    request.training[3].environment = ""
    with pytest.raises(InvalidRequestError, match="environment is required"):
        remove_from_wire(request)
    blank_fields = {"label": InvalidRequestError, "attribute": InvalidRequestError, "text": EmptyPromptError}
    for name, kind in blank_fields.items():
        request = _sent()
        setattr(request.training[3], name, " \t")
        with pytest.raises(kind, match="holds blanks alone") as blank:
            remove_from_wire(request)
        assert blank.value.context["field"] == f"training[3].{name}"
    for changed, field in (
        ({"decision": Probe(penalty=0.0)}, "decision.probe.penalty"),
        (
            {"decision": LabelTokens(tokens={"Q": " a", "W": " a"}), "refit": False},
            "decision.tokens.tokens[1].token",
        ),
        ({"decision": LabelTokens(tokens={"Q": ""}), "refit": False}, "decision.tokens.tokens[0].token"),
        ({"spurious_above": 2.0}, "judging"),
        ({"random_sets": 101}, "budget.random_sets"),
    ):
        with pytest.raises(InvalidRequestError) as refused:
            remove_from_wire(_sent(**changed))
        assert refused.value.context["field"] == field
    with pytest.raises(InvalidRequestError, match="exactly once"):
        decision_from_wire(
            _sent(decision=LabelTokens(tokens={"Q": " a"}, template="no"), refit=False).decision
        )


def test_a_report_is_read_as_it_was_written():
    """Field by field; listed ones leave their features out."""
    stored = StoredRemoval(name="spuriousRemovals/r", create_time="now", edit="clean@1", found=report())
    read = removal_of(removal_to_wire(stored))
    assert (read.name, read.edit, read.chosen) == ("spuriousRemovals/r", "edits/clean@1", 1)
    assert read.features[0].feature == FeatureRef(layer=3, index=17, replacement="neurons")
    assert [one.standing.value for one in read.features] == ["spurious", "undecided", "task"]
    assert read.features[0].exact is None
    assert (read.scr, read.tpp) == (0.625, None)
    assert read.choices[1].leak is None
    assert [one.taken for one in read.choices] == [False, True]
    assert (read.ships, read.held, read.outcome.verdict) == (RemovalArm.REFITTED, True, Verdict.PASS)
    outcome = stored.found.outcome
    assert (read.outcome.ground, read.outcome.texts, read.outcome.why) == (
        OutcomeGround.TEST, 200, outcome.why,
    )  # fmt: skip
    assert (read.outcome.before.name, read.outcome.after.value) == ("nurse/male", outcome.after.value)
    assert (read.outcome.gain.low, read.outcome.gain.high) == (outcome.gain.low, outcome.gain.high)
    doubted = replace(stored, found=replace(stored.found, outcome=unmeasured("nothing crossed")), edit="")
    doubt = removal_of(removal_to_wire(doubted))
    assert (doubt.held, doubt.outcome.gain) == (False, None)
    assert (doubt.outcome.verdict, doubt.outcome.ground) == (Verdict.INCONCLUSIVE, OutcomeGround.NOTHING)
    assert [one.value for one in read.judges] == [one.value for one in stored.found.judges] != []
    assert read.arm("refitted").figure("worst_group").value == 0.9
    assert removal_of(removal_to_wire(stored, whole=False)).features == ()


def test_a_report_is_shown_on_the_terminal(capsys):
    """Who judged, every arm's figures, the strongest features, and what a reader must know."""
    stored = StoredRemoval(name="spuriousRemovals/r", create_time="now", edit="clean@1", found=report())
    found = removal_of(removal_to_wire(stored))
    show_removal(Output(json=False), found, 2)
    shown = capsys.readouterr().out
    assert "PASS: on the test split, with 200 texts or more per group" in shown.splitlines()[0]
    assert "REFITTED (SHIPS)" in shown
    assert all(one.value.replace("_", " ") in shown for one in found.judges)
    assert all(arm.arm.value.upper() in shown for arm in found.arms)
    assert str(found.features[0].feature) in shown
    assert str(found.features[2].feature) not in shown


def test_a_doubt_is_shown_with_what_would_settle_it(capsys):
    """And with why there is no edit."""
    doubted = replace(report(), outcome=unmeasured("nothing crossed"))
    stored = StoredRemoval(name="spuriousRemovals/r", create_time="now", edit="", found=doubted)
    show_removal(Output(json=False), removal_of(removal_to_wire(stored)), 2)
    shown = capsys.readouterr().out
    assert "INCONCLUSIVE: nothing crossed" in shown
    assert "texts of all four groups" in shown
    assert "--edit NAME --unproven" in shown


def test_an_edit_that_could_not_be_made_is_no_doubt_of_the_removal(capsys):
    """Neither does the terminal say to remove again."""
    told = replace(report(), caveats=("the edit clean was not made: there is an edit clean",))
    stored = StoredRemoval(name="spuriousRemovals/r", create_time="now", edit="", found=told, unmade="clean")
    show_removal(Output(json=False), removal_of(removal_to_wire(stored)), 2)
    shown = capsys.readouterr().out
    assert "none could be made, as a caveat says" in shown
    assert "--edit NAME" not in shown


def test_files_are_read_by_their_columns(tmp_path):
    """A missing column names row and column; a folder's files follow each other by name."""
    (tmp_path / "b.csv").write_text("text,label,who\nabc,1,x\n")
    (tmp_path / "a.jsonl").write_text('{"text": "def", "label": 0, "who": "y"}\n')
    found = read_texts(tmp_path, Columns(attribute="who"))
    assert [(one.text, one.label, one.attribute) for one in found] == [("def", "0", "y"), ("abc", "1", "x")]
    with pytest.raises(ClientInvalid, match=r"a\.jsonl, row 1 has no column 'gender'; it has text, label"):
        read_texts(tmp_path, Columns(attribute="gender"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(LocalFileError, match=r"no \.jsonl or \.csv"):
        read_texts(empty)


def test_overrides_are_read_from_a_file(tmp_path):
    """Neurons as LAYER:INDEX, features of sets with their set; anything else is named."""
    file = tmp_path / "words.json"
    file.write_text(
        '{"3:17": {"remove": false, "reason": "medicine"}, "my:set:2:5": {"remove": true, "reason": "r"}}'
    )
    first, second = read_overrides(file)
    assert (first.feature, first.remove) == (FeatureRef(layer=3, index=17), False)
    assert second.feature == FeatureRef(layer=2, index=5, replacement="my:set")
    file.write_text('{"3": {"remove": true, "reason": "r"}}')
    with pytest.raises(ClientInvalid, match="'3' must be LAYER:INDEX"):
        read_overrides(file)


DOUBTFUL = {
    "a feature that is named twice": (
        '{"1:2": {"remove": true, "reason": "a"}, "1:2": {"remove": false, "reason": "b"}}',
        "names the feature 1:2 twice: leave one",
    ),
    "a feature that is named in two ways": (
        '{"1:2": {"remove": true, "reason": "a"}, "neurons:01:2": {"remove": false, "reason": "b"}}',
        "names the feature 1:2 twice, as '1:2' and as 'neurons:01:2'",
    ),
    "a word that is said twice": (
        '{"1:2": {"remove": true, "reason": "a", "remove": false}}',
        "'1:2' says 'remove' twice; leave one",
    ),
    "no word": ('{"1:2": {"reason": "a"}}', "'1:2' must say in `remove` whether"),
    "a word in quotes": ('{"1:2": {"remove": "false", "reason": "a"}}', "'1:2' must say in `remove` whether"),
    "no reason": ('{"1:2": {"remove": true}}', "'1:2' must say why in `reason`"),
    "a reason that is null": ('{"1:2": {"remove": true, "reason": null}}', "'1:2' must say why in `reason`"),
    "a reason that is a list": ('{"1:2": {"remove": true, "reason": ["a"]}}', "'1:2' must say why in"),
    "no object": ('[{"1:2": {"remove": true, "reason": "a"}}]', "must hold one object"),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_overrides_that_say_two_things_or_nothing_are_refused(tmp_path, name):
    """By the feature's address: nobody's word is dropped, and no reason is made up."""
    written, said = DOUBTFUL[name]
    file = tmp_path / "words.json"
    file.write_text(written)
    with pytest.raises(ClientInvalid, match=said) as refused:
        read_overrides(file)
    assert refused.value.field == "overrides"


def test_a_report_of_many_features_fits_into_an_answer():
    """Of however many, by two judges: what goes stands first and is there, others are counted."""
    one = judged(Standing.UNDECIDED, 0)
    kept = replace(one, evidence=one.evidence * 2, firings=(), why="neither is clear " * 4)
    many = (judged(Standing.SPURIOUS, 7, removed=True), *(kept for _ in range(65_535)))
    stored = StoredRemoval(
        name="spuriousRemovals/a", create_time="", edit="", found=replace(report(), features=many)
    )
    message = removal_to_wire(stored)
    assert message.ByteSize() < MESSAGE_BYTES
    assert message.features[0].removed
    left = len(many) - len(message.features)
    assert 0 < left < len(many)
    assert message.caveats[-1].startswith(f"{left} judged features of the smallest effects are not listed")


def test_what_was_asked_for_goes_with_the_report():
    """Every option with its default spelled out; listed reports and older ones are without."""
    command = remove_from_wire(
        _sent(
            counts=(3, 9), clusters=2, swaps=[("he", "she")], layers=(0, 1), refit=False, erase=False,
            estimator="integrated_gradients",
        )
    ).command  # fmt: skip
    found = replace(report(), options=command.options)
    stored = StoredRemoval(name="spuriousRemovals/a", create_time="", edit="", found=found)
    sent = removal_to_wire(stored).options
    assert (list(sent.layers), sent.steps, sent.resamples) == ([0, 1], 5, 1000)
    assert (list(sent.budget.counts), sent.budget.candidates) == ([3, 9], 2048)
    assert (sent.judging.clusters, sent.judging.false_discoveries) == (2, 0.05)
    assert (sent.without_refit, sent.without_erasure, sent.neutral_examples) == (True, True, False)
    assert (sent.attribute_name, [(one.first, one.second) for one in sent.swaps]) == ("", [("he", "she")])
    assert sent.texts_sha256 == texts_digest(command.splits, command.attribute_texts)
    assert not removal_to_wire(stored, whole=False).HasField("options")
    assert not removal_to_wire(replace(stored, found=report())).HasField("options")


def test_texts_that_no_request_holds_are_refused_in_words():
    """The transport tells bytes alone, and only once they were sent."""
    long = [LabelledText(text=f"{n} " + "word " * 200_000, label="Q") for n in range(9)]
    with pytest.raises(MessageTooLargeError, match=r"9 texts and 30 examples take 8\.\d MiB, and a request"):
        remove_spurious("tiny", long, attribute_texts=EXAMPLES[:30])
    remove_spurious("tiny", long[:8], attribute_texts=EXAMPLES)
    assert MESSAGE_BYTES == REQUEST_BYTES, "what the service takes, and what the client knows of it"
