"""A caller's text split in two: what is calibrated on, and what is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import tiny_hosted
from trephine.domain.errors import InvalidRequestError
from trephine.engine.certificates.export_texts import MEASURED_TOKENS, export_texts


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


def test_no_more_is_measured_than_is_asked_for() -> None:
    """Of a long text its last 1,024 tokens; one that is too short for both says how many it takes."""
    plain = tiny_hosted("llama")
    hosted = replace(plain, info=replace(plain.info, context_length=128))
    texts = export_texts(hosted, " the" * 8192)
    assert texts.measured.n_tokens == MEASURED_TOKENS
    with pytest.raises(
        InvalidRequestError, match="has 255 tokens; calibrating and measuring need at least 256"
    ):
        export_texts(hosted, " the" * 255)
