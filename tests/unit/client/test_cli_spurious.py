"""`trephine remove-spurious` from columns and options to the request that is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.grpc_server import FakeService
from tests.unit.client.test_cli import run as run  # a fixture
from trephine.client.cli.decisions import decision_of
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.errors import InvalidRequestError
from trephine.client.spurious_requests import remove_spurious
from trephine.client.types import LabelTokens, Probe, RewardModel
from trephine.domain.errors import InvalidRequestError as RefusedByServer
from trephine.domain.spurious_removal import RemovalBudget
from trephine.v1 import spurious_removal_pb2 as pb

Run = Callable[..., int]
COLUMNS = ("--attribute-column", "gender", "--twin-column", "twin", "--environment-column", "question")
ROWS: list[dict[str, Any]] = [
    {"text": "she cut", "label": 1.0, "gender": "f", "twin": "he cut", "question": 3},
    {"text": "he fed", "label": 0, "gender": "", "twin": None, "question": "4"},
    {"text": "he sat", "label": 1},
]
EXAMPLES = [{"text": "her", "gender": "f"}, {"text": "his", "gender": "m"}]


def _file(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def _asked(fake: FakeService) -> pb.RemoveSpuriousFeaturesRequest:
    found = [one for one in fake.requests if isinstance(one, pb.RemoveSpuriousFeaturesRequest)]
    assert found, "nothing was asked"
    return found[-1]


def _optional(one: pb.LabelledText) -> tuple[str | None, ...]:
    names = ("attribute", "twin", "environment")
    return tuple(getattr(one, name) if one.HasField(name) else None for name in names)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    return _file(tmp_path / "texts.jsonl", ROWS)


def test_every_column_arrives_beside_examples_of_the_attribute(
    fake: FakeService, run: Run, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """What a row lacks is absent in the request, and counted; class numbers with a point are labels."""
    others = _file(tmp_path / "others.jsonl", EXAMPLES)
    words = ("remove-spurious", texts, "--model", "tiny", "--attribute-texts", others, *COLUMNS)
    assert run(*words, "--validation", texts, "--test", texts) == ExitCode.INCONCLUSIVE
    assert "texts.jsonl tells the environment of 2 of 3 texts (column 'question')" in capsys.readouterr().err
    request = _asked(fake)
    assert not request.without_refit
    assert [one.label for one in request.training] == ["1", "0", "1"]
    told = [("f", "he cut", "3"), (None, None, "4"), (None, None, None)]
    assert [_optional(one) for one in request.training] == told
    assert [_optional(one) for one in request.validation] == told
    assert [one.attribute for one in request.test] == ["f", "", ""]
    assert [one.attribute for one in request.attribute_texts] == ["f", "m"]


def test_a_prediction_is_written_where_it_is_asked_for(
    fake: FakeService, run: Run, texts: str, tmp_path: Path
):
    """As a document; it was printed alone."""
    out = tmp_path / "would.json"
    words = ("--json", "remove-spurious", texts, "--model", "tiny", *COLUMNS, "--test", texts, "--predict")
    assert run(*words, "--out", str(out)) == ExitCode.PASS
    assert _asked(fake).validate_only
    assert json.loads(out.read_text())


def test_an_absent_column_is_told_of_and_a_misspelt_one_refused(
    fake: FakeService, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The attribute may stand in its examples alone; twins and environments were asked for by name."""
    bare = _file(tmp_path / "bare.jsonl", [{"text": "she cut", "label": "a"}])
    others = _file(tmp_path / "others.jsonl", EXAMPLES)
    words = ("remove-spurious", bare, "--model", "tiny", "--attribute-column", "gender")
    assert run(*words, "--attribute-texts", others) == ExitCode.INCONCLUSIVE
    assert "bare.jsonl tells the attribute of 0 of 1 texts (column 'gender')" in capsys.readouterr().err
    assert not _asked(fake).training[0].HasField("attribute")
    assert run(*words, "--attribute-name", "gender") == ExitCode.INCONCLUSIVE
    sent = len(fake.requests)
    assert run(*words, "--attribute-name", "gender", "--test", bare) == ExitCode.USAGE
    assert run(*words) == ExitCode.USAGE
    assert "has no column 'gender'" in capsys.readouterr().err
    assert run(*words, "--attribute-texts", others, "--environment-column", "where") == ExitCode.USAGE
    assert "has no column 'where'" in capsys.readouterr().err
    assert len(fake.requests) == sent


