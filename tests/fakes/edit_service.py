"""EditService of the fake server, as far as versions and evaluations go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty

from trephine.v1 import (
    circuit_verification_pb2,
    common_pb2,
    edit_evaluations_pb2,
    edit_history_pb2,
    edit_service_pb2,
    edit_service_pb2_grpc,
    interventions_pb2,
    live_edits_pb2,
    spurious_removal_pb2,
)


def figure(name: str, value: float, unit: str = "") -> common_pb2.Figure:
    """A number with an interval."""
    return common_pb2.Figure(name=name, value=value, low=value - 0.1, high=value + 0.1, unit=unit)


class FakeEdits(edit_service_pb2_grpc.EditServiceServicer):
    """A part of `FakeService`, which notes requests, starts operations and describes edits."""

    verdict = "SELECTIVE"
    live: Sequence[live_edits_pb2.EditUse] = ()

    def _edit_version(self, name: str, version: int) -> edit_service_pb2.Edit:
        edit = self._edit(name.removeprefix("edits/"))  # type: ignore[attr-defined]
        edit.version, edit.etag, edit.author = version, f"etag{version}", "\x1b[31msomebody"
        edit.sets.add(name="small", content_hash="s" * 64)
        edit.parts.add(edit="edits/other@3", content_hash="p" * 64, strength=0.5)
        return edit

    def UpdateEdit(self, request: edit_history_pb2.UpdateEditRequest, context: Any) -> edit_service_pb2.Edit:
        """Make version 2."""
        self._note(request, context)  # type: ignore[attr-defined]
        edit = self._edit_version(request.name, 2)
        edit.interventions.extend(request.interventions)
        return edit

    def RevertEdit(self, request: edit_history_pb2.RevertEditRequest, context: Any) -> edit_service_pb2.Edit:
        """Make version 3."""
        self._note(request, context)  # type: ignore[attr-defined]
        return self._edit_version(request.name, 3)

    def ListEditVersions(
        self, request: edit_history_pb2.ListEditVersionsRequest, context: Any
    ) -> edit_service_pb2.ListEditVersionsResponse:
        """Two versions."""
        versions = [self._edit_version(request.name, number) for number in (2, 1)]
        return edit_service_pb2.ListEditVersionsResponse(edits=versions)

    def DeleteEdit(self, request: edit_service_pb2.DeleteEditRequest, context: Any) -> Empty:
        """Forget it."""
        self._note(request, context)  # type: ignore[attr-defined]
        return Empty()

    def ComposeEdits(
        self, request: live_edits_pb2.ComposeEditsRequest, context: Any
    ) -> edit_service_pb2.ComposeEditsResponse:
        """Compose, or tell of one conflict."""
        self._note(request, context)  # type: ignore[attr-defined]
        if not request.validate_only:
            return edit_service_pb2.ComposeEditsResponse(edit=self._edit_version(request.edit_id, 1))
        conflict = live_edits_pb2.EditConflict(
            kind=live_edits_pb2.EDIT_CONFLICT_KIND_VALUES, first="edits/a@1", second="edits/b@2",
            target="neurons:1:3", positions="every position", why="one does \x1b[1mablate",
            first_intervention=0, second_intervention=2,
        )  # fmt: skip
        return edit_service_pb2.ComposeEditsResponse(conflicts=[conflict] if len(request.parts) > 1 else [])

    def RemoveSpuriousFeatures(
        self, request: spurious_removal_pb2.RemoveSpuriousFeaturesRequest, context: Any
    ) -> operations_pb2.Operation:
        """Find that nothing can be told."""
        self._note(request, context)  # type: ignore[attr-defined]
        found = spurious_removal_pb2.SpuriousRemoval(name="spuriousRemovals/r", labels=["bad", "good"])
        started: operations_pb2.Operation = self._start(  # type: ignore[attr-defined]
            "RemoveSpuriousFeatures", found
        )
        return started

    def DiffEdits(
        self, request: live_edits_pb2.DiffEditsRequest, context: Any
    ) -> live_edits_pb2.DiffEditsResponse:
        """One intervention changed, one added."""
        self._note(request, context)  # type: ignore[attr-defined]
        before, after = (
            interventions_pb2.Intervention(
                target={"feature": {"layer": 1, "index": 3}}, operation={"scale": factor}
            )
            for factor in (0.5, 0.25)
        )
        changed = live_edits_pb2.InterventionChange(
            kind=live_edits_pb2.INTERVENTION_CHANGE_KIND_CHANGED,
            before=before, after=after, fields=["operation"],
        )  # fmt: skip
        added = live_edits_pb2.InterventionChange(
            kind=live_edits_pb2.INTERVENTION_CHANGE_KIND_ADDED, after=after
        )
        return live_edits_pb2.DiffEditsResponse(
            first=request.first, second=request.second, changes=[changed, added], unchanged=2, reordered=True,
            fields=["reason"],
        )  # fmt: skip

    def SetLiveEdits(
        self, request: live_edits_pb2.SetLiveEditsRequest, context: Any
    ) -> live_edits_pb2.LiveEdits:
        """Remember them."""
        self._note(request, context)  # type: ignore[attr-defined]
        self.live = list(request.edits)
        return live_edits_pb2.LiveEdits(model=request.model, edits=self.live)

    def GetLiveEdits(
        self, request: live_edits_pb2.GetLiveEditsRequest, context: Any
    ) -> live_edits_pb2.LiveEdits:
        """What was set."""
        self._note(request, context)  # type: ignore[attr-defined]
        return live_edits_pb2.LiveEdits(model=request.model, edits=self.live)

    def _edit_evaluation(self) -> edit_evaluations_pb2.EditEvaluation:
        pb = edit_evaluations_pb2
        found = pb.EditEvaluation(
            name="edits/no-mary/evaluations/e1",
            edit="edits/no-mary@1",
            content_hash="c" * 64,
            verdict=pb.EditVerdict.Value(f"EDIT_VERDICT_{self.verdict}"),
            why="log_odds_change on \x1b[1mnames is -2",
            would_decide="about 90 texts" if self.verdict == "INCONCLUSIVE" else "",
            matching=pb.ControlMatching(matched=1, notes=["widened"], wrong_layers=["neurons:1 -> 0"]),
            prompting=pb.PromptingResult(
                candidates=[pb.PromptCandidate(label="4 examples", tokens=16, behaviour=1.25)],
                chosen="4 examples",
                plain_behaviour=-4.0,
                edit_behaviour=1.5,
                strength=0.97,
                differences=[figure("kl_difference on texts", 0.5)],
                standing=circuit_verification_pb2.STANDING_BEATS,
                why="the edit does less damage",
            ),
            seconds=12,
        )
        of_edit = pb.ArmResult(arm=pb.EVALUATION_ARM_EDIT, figures=[figure("log_odds_change", -2.0, "nats")])
        compared = pb.ControlComparison(
            arm=pb.EVALUATION_ARM_RANDOM, statistic="log_odds_change", effect=-2.0,
            values=[-0.25, 0.5], p_value=0.01, adjusted_p_value=0.02, units=8,
            quantiles=[-0.2125, 0.125, 0.4625],
        )  # fmt: skip
        elsewhere = pb.ControlComparison(
            arm=pb.EVALUATION_ARM_WRONG_LAYER, statistic="kl", effect=0.03, values=[0.02, 0.04],
            p_value=0.5, adjusted_p_value=0.75, units=8, tokens=256, reached=1,
            quantiles=[0.021, 0.03, 0.039],
        )  # fmt: skip
        found.sets.add(
            name="names", role=pb.EVALUATION_ROLE_TARGET, units=8, arms=[of_edit], controls=[compared]
        )
        found.sets.add(name="texts", role=pb.EVALUATION_ROLE_RETAIN, units=8, controls=[elsewhere])
        return found

    def EvaluateEdit(self, request: edit_evaluations_pb2.EvaluateEditRequest, context: Any) -> Any:
        """Measure, or predict."""
        self._note(request, context)  # type: ignore[attr-defined]
        found = self._edit_evaluation()
        if request.validate_only:
            found.seconds, found.peak_extra_bytes = 34, 56_000_000
        return self._start("EvaluateEdit", found)  # type: ignore[attr-defined]

    def ListEditEvaluations(
        self, request: edit_evaluations_pb2.ListEditEvaluationsRequest, context: Any
    ) -> edit_evaluations_pb2.ListEditEvaluationsResponse:
        """One evaluation."""
        self._note(request, context)  # type: ignore[attr-defined]
        return edit_evaluations_pb2.ListEditEvaluationsResponse(evaluations=[self._edit_evaluation()])

    def GetEditEvaluation(
        self, request: edit_evaluations_pb2.GetEditEvaluationRequest, context: Any
    ) -> edit_evaluations_pb2.EditEvaluation:
        """The one."""
        return self._edit_evaluation()
