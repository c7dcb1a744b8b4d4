"""GGUF files of an export in llama.cpp itself: opt-in, since `llama-cpp-python` builds for some minutes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.resident_sets import resident_set
from tests.unit.engine.exporting import edit_of
from tests.unit.engine.weights.folders import FIT, feature, parent, written
from trephine.domain.interventions import Ablate
from trephine.engine.models.quanta import finish
from trephine.engine.models.shards import read_entries
from trephine.engine.quantised.conversion import convert
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.weights.compiling import compile_weights

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.integration
IDS = list(range(5, 45))
EDIT = (feature(0, 3, Ablate()), feature(1, 5, Ablate()))


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@torch.inference_mode()
def test_llama_cpp_answers_as_stock_transformers_does(kind, tmp_path):
    """The edited file in both; the unedited parent's file answers otherwise."""
    hosted = parent("llama", tmp_path / "parent", biases=False, common=1.0)
    resident_set(hosted, "jumprelu")
    program = finish(
        compile_weights(hosted, read_entries(hosted.folder), edit_of(hosted, *EDIT), FIT, kind=kind)
    )
    folder = written(hosted, program, tmp_path / "edited")
    answers = {}
    for name, source in (("edited", folder), ("parent", hosted.folder)):
        (tmp_path / f"{name}-files").mkdir()
        file = tmp_path / f"{name}-files" / f"{kind}.gguf"
        list(convert(hosted, source, kind, file, name))
        stock = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
        answers[name] = stock(torch.tensor([IDS])).logits[0], _answers(file)
    (edited, edited_there), (unedited, _) = answers["edited"], answers["parent"]
    near = float(kl_divergence(edited, edited_there).mean())
    far = float(kl_divergence(edited, unedited).mean())
    assert near < 0.1 * far


def _answers(file):
    """Return llama.cpp's logits after every token, float32 `(n_pos, d_vocab)`."""
    model = llama_cpp.Llama(str(file), n_ctx=64, logits_all=True, verbose=False)
    model.eval(IDS)
    return torch.from_numpy(np.array(model.scores[: len(IDS)], dtype=np.float32))
