"""The async client has the same typed surface as the sync one."""

from __future__ import annotations

import inspect

import pytest

from trephine.client import Circuit, Model, Operation, Trephine
from trephine.client.aio import AsyncCircuit, AsyncModel, AsyncOperation, AsyncTrephine
from trephine.client.aio.artifacts import AsyncArtifacts
from trephine.client.aio.audits import AsyncAuditors, AsyncAudits
from trephine.client.aio.circuit import AsyncCircuits
from trephine.client.aio.dataset_circuits import AsyncDatasetCircuits
from trephine.client.aio.edits import AsyncEdits, AsyncExports
from trephine.client.aio.evaluation import AsyncEvaluation
from trephine.client.aio.features import AsyncFeature, AsyncFeatureIndexes, AsyncModelFeatures
from trephine.client.aio.generation import AsyncGenerationStream
from trephine.client.aio.models import AsyncModels
from trephine.client.aio.operations import AsyncOperations
from trephine.client.aio.replacements import AsyncReplacements, AsyncReplacementSet
from trephine.client.artifacts import Artifacts
from trephine.client.audits import Auditors, Audits
from trephine.client.circuit import Circuits
from trephine.client.dataset_circuits import DatasetCircuits
from trephine.client.edits import Edits, Exports
from trephine.client.evaluation import Evaluation
from trephine.client.features import Feature, FeatureIndexes, ModelFeatures
from trephine.client.generation import GenerationStream
from trephine.client.models import Models
from trephine.client.operations import Operations
from trephine.client.replacements import Replacements, ReplacementSet

PAIRS = [
    (Trephine, AsyncTrephine),
    (Model, AsyncModel),
    (Circuit, AsyncCircuit),
    (Operation, AsyncOperation),
    (Operations, AsyncOperations),
    (Circuits, AsyncCircuits),
    (DatasetCircuits, AsyncDatasetCircuits),
    (Edits, AsyncEdits),
    (Exports, AsyncExports),
    (Models, AsyncModels),
    (Auditors, AsyncAuditors),
    (Audits, AsyncAudits),
    (GenerationStream, AsyncGenerationStream),
    (Artifacts, AsyncArtifacts),
    (Replacements, AsyncReplacements),
    (ReplacementSet, AsyncReplacementSet),
    (Evaluation, AsyncEvaluation),
    (ModelFeatures, AsyncModelFeatures),
    (Feature, AsyncFeature),
    (FeatureIndexes, AsyncFeatureIndexes),
]


def surface(kind: type) -> dict[str, list[tuple[str, object]]]:
    """Public names with their parameters and defaults."""
    found = {}
    for name, member in inspect.getmembers(kind):
        if name.startswith("_"):
            continue
        parameters = inspect.signature(member).parameters.values() if callable(member) else ()
        found[name] = [(one.name, one.default) for one in parameters]
    return found


@pytest.mark.parametrize(("sync", "awaited"), PAIRS, ids=lambda kind: kind.__name__)
def test_names_parameters_and_defaults_agree(sync: type, awaited: type):
    """A method added to one surface only, or with another default, fails here."""
    assert surface(awaited) == surface(sync)