@pytest.mark.parametrize(
    "decides",
    [
        ("--token", "1= good", "--token", "0= bad", "--template", "{text} So"),
        ("--reward", "judge", "--positive-label", "0"),
    ],
)
def test_what_is_not_trained_is_not_refitted_unless_asked(
    fake: FakeService, run: Run, texts: str, decides: tuple[str, ...]
):
    """A user who says nothing of a refit gets none; whoever asks for one hears from the server."""
    words = ("remove-spurious", texts, "--model", "tiny")
    run(*words, *decides)
    assert _asked(fake).without_refit
    assert _asked(fake).decision.WhichOneof("kind") in ("tokens", "reward")
    assert _asked(fake).decision.reward.positive_label == ("0" if "--reward" in decides else "")
    run(*words, *decides, "--refit")
    assert not _asked(fake).without_refit


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classifier": "judge", "pooling": "mean"}, "--pooling is of a probe"),
        ({"tokens": ["a= b", "c= d"], "pooling": "last"}, "--pooling is of a probe"),
        ({"template": "{text} So"}, "--template is of label tokens"),
        ({"positive_label": "1"}, "--positive-label is of a reward"),
        ({"reward": "judge"}, "--reward needs --positive-label"),
        ({"layer": 0, "classifier": "judge"}, "one of --layer"),
        ({"tokens": ["1"]}, "LABEL=TOKEN"),
        ({"tokens": ["a= b", "a= c", "d= e"]}, "names a label twice"),
        ({"pooling": "max"}, "must be last or mean"),
        ({"pairs": True, "reward": "judge", "positive_label": "a"}, "--pairs is of a probe"),
    ],
)
def test_options_that_the_decision_does_not_read_are_refused(options: dict[str, Any], said: str):
    """Not dropped."""
    with pytest.raises(InvalidRequestError, match=said):
        decision_of(**options)


def test_options_that_are_read_make_the_decision():
    """Each in its kind."""
    assert decision_of(layer=3, pooling="mean") == Probe(layer=3, pooling="mean")
    assert decision_of(layer=3, paired=True) == Probe(layer=3, pairs=True)
    assert decision_of(pairs=False, paired=True) == Probe()
    given = decision_of(reward="judge", positive_label="a", paired=True)
    assert given == RewardModel(source="judge", positive_label="a")
    tokens = decision_of(tokens=["a= b", "c= d=e"], template="{text} So")
    assert tokens == LabelTokens(tokens={"a": " b", "c": " d=e"}, template="{text} So")
    assert decision_of(reward="judge", positive_label="a") == RewardModel(source="judge", positive_label="a")


@pytest.mark.parametrize("counts", [(500, 10), (5, 5), (0, 1)])
def test_counts_are_refused_in_the_words_of_the_server(counts: tuple[int, ...]):
    """They must ascend from 1."""
    with pytest.raises(RefusedByServer) as server:
        RemovalBudget(counts=counts)
    with pytest.raises(InvalidRequestError) as client:
        remove_spurious("tiny", [], counts=counts)
    assert client.value.message == server.value.message
    assert client.value.field == server.value.context["field"]


def test_what_is_refused_here_is_not_sent(
    fake: FakeService, run: Run, texts: str, capsys: pytest.CaptureFixture[str]
):
    """Not even a model is loaded for it."""
    words = ("remove-spurious", texts, "--model", "tiny")
    assert run(*words, "--counts", "500,10") == ExitCode.USAGE
    assert run(*words, "--template", "{text} So") == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "must ascend" in said
    assert "--template is of label tokens" in said
    assert not fake.requests


