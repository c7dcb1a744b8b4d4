"""The texts of an export: what grafts and fits are calibrated on, and what the certificate measures.

A caller's text is split, so that nothing is measured on what was fitted on: of its first tokens, as many as
both need, cut into windows from the front, the last windows are measured. A long text's own end is left out.
The built-in text is too short for that and serves as both, which the plan then says: of a fit it is a doubt.
A caller's text is one on which features fire, so that what the edit does to it is its effect; what it does to
everything else is measured on the built-in text beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from trephine.domain.errors import InvalidRequestError
from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.retain import WINDOW_TOKENS, RetainText, retain_text

MEASURED_TOKENS = 1024
CALIBRATION_TOKENS = 8192
_LEAST = 2 * WINDOW_TOKENS
_RUN = 16
"""Tokens in a row that ordinary prose hardly ever has twice."""
_MOST_REPEATED = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportTexts:
    """What is calibrated on and what is measured."""

    calibration: RetainText
    measured: RetainText
    retained: RetainText | None = None
    """The built-in text where another one is measured: what the edit must leave alone."""

    @property
    def repeated(self) -> float:
        """Share of what is measured that stands word for word in what is calibrated on; 1 if they are one."""
        if self.calibration is self.measured:
            return 1.0
        known = {run for window in self.calibration.windows for run in _runs(window)}
        met = [run in known for window in self.measured.windows for run in _runs(window)]
        return sum(met) / len(met) if met else 0.0

    @property
    def apart(self) -> bool:
        """Whether what is measured is another text than what is calibrated on."""
        return self.repeated < _MOST_REPEATED

    @property
    def on_record(self) -> dict[str, str]:
        """What a certificate says of the second text: name with hash, and tokens; empty without one."""
        if self.retained is None:
            return {}
        return {"retain_text": self.retained.label, "retain_tokens": str(self.retained.n_tokens)}


def export_texts(hosted: HostedModel, text: str | None) -> ExportTexts:
    """Split a caller's text, or take the built-in one for both.

    Raises:
        InvalidRequestError: If the caller's text is too short to be split.
    """
    if text is None:
        own = retain_text(hosted)
        return ExportTexts(calibration=own, measured=own)
    most = MEASURED_TOKENS + CALIBRATION_TOKENS
    ids = list(hosted.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])[:most]
    if len(ids) < _LEAST:
        raise InvalidRequestError(
            f"the text has {len(ids)} tokens; calibrating and measuring need at least {_LEAST}, "
            "some thousands for a fit",
            field="text",
        )
    size = min(WINDOW_TOKENS, hosted.info.context_length)
    windows = [tuple(ids[start : start + size]) for start in range(0, len(ids), size)]
    windows = [window for window in windows if len(window) > 1]
    measured = _measured(windows, size)
    digest = hashlib.sha256(text.encode()).hexdigest()

    def part(name: str, chosen: list[tuple[int, ...]]) -> RetainText:
        # Plain logits are kept by this hash: the two parts must not be taken for one another.
        own = hashlib.sha256(f"{digest}/{name}".encode()).hexdigest()
        return RetainText(name=f"given by the caller, {name}", sha256=own, windows=tuple(chosen))

    return ExportTexts(
        calibration=part("calibration part", windows[:-measured]),
        measured=part("measured part", windows[-measured:]),
        retained=retain_text(hosted),
    )


def _measured(windows: list[tuple[int, ...]], size: int) -> int:
    """Return how many of the last windows are measured: a third at most, but no fewer tokens than a window.

    The very last one is what the text leaves over, down to two tokens, on which nothing could be told.
    """
    count = max(1, min(MEASURED_TOKENS // size, len(windows) // 3))
    while sum(map(len, windows[-count:])) < size and count < len(windows) - 1:
        count += 1
    return count


def _runs(window: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield every run of so many tokens."""
    return (window[start : start + _RUN] for start in range(len(window) - _RUN + 1))
