"""Replacement sets: loaded beside a model, measured, fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trephine.client import replacement_requests, requests
from trephine.client.artifacts import Artifacts
from trephine.client.decoding import decode
from trephine.client.descriptions import described, of_set
from trephine.client.evaluation import Evaluation
from trephine.client.interventions import Handle, feature
from trephine.client.operations import OnProgress, Operation
from trephine.client.paging import pages
from trephine.client.types import Admission, EvaluationInfo, FitReport, ReplacementSetInfo
from trephine.client.wire import Wire
from trephine.v1 import replacement_service_pb2 as pb

PLAIN_TEXT = "text/plain; charset=utf-8"


class ReplacementSet:
    """A replacement set beside a model."""

    def __init__(self, wire: Wire, info: ReplacementSetInfo) -> None:
        self._wire = wire
        self.info = info

    def __repr__(self) -> str:
        return described(self, of_set(self.info))

    @property
    def name(self) -> str:
        """Resource name, `models/MODEL/replacements/SET`."""
        return self.info.name

    @property
    def set_id(self) -> str:
        """What its features are addressed by."""
        return self.info.set_id

    @property
    def admission(self) -> Admission:
        """What the check on load found, layer by layer."""
        return self.info.admission

    @property
    def degraded(self) -> bool:
        """True if it failed admission and was accepted all the same."""
        return self.info.degraded

    def to_json(self) -> str:
        """What it is, in proto-JSON."""
        return self.info.to_json()

    def feature(self, layer: int, index: int) -> Handle:
        """One of its features, to be ablated, scaled, clamped..."""
        return feature(layer, index, replacement=self.set_id)

    def refresh(self) -> ReplacementSetInfo:
        """Ask what it is now: its residency, or why it was lost."""
        request = pb.GetReplacementSetRequest(name=self.name)
        found = self._wire.call(self._wire.replacements.GetReplacementSet, request)
        self.info = decode(ReplacementSetInfo, found)
        return self.info

    def evaluate(
        self, text: str | None = None, *, on_progress: OnProgress | None = None, **options: Any
    ) -> Evaluation:
        """Measure how good it is on a text that it was not trained on, with controls beside.

        Args:
            text: Held-out text; unset: the built-in one.
            on_progress: Called with every step.
            options: Those of `start_evaluate`.
        """
        return self.start_evaluate(text, **options).result(on_progress=on_progress)

    def start_evaluate(
        self,
        text: str | None = None,
        *,
        text_name: str | None = None,
        context_tokens: int | None = None,
        max_contexts: int | None = None,
        layers: Sequence[int] | None = None,
        controls: Sequence[str] | None = None,
        control_text: str | None = None,
        bootstrap: int | None = None,
        perturbations: int | None = None,
        seed: int | None = None,
        request_id: str | None = None,
    ) -> Operation[Evaluation]:
        """Start an evaluation.

        Args:
            text: Held-out text; unset: the built-in one.
            text_name: How reports call it.
            context_tokens: Unset 128.
            max_contexts: Unset 32.
            layers: Layers that are scored one by one; unset: all.
            controls: Some of `random`, `frozen_decoder`, `frozen_encoder`; unset: all, empty: none.
            control_text: Text that the controls are fitted on; unset: the built-in probe text.
            bootstrap: Samples for the intervals; unset 1000.
            perturbations: Features perturbed for the figures by depth; unset 32, 0 skips them.
            seed: Unset 0.
            request_id: The same id again returns the same operation.
        """
        request = self._evaluate_request(
            text,
            control_text=control_text,
            controls=controls,
            request_id=request_id,
            text_name=text_name,
            context_tokens=context_tokens,
            max_contexts=max_contexts,
            layers=layers,
            bootstrap=bootstrap,
            perturbations=perturbations,
            seed=seed,
        )
        message = self._wire.call(self._wire.replacements.EvaluateReplacementSet, request)
        return Operation(self._wire, message, self._evaluation)

    def predict_evaluate(self, text: str | None = None, **options: Any) -> EvaluationInfo:
        """Check an evaluation and say what it would take: `seconds` and `peak_extra_bytes`; measures nothing.

        Args:
            text: Held-out text; unset: the built-in one.
            options: Those of `start_evaluate`.

        Raises:
            OverBudgetError: If it would be refused.
        """
        request = self._evaluate_request(text, **options)
        request.validate_only = True
        message = self._wire.call(self._wire.replacements.EvaluateReplacementSet, request)
        operation = Operation(self._wire, message, lambda result: decode(EvaluationInfo, result))
        return operation.result()

    def _evaluate_request(
        self,
        text: str | None,
        *,
        control_text: str | None = None,
        controls: Sequence[str] | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> pb.EvaluateReplacementSetRequest:
        store = Artifacts(self._wire)
        texts = {
            name: store.upload(words.encode(), media_type=PLAIN_TEXT)
            for name, words in (("text", text), ("control_text", control_text))
            if words is not None
        }
        return replacement_requests.evaluate(self.name, controls, request_id, **texts, **options)

    def unload(self) -> None:
        """Forget it; its memory is free again."""
        request = pb.UnloadReplacementSetRequest(name=self.name)
        self._wire.call(self._wire.replacements.UnloadReplacementSet, request)

    def _evaluation(self, message: Any) -> Evaluation:
        return Evaluation(self._wire, decode(EvaluationInfo, message))


class Replacements:
    """Sets in the replacement roots and loaded ones, and what was found of them."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def list(self, model: str | None = None) -> tuple[ReplacementSetInfo, ...]:
        """Every set, loaded ones first; with `model` only what is beside that one."""
        name = "" if model is None else requests.resource("models", model)
        request = pb.ListReplacementSetsRequest(model=name, page_size=500)
        found = pages(self._wire, self._wire.replacements.ListReplacementSets, request)
        return tuple(decode(ReplacementSetInfo, one) for page in found for one in page.replacement_sets)

    def get(self, name: str) -> ReplacementSet:
        """One set by resource name."""
        request = pb.GetReplacementSetRequest(name=name)
        found = self._wire.call(self._wire.replacements.GetReplacementSet, request)
        return ReplacementSet(self._wire, decode(ReplacementSetInfo, found))

    def evaluation(self, name: str) -> Evaluation:
        """A finished evaluation by name."""
        request = pb.GetEvaluationRequest(name=requests.resource("evaluations", name))
        found = self._wire.call(self._wire.replacements.GetEvaluation, request)
        return Evaluation(self._wire, decode(EvaluationInfo, found))

    def fit(self, name: str) -> FitReport:
        """A finished fit by name."""
        request = pb.GetFitReportRequest(name=requests.resource("fits", name))
        return decode(FitReport, self._wire.call(self._wire.replacements.GetFitReport, request))
