"""ReplacementService of the fake server: one set beside `models/tiny`, one evaluation, one fit."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from trephine.v1 import artifact_service_pb2, common_pb2, replacement_service_pb2_grpc
from trephine.v1 import replacement_service_pb2 as pb

SET = "models/tiny/replacements/small"


def figure(value: float) -> common_pb2.Figure:
    """A number with an interval."""
    return common_pb2.Figure(value=value, low=value - 0.1, high=value + 0.1)


def _spliced(dictionary: pb.Dictionary.ValueType, fvu: float) -> pb.SplicedScore:
    """All layers spliced, of which there is one."""
    size, dead = figure(30 * fvu), fvu / 3
    return pb.SplicedScore(
        dictionary=dictionary,
        ce_score=figure(1 - fvu / 2),
        fvu=figure(fvu),
        l0=size,
        dead_share=dead,
        layers=[pb.SplicedLayer(layer=0, fvu=figure(fvu), l0=size, dead_share=dead)],
    )


class FakeReplacements(replacement_service_pb2_grpc.ReplacementServiceServicer):
    """A part of `FakeService`, which notes requests, starts operations and keeps artifacts."""

    replacement_loaded = True
    replacement_degraded = False
    caveats: tuple[str, ...] = ()
    admission_error = ""
    uploaded: dict[str, bytes]

    def _set(self) -> pb.ReplacementSet:
        why = "layer 0: \x1b[31mFVU 1.31 is not below 1" if self.replacement_degraded else "all as claimed"
        layer = pb.ReplacementLayer(
            layer=0,
            kind=pb.LAYER_KIND_TRANSCODER,
            support=pb.SUPPORT_RULE_JUMPRELU,
            site_in=common_pb2.Site(kind=common_pb2.SITE_KIND_MLP_IN),
            d_sae=3,
            claimed_l0=1.5,
        )
        admitted = pb.LayerAdmission(
            layer=0,
            l0=1.4,
            fvu=0.31,
            l0_first=2.6,
            fvu_first=0.87,
            passed=not self.replacement_degraded,
            why=why,
        )
        return pb.ReplacementSet(
            name=SET,
            state=pb.REPLACEMENT_STATE_LOADED,
            format=pb.SET_FORMAT_SAELENS,
            content_hash="c" * 64,
            version=common_pb2.ModelVersion(model="models/tiny", weight_hash="w" * 64),
            layers=[layer],
            admission=pb.Admission(passed=not self.replacement_degraded, why=why, layers=[admitted]),
            degraded=self.replacement_degraded,
        )

    def ListReplacementSets(self, request: Any, context: Any) -> Any:
        """The loaded set, and the same on disk unless a model is named."""
        self._note(request, context)
        found = [self._set()] if self.replacement_loaded else []
        if not request.model:
            available = pb.REPLACEMENT_STATE_AVAILABLE
            found.append(pb.ReplacementSet(name="replacements/small", state=available))
        return pb.ListReplacementSetsResponse(replacement_sets=found)

    def GetReplacementSet(self, request: Any, context: Any) -> Any:
        """The loaded set, or NOT_FOUND."""
        self._note(request, context)
        if request.name != SET or not self.replacement_loaded:
            code = grpc.StatusCode.NOT_FOUND
            self._fail(context, code, "REPLACEMENT_NOT_FOUND", f"no set {request.name}")
        return self._set()

    def LoadReplacementSet(self, request: Any, context: Any) -> Any:
        """Loads, unless admission is to fail."""
        self._note(request, context)
        if self.admission_error:
            code = grpc.StatusCode.FAILED_PRECONDITION
            self._fail(context, code, "ADMISSION_FAILED", self.admission_error)
        return self._start("LoadReplacementSet", self._set())

    def UnloadReplacementSet(self, request: Any, context: Any) -> Any:
        """Notes the request."""
        self._note(request, context)
        return Empty()

    def _evaluation(self) -> pb.ReplacementEvaluation:
        scores = [
            pb.LayerScore(
                dictionary=one,
                fvu=figure(fvu),
                ce_score=figure(1 - fvu),
                ce_score_zero=figure(1 - fvu / 2),
                kl_score=figure(1 - fvu / 3),
                kl_score_zero=figure(1 - fvu / 4),
                top1_agreement=figure(1 - fvu / 5),
                error_share=figure(fvu / 2),
                l0=figure(20 * fvu),
                dead_share=fvu / 4,
            )
            for one, fvu in ((pb.DICTIONARY_GIVEN, 0.3), (pb.DICTIONARY_RANDOM, 0.95))
        ]
        claims = [
            pb.Claim(figure="fvu", control=pb.DICTIONARY_RANDOM, beats=True, difference=figure(-0.65)),
            pb.Claim(figure="kl", control=pb.DICTIONARY_RANDOM, beats=False, difference=figure(0.01)),
        ]
        return pb.ReplacementEvaluation(
            name="evaluations/e1",
            replacement_set=self._set(),
            layers=scores,
            spliced=[_spliced(pb.DICTIONARY_GIVEN, 0.45), _spliced(pb.DICTIONARY_RANDOM, 1.05)],
            depths=[
                pb.DepthFaithfulness(dictionary=one, depth=1, cosine=figure(0.8), nmse=figure(nmse), pairs=16)
                for one, nmse in ((pb.DICTIONARY_GIVEN, 0.3), (pb.DICTIONARY_RANDOM, 1.25))
            ],
            claims=claims,
            text="heldout\x1b[31m 0123",
            caveats=["position 0 is left out"],
        )

    def EvaluateReplacementSet(self, request: Any, context: Any) -> Any:
        """Starts an operation, or predicts."""
        self._note(request, context)
        if request.validate_only:
            predicted = pb.ReplacementEvaluation(seconds=60, peak_extra_bytes=1 << 30)
            return self._start("EvaluateReplacementSet", predicted)
        return self._start("EvaluateReplacementSet", self._evaluation())

    def GetEvaluation(self, request: Any, context: Any) -> Any:
        """The one evaluation."""
        self._note(request, context)
        return self._evaluation()

    def RenderEvaluation(self, request: Any, context: Any) -> Any:
        """The format's name as a file."""
        form = pb.EvaluationFormat.Name(request.format)
        data = b'{"name": "evaluations/e1"}' if form.endswith("JSON") else form.encode()
        return pb.RenderEvaluationResponse(artifact=self._keep(data))

    def _fit(self) -> pb.FitReport:
        return pb.FitReport(
            name="fits/f1",
            replacement_set="replacements/mine",
            layers=[pb.FittedLayer(layer=0, fvu=0.3, l0=1.5)],
            curve=self._curve(),
            gap=pb.GapClosed(
                ce_plain=3.0,
                ce_local=3.5,
                ce_end_to_end=3.2,
                ce_local_control=3.45,
                closed=0.6,
                seconds_end_to_end=12.5,
                seconds_local_control=13.25,
            ),
        )

    def _curve(self) -> list[pb.FitPoint]:
        """Eleven points of a layer, and two through the whole model."""
        local = [
            pb.FitPoint(phase="local", layer=0, tokens=1000 * step, fvu=1 - 0.05 * step, l0=40.0 - step)
            for step in range(11)
        ]
        whole = [
            pb.FitPoint(phase="end_to_end", layer=-1, tokens=500 * step, fvu=0.5, l0=30.0, kl=0.25 / step)
            for step in (1, 2)
        ]
        return [*local, *whole]

    def FitReplacementSet(self, request: Any, context: Any) -> Any:
        """Starts an operation, or predicts."""
        self._note(request, context)
        if request.validate_only:
            predicted = pb.FitReport(predicted=pb.PredictedFit(seconds=60, memory_bytes=1 << 30))
            return self._start("FitReplacementSet", predicted)
        return self._start("FitReplacementSet", self._fit())

    def GetFitReport(self, request: Any, context: Any) -> Any:
        """The one fit."""
        self._note(request, context)
        return self._fit()

    def Write(self, request_iterator: Any, context: Any) -> Any:
        """Keeps an upload under its digest."""
        data = b""
        for piece in request_iterator:
            data += piece.data
            if piece.finish:
                name = self._keep(data)
                self.uploaded[name] = data
                artifact = artifact_service_pb2.Artifact(
                    name=name, size=len(data), media_type=piece.media_type
                )
                return artifact_service_pb2.WriteResponse(committed=len(data), artifact=artifact)
        return artifact_service_pb2.WriteResponse(committed=len(data))
