"""A caller's text split in two: what is calibrated on, and what is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.builders import tiny_hosted
from trephine.domain.errors import InvalidRequestError
from trephine.engine.certificates.export_texts import CALIBRATION_TOKENS, MEASURED_TOKENS, export_texts
from trephine.engine.runs.retain import WINDOW_TOKENS


@pytest.mark.parametrize(
    ("tokens", "measured"),
    [(256, [128]), (258, [128, 2]), (384, [128]), (386, [128, 2]), (640, [128]), (642, [128, 2])],
)
def test_a_remainder_of_the_text_is_never_all_that_is_measured(tokens: int, measured: list[int]) -> None:
    """Of a text that is no multiple of a window the last one may be of two tokens, which tell nothing."""
    plain = tiny_hosted("llama")
    hosted = replace(plain, info=replace(plain.info, context_length=128))
    texts = export_texts(hosted, " the" * tokens)
    assert [len(window) for window in texts.measured.windows] == measured
    assert texts.calibration.n_tokens + texts.measured.n_tokens == tokens
    assert texts.retained is not None


@pytest.mark.parametrize(
    ("tokens", "measured"),
    [
        (9216, (8192, 9216)),
        (12_000, (8192, 9216)),
        (9000, (8064, 9000)),
        (9090, (8192, 9090)),
        (3072, (2048, 3072)),
        (2944, (2048, 2944)),
    ],
)
def test_measured_are_the_windows_that_documents_and_help_name(
    tokens: int, measured: tuple[int, int]
) -> None:
    """The last eight windows of the first 9,216 tokens, the last maybe a part; a third of a shorter text."""
    plain = tiny_hosted("llama")
    hosted = replace(plain, info=replace(plain.info, context_length=128))
    text = "".join(Random(tokens).choices("0123456789", k=tokens))  # a token each
    ids = tuple(hosted.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    texts = export_texts(hosted, text)
    assert sum(texts.measured.windows, ()) == ids[slice(*measured)]
    assert sum(texts.calibration.windows, ()) == ids[: measured[0]]


def test_documents_and_help_name_these_figures() -> None:
    """Both say how much of a text is used, and that windows are measured and not its own last tokens."""
    root = Path(__file__).resolve().parents[4]
    for place in ("docs/export.md", "clients/trephine/client/cli/export.py"):
        said = " ".join((root / place).read_text(encoding="utf-8").split())
        assert f"first {MEASURED_TOKENS + CALIBRATION_TOKENS:,} are used" in said
        assert f"windows of {WINDOW_TOKENS}" in said
        assert "its last 1,024" not in said.lower()


def test_no_more_is_measured_than_is_asked_for() -> None:
    """Of a long text 1,024 tokens; one that is too short for both says how many it takes."""
    plain = tiny_hosted("llama")
    hosted = replace(plain, info=replace(plain.info, context_length=128))
    texts = export_texts(hosted, " the" * 8192)
    assert texts.measured.n_tokens == MEASURED_TOKENS
    with pytest.raises(
        InvalidRequestError, match="has 255 tokens; calibrating and measuring need at least 256"
    ):
        export_texts(hosted, " the" * 255)
