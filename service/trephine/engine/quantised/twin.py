"""The parent as its own GGUF file answers, hosted, so that the runtime can intervene in it."""

from __future__ import annotations

import copy
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from torch import nn

from trephine.domain.exports import GgufType
from trephine.engine.models.architecture import describe_architecture
from trephine.engine.models.hosted import HostedModel
from trephine.engine.quantised.conversion import Layout


def quantised_twin(hosted: HostedModel, kind: GgufType) -> Generator[None, None, HostedModel]:
    """Copy a model with every weight quantised and read back; one tensor a quantum.

    It takes the memory of a second model while it lives. Tied weights stay tied.

    Raises:
        UnsupportedOptionError: If the architecture is not converted here.
    """
    layout = Layout(hosted, hosted.folder, kind)
    stored = {tensor.entry.name: tensor for tensor in layout.tensors}
    prefix = f"{hosted.model.base_model_prefix}."
    copies: dict[int, Any] = {}
    for name, parameter in hosted.model.named_parameters():
        tensor = stored.get(name) or stored.get(name.removeprefix(prefix))
        if tensor is not None:
            values = layout.rounded(tensor).to(parameter.device, parameter.dtype)
            copies[id(parameter)] = nn.Parameter(values, requires_grad=False)
        yield
    model = copy.deepcopy(hosted.model, copies)
    return replace(hosted, model=model, architecture=describe_architecture(model))