def test_preference_pairs_are_recognised_and_train_the_probe(fake: FakeService, run: Run, tmp_path: Path):
    """By their columns; in every split; with `--no-pairs` they are texts with labels."""
    rows = [
        {"prompt": "Why?", "chosen": f"So {n}.", "rejected": f"Hm {n}.", "chosen_tone": "warm"} for n in "ab"
    ]
    pairs = _file(tmp_path / "pairs.jsonl", rows)
    told = ("--attribute-column", "tone", "--attribute-name", "gender")
    words = ("remove-spurious", pairs, "--model", "tiny", "--layer", "2", *told)
    assert run(*words, "--test", pairs) == ExitCode.INCONCLUSIVE
    request = _asked(fake)
    assert request.decision.probe.pairs
    for split in (request.training, request.test):
        assert [(one.text, one.label) for one in split[:2]] == [
            ("Why? So a.", "chosen"), ("Why? Hm a.", "rejected"),
        ]  # fmt: skip
        assert [one.attribute for one in split] == ["warm", "", "warm", ""]
        assert split[0].pair == split[1].pair != split[2].pair
    assert run(*words, "--no-pairs") == ExitCode.INCONCLUSIVE
    assert not _asked(fake).decision.probe.pairs


def test_a_column_may_tell_the_pair(fake: FakeService, run: Run, texts: str, tmp_path: Path):
    """Of the ambiguous texts; splits that are measured on may lack it."""
    met = _file(tmp_path / "met.jsonl", [one | {"met": "m"} for one in ROWS])
    words = ("remove-spurious", met, "--model", "tiny", "--pair-column", "met", "--test", texts)
    assert run(*words) == ExitCode.INCONCLUSIVE
    request = _asked(fake)
    assert request.decision.probe.pairs
    assert [one.pair for one in request.training] == ["m"] * 3
    assert not any(one.HasField("pair") for one in request.test)


def test_files_that_cannot_be_written_are_refused_before_the_work(
    fake: FakeService, run: Run, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """An hour's report is not lost to a folder where a file was meant."""
    words = ("remove-spurious", texts, "--model", "tiny")
    for option in ("--out", "--page"):
        assert run(*words, option, str(tmp_path)) == ExitCode.USAGE
        assert "it is a folder; name a file" in capsys.readouterr().err
        assert run(*words, option, str(tmp_path / "report"), "--detach") == ExitCode.USAGE
        assert "does not wait for that" in capsys.readouterr().err
        assert run(*words, option, f"{texts}/report") != ExitCode.INCONCLUSIVE
        assert "cannot write" in capsys.readouterr().err
    assert not fake.requests
    assert run(*words, "--out", str(tmp_path / "new" / "report.json")) == ExitCode.INCONCLUSIVE
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    "option", ["--validation", "--test", "--attribute-texts", "--swaps", "--overrides", "--page", "--out"]
)
def test_an_empty_path_is_an_error_and_not_the_current_folder(
    fake: FakeService, run: Run, texts: str, option: str, capsys: pytest.CaptureFixture[str]
):
    """As `--test "$UNSET"` is: whatever texts lie in the current folder would have been tested on."""
    words = ("remove-spurious", texts, "--model", "tiny", "--attribute-column", "gender")
    assert run(*words, option, "") == ExitCode.USAGE
    assert f"{option} is empty and names no file or folder" in capsys.readouterr().err
    assert run("remove-spurious", "", *words[2:]) == ExitCode.USAGE
    assert "TEXTS is empty" in capsys.readouterr().err
    assert not [one for one in fake.requests if isinstance(one, pb.RemoveSpuriousFeaturesRequest)]


@pytest.mark.parametrize("given", [("--classifier",), ("--reward", "--positive-label", "1")])
def test_a_head_may_be_a_folder_of_this_machine(
    fake: FakeService,
    run: Run,
    texts: str,
    tmp_path: Path,
    given: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """As a model's folder may: a local server is let in, one elsewhere is not sent a path."""
    option, *others = given
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge").mkdir()
    words = ("remove-spurious", texts, "--model", "tiny", *others, option)
    assert run(*words, "./judge") == ExitCode.USAGE
    assert "a named server loads models from its own roots, by name" in capsys.readouterr().err
    assert run(*words, "./nothing") == ExitCode.USAGE
    assert f"there is no folder {tmp_path.resolve()}/nothing" in capsys.readouterr().err
    run(*words, "judge")
    decision = _asked(fake).decision
    assert (decision.classifier.source or decision.reward.source) == "judge"
