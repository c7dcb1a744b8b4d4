"""Each bad input gets its own typed error, and the message says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.bad_inputs import CASES, Bench, Case
from tests.e2e.servers import own_server
from trephine.client import Model, Trephine, TrephineError, feature

pytestmark = [pytest.mark.e2e, pytest.mark.real]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def opened(smollm2: Path, state: Path) -> Iterator[tuple[Trephine, Model]]:
    with own_server(state) as trephine:
        yield trephine, trephine.load_model("smollm2")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_gets_its_typed_error(
    case: Case, opened: tuple[Trephine, Model], state: Path, tmp_path: Path
):
    """The reason is the documented one, the message a sentence for people; nothing is left half written."""
    with pytest.raises(TrephineError) as caught:
        case.run(Bench(*opened, tmp_path, state))
    assert caught.value.reason == case.reason, caught.value
    assert len(str(caught.value)) > 20
    assert "Traceback" not in str(caught.value)
    assert case.says in str(caught.value)
    assert list((state / "published").iterdir()) == []


def test_target_error_shows_the_tokens_and_accepts_an_id(opened: tuple[Trephine, Model]):
    """A target of several tokens lists them with their ids; the id itself is then accepted."""
    _, model = opened
    with pytest.raises(TrephineError) as caught:
        model.propose("The capital of France is", target=" Paris London")
    token = model.tokenize(" Paris")[0]
    assert str(token.id) in str(caught.value)
    measured = model.ablate(
        "The capital of France is",
        [feature(0, 1).ablate()],
        target=f"#{token.id}",
        controls=0,
    )
    assert measured.target.id == token.id
