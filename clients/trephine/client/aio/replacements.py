"""Replacement sets: loaded beside a model, measured, fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trephine.client import replacement_requests, requests
from trephine.client.aio.artifacts import AsyncArtifacts
from trephine.client.aio.evaluation import AsyncEvaluation
from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.wire import AsyncWire
from trephine.client.decoding import decode
from trephine.client.descriptions import described, of_set
from trephine.client.interventions import Handle, feature
from trephine.client.types import Admission, EvaluationInfo, FitReport, ReplacementSetInfo
from trephine.client.uploads import PLAIN_TEXT
from trephine.client.watches import OnProgress
from trephine.v1 import replacement_service_pb2 as pb


class AsyncReplacementSet:
    """A replacement set beside a model."""

    def __init__(self, wire: AsyncWire, info: ReplacementSetInfo) -> None:
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

    async def refresh(self) -> ReplacementSetInfo:
        """Ask what it is now: its residency, or why it was lost."""
        request = pb.GetReplacementSetRequest(name=self.name)
        found = await self._wire.call(self._wire.replacements.GetReplacementSet, request)
        self.info = decode(ReplacementSetInfo, found)
        return self.info

    async def evaluate(
        self, text: str | None = None, *, on_progress: OnProgress | None = None, **options: Any
    ) -> AsyncEvaluation:
        """Measure how good it is on a text that it was not trained on, with controls beside.

        Args:
            text: Held-out text; unset: the built-in one.
            on_progress: Called with every step.
            options: Those of `start_evaluate`.
        """
        started = await self.start_evaluate(text, **options)
        return await started.result(on_progress=on_progress)

    async def start_evaluate(
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
    ) -> AsyncOperation[AsyncEvaluation]:
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
        request = await self._evaluate_request(
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
        message = await self._wire.call(self._wire.replacements.EvaluateReplacementSet, request)
        return AsyncOperation(self._wire, message, self._evaluation)

    async def predict_evaluate(self, text: str | None = None, **options: Any) -> EvaluationInfo:
        """Check an evaluation and say what it would take: `seconds` and `peak_extra_bytes`; measures nothing.

        Args:
            text: Held-out text; unset: the built-in one.
            options: Those of `start_evaluate`.

        Raises:
            OverBudgetError: If it would be refused.
        """
        request = await self._evaluate_request(text, **options)
        request.validate_only = True
        message = await self._wire.call(self._wire.replacements.EvaluateReplacementSet, request)
        operation = AsyncOperation(self._wire, message, lambda result: decode(EvaluationInfo, result))
        return await operation.result()

    async def _evaluate_request(
        self,
        text: str | None,
        *,
        control_text: str | None = None,
        controls: Sequence[str] | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> pb.EvaluateReplacementSetRequest:
        store = AsyncArtifacts(self._wire)
        texts = {
            name: await store.upload(words.encode(), media_type=PLAIN_TEXT)
            for name, words in (("text", text), ("control_text", control_text))
            if words is not None
        }
        return replacement_requests.evaluate(self.name, controls, request_id, **texts, **options)

    async def unload(self) -> None:
        """Forget it; its memory is free again."""
        request = pb.UnloadReplacementSetRequest(name=self.name)
        await self._wire.call(self._wire.replacements.UnloadReplacementSet, request)

    def _evaluation(self, message: Any) -> AsyncEvaluation:
        return AsyncEvaluation(self._wire, decode(EvaluationInfo, message))


class AsyncReplacements:
    """Sets in the replacement roots and loaded ones, and what was found of them."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def list(self, model: str | None = None) -> tuple[ReplacementSetInfo, ...]:
        """Every set, loaded ones first; with `model` only what is beside that one."""
        name = "" if model is None else requests.resource("models", model)
        request = pb.ListReplacementSetsRequest(model=name, page_size=500)
        found = self._wire.pages(self._wire.replacements.ListReplacementSets, request)
        return tuple(
            [decode(ReplacementSetInfo, one) async for page in found for one in page.replacement_sets]
        )

    async def get(self, name: str) -> AsyncReplacementSet:
        """One set by resource name."""
        request = pb.GetReplacementSetRequest(name=name)
        found = await self._wire.call(self._wire.replacements.GetReplacementSet, request)
        return AsyncReplacementSet(self._wire, decode(ReplacementSetInfo, found))

    async def evaluation(self, name: str) -> AsyncEvaluation:
        """A finished evaluation by name."""
        request = pb.GetEvaluationRequest(name=requests.resource("evaluations", name))
        found = await self._wire.call(self._wire.replacements.GetEvaluation, request)
        return AsyncEvaluation(self._wire, decode(EvaluationInfo, found))

    async def fit(self, name: str) -> FitReport:
        """A finished fit by name."""
        request = pb.GetFitReportRequest(name=requests.resource("fits", name))
        return decode(FitReport, await self._wire.call(self._wire.replacements.GetFitReport, request))
