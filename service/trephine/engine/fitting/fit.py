"""A whole fit, from text to a set on disk: contexts, local stages, the end-to-end phase, figures, report."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.fitting import FitReport, GapClosed
from trephine.engine.fitting import corpus
from trephine.engine.fitting.calibration import calibrate
from trephine.engine.fitting.checkpoints import CHUNKS, Checkpoints
from trephine.engine.fitting.contexts import Contexts, bos_of, cut, load_rows, save_rows, split
from trephine.engine.fitting.dictionary import Dictionary
from trephine.engine.fitting.files import write_json, write_text
from trephine.engine.fitting.folders import Origin, write_set
from trephine.engine.fitting.gap import Tuning
from trephine.engine.fitting.local import local_source, local_trainee, starting_dictionaries
from trephine.engine.fitting.measures import measure_layers
from trephine.engine.fitting.request import FitRequest, Workspace, report_text
from trephine.engine.fitting.samples import sample_rows
from trephine.engine.fitting.sizes import fitted_layers, groups
from trephine.engine.fitting.stage import Say, Source, Stage
from trephine.engine.fitting.trainee import Trainee
from trephine.engine.models.hosted import HostedModel


@dataclass(slots=True, kw_only=True)
class Fit:
    """One fit in progress."""

    request: FitRequest
    hosted: HostedModel
    say: Say
    stages: list[Stage] = field(default_factory=list)

    @property
    def space(self) -> Workspace:
        """Where it keeps its work."""
        return Workspace(work=Path(self.request.checkpoints))

    def run(self) -> FitReport:
        """Carry it out, or go on with it; stages that an earlier run has finished are not run again.

        Raises:
            BrokenCorpusError: If there is too little text to fit on, or none.
            FitFailedError: If training diverges or misses its L0.
            OverBudgetError: If it does not fit into memory.
            DiskFullError: If there is no room.
        """
        resumed = self._count_resumptions()
        report = replace(self._fit(time.monotonic()), resumed=resumed)
        write_text(self.space.report, report_text(report))
        return report

    def _fit(self, began: float) -> FitReport:
        recipe, contexts = self.request.recipe, self._contexts()
        dictionaries = [
            d for number, part in enumerate(self._groups()) for d in self._local(number, part, contexts)
        ]
        tuned = recipe.end_to_end.tokens > 0
        calibrate(self.hosted, dictionaries, contexts.calibration, recipe.k, spliced=tuned)
        gap: GapClosed | None = None
        if tuned:
            tuning = Tuning(hosted=self.hosted, recipe=recipe, contexts=contexts, run=self._phase)
            dictionaries, gap = tuning.close(dictionaries)
        return self._written(dictionaries, contexts, gap, began)

    def _count_resumptions(self) -> int:
        """Count this one in, if there is a checkpoint to go on from."""
        path = self.space.work / "resumed.json"
        count: int = json.loads(path.read_text(encoding="utf-8")) if path.exists() else 0
        if any(self.space.work.glob(f"*/{CHUNKS}")):
            count += 1
            write_json(path, count)
        return count

    def _contexts(self) -> Contexts:
        """Read the rows that were kept, or make and keep them."""
        rows = load_rows(self.space.rows)
        if rows is None:
            rows = self._rows()
            save_rows(self.space.rows, rows)
        return split(rows, prepends_bos=bos_of(self.hosted) is not None)

    def _rows(self) -> Tensor:
        recipe = self.request.recipe
        wanted = recipe.tokens + recipe.end_to_end.tokens
        if self.request.corpus is None:
            return sample_rows(
                self.hosted,
                self.space.samples,
                length=recipe.context_tokens,
                wanted_tokens=wanted,
                seed=recipe.seed,
                say=self.say,
            )
        path = Path(self.request.corpus)
        self.say(Progress(stage="tokenize", done=0, total=0))
        return cut(
            self.hosted,
            corpus.documents(path),
            length=recipe.context_tokens,
            wanted_tokens=wanted,
            separated=corpus.has_documents(path),
        )

    def _groups(self) -> list[list[int]]:
        """Return the groups of layers, the same ones after a resumption whatever memory is free then."""
        path = self.space.work / "groups.json"
        if path.exists():
            kept: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))
            return kept
        recipe = self.request.recipe
        found = groups(self.hosted, recipe, fitted_layers(self.hosted, recipe))
        write_json(path, found)
        return found

    def _local(self, number: int, layers: Sequence[int], contexts: Contexts) -> list[Dictionary]:
        recipe = self.request.recipe
        source = local_source(self.hosted, recipe, layers, contexts)
        start = starting_dictionaries(self.hosted, recipe, layers, source)
        trainee = local_trainee(start, recipe, source.plan)
        self._stage(f"local-{number}", "local", trainee, source)
        return list(trainee.dictionaries)

    def _phase(self, name: str, trainee: Trainee[Any], source: Source) -> Stage:
        return self._stage(name, name, trainee, source)

    def _stage(self, name: str, phase: str, trainee: Trainee[Any], source: Source) -> Stage:
        stage = Stage(
            name=name,
            phase=phase,
            trainee=trainee,
            source=source,
            checkpoints=Checkpoints(folder=self.space.stage(name)),
            say=self.say,
        )
        self.stages.append(stage)
        stage.run()
        return stage

    def _written(
        self, dictionaries: Sequence[Dictionary], contexts: Contexts, gap: GapClosed | None, began: float
    ) -> FitReport:
        request = self.request
        self.say(Progress(stage="measure", done=0, total=len(dictionaries)))
        measured = measure_layers(self.hosted, dictionaries, contexts.held_out)
        tokens = self._tokens()
        origin = Origin(
            model_name=request.model_name,
            recipe=request.recipe,
            prepends_bos=contexts.prepends_bos,
            tokens=tokens,
            corpus=request.corpus_name,
        )
        write_set(Path(request.folder), self.hosted, dictionaries, measured, origin)
        return FitReport(
            recipe=request.recipe,
            layers=measured,
            curve=tuple(point for stage in self.stages for point in stage.curve),
            gap=gap,
            corpus=request.corpus_name,
            tokens=tokens,
            model=request.model_name,
            weight_hash=request.weight_hash,
            seconds=max(time.monotonic() - began, sum(stage.seconds for stage in self.stages)),
            peak_bytes=_peak_bytes(self.hosted),
            resumed=0,
        )

    def _tokens(self) -> int:
        """Count training tokens per layer: the control's are not the set's, groups read the same ones."""
        plans = [
            stage.source.plan
            for stage in self.stages
            if stage.name == "local-0" or stage.phase == "end_to_end"
        ]
        return sum(cut.tokens(cut.chunks) for cut in plans)


def _peak_bytes(hosted: HostedModel) -> int:
    if hosted.model.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(hosted.model.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
