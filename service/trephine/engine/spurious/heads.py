"""Heads of a decision as weight, bias and readout: probes, label tokens, stock classifiers, rewards."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from trephine.domain.errors import HeadNotStockError, NonFiniteValueError, ParentChangedError, TrephineError
from trephine.domain.spurious_heads import (
    TEXT,
    ClassifierHead,
    DecisionHead,
    HeadWeights,
    Pooling,
    ProbeHead,
    RewardHead,
    TokenHead,
    same_token,
)
from trephine.engine.erasure.logistic import fit_logistic
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.shards import TensorEntry, read_entries, read_tensor
from trephine.engine.models.sites import require_layer
from trephine.engine.spurious.pairs import fit_reward
from trephine.engine.spurious.pooling import Readout

STOCK = Readout(layer=None, pooling=Pooling.LAST)
SCORE = "score.weight"
_BUFFERS = (".inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")
"""How names of what older checkpoints hold beside weights end: masks and frequencies, no parameters."""
_NAMED = 3
"""Missing tensors that a message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearHead:
    """Logits of two labels, linear in a pooled vector."""

    readout: Readout
    weight: Tensor
    """float32 `(2, d_model)`."""
    bias: Tensor
    """float32 `(2,)`."""

    @property
    def direction(self) -> Tensor:
        """What the decision reads, `(d_model,)`: second label less first."""
        return self.weight[1] - self.weight[0]

    def margin(self, pooled: Tensor) -> Tensor:
        """Second logit less the first, `(n,)`; above 0 is the second label.

        Raises:
            NonFiniteValueError: If one is NaN or infinite, which would be taken for a decision.
        """
        found = pooled @ self.direction + (self.bias[1] - self.bias[0])
        if not (finite := torch.isfinite(found)).all():
            raise NonFiniteValueError(
                f"the decision on {int((~finite).sum())} of {len(found)} texts is no number: weights or the "
                "threshold of the head, or products with what it reads, are not finite. Give another head",
                field="decision",
            )
        return found

    def decide(self, pooled: Tensor) -> Tensor:
        """Return the label's number, int64 `(n,)`."""
        return (self.margin(pooled) > 0).long()

    def weights(self, labels: tuple[str, str], *, special_tokens: bool) -> HeadWeights:
        """Write it as a value, with how the texts were read that it was measured on."""
        return HeadWeights(
            labels=labels,
            weight=tuple(tuple(row) for row in self.weight.float().tolist()),
            bias=tuple(float(b) for b in self.bias),
            layer=self.readout.layer,
            pooling=self.readout.pooling,
            special_tokens=special_tokens,
        )


def readout_of(hosted: HostedModel, decision: DecisionHead) -> Readout:
    """Return where a head reads.

    Raises:
        LayerOutOfRangeError: If a probe names a layer that there is not.
    """
    if not isinstance(decision, ProbeHead):
        return STOCK
    if decision.layer is not None:
        try:
            require_layer(hosted.architecture, decision.layer)
        except TrephineError as error:
            raise error.with_field("decision.layer") from None
    return Readout(layer=decision.layer, pooling=decision.pooling)


def worded(decision: DecisionHead, text: str) -> str:
    """Put a text into the template of label tokens, if there is one."""
    return decision.template.replace(TEXT, text) if isinstance(decision, TokenHead) else text


def fit_probe(
    probe: ProbeHead, readout: Readout, pooled: Tensor, labels: Tensor, pairs: Tensor | None = None
) -> LinearHead:
    """Train a probe; in the stock form at the stock site.

    Args:
        probe: How.
        readout: Where it reads.
        pooled: `(n, d_model)`.
        labels: `(n,)`, 0 or 1.
        pairs: `(n_pairs, 2)`, as `partners` gives them: it is trained on these. None: on the texts.
    """
    stock = readout == STOCK
    if pairs is None:
        weight, bias = fit_logistic(pooled, labels, penalty=probe.penalty, stock=stock)
    else:
        weight, bias = fit_reward(pooled, pairs, penalty=probe.penalty, stock=stock)
    return two_sided(readout, weight.float(), bias)


def two_sided(readout: Readout, direction: Tensor, bias: float) -> LinearHead:
    """Split a decision, second label less first, evenly between two rows."""
    half, offset = direction / 2, bias / 2
    return LinearHead(
        readout=readout, weight=torch.stack([-half, half]), bias=torch.tensor([-offset, offset])
    )


def token_head(hosted: HostedModel, head: TokenHead) -> LinearHead:
    """Read label tokens' rows of the unembedding.

    Raises:
        TargetNotOneTokenError: If a label is not one of the model's tokens; the message says what it splits
            into.
        InvalidRequestError: If two labels have the same token, however it is written.
    """
    ids = list[int]()
    for number, one in enumerate(head.tokens):
        try:
            found = hosted.resolve_target(one.token)
        except TrephineError as error:
            raise error.with_field(f"decision.tokens.tokens[{number}].token") from None
        if found in ids:
            raise same_token(one, number)
        ids.append(found)
    rows, bias = hosted.architecture.W_U[ids].float().cpu(), torch.zeros(2)
    if hosted.architecture.b_U is not None:
        bias = hosted.architecture.b_U[ids].float().cpu()
    return LinearHead(readout=STOCK, weight=rows, bias=bias)


def given_head(
    hosted: HostedModel, head: ClassifierHead | RewardHead, labels: tuple[str, str]
) -> Generator[None, None, Tensor]:
    """Read `score.weight` of a stock folder, and prove its other weights to be the hosted model's.

    Returns:
        float32 `(2, d_model)` in the order of `labels`, or `(1, d_model)` of a reward.

    Raises:
        HeadNotStockError: If the folder has no such head, or not these labels.
        ParentChangedError: If it is a head on other weights, or not all of them are there to be compared.
    """
    score = given_score(hosted, head, labels)
    yield
    yield from _same_weights(hosted, Path(head.folder), read_entries(Path(head.folder)))
    return score


def given_score(hosted: HostedModel, head: ClassifierHead | RewardHead, labels: tuple[str, str]) -> Tensor:
    """Read `score.weight` of a stock folder, whatever its other weights are.

    Returns:
        float32 `(2, d_model)` in the order of `labels`, or `(1, d_model)` of a reward.

    Raises:
        HeadNotStockError: If the folder has no such head, or not these labels.
    """
    folder = Path(head.folder)
    entries = read_entries(folder)
    if SCORE not in entries:
        raise HeadNotStockError(
            f"{folder.name} holds no {SCORE}: it is no stock sequence classifier", field=head.field
        )
    wanted = 1 if isinstance(head, RewardHead) else 2
    score = read_tensor(folder, entries[SCORE]).float()
    if tuple(score.shape) != (wanted, hosted.info.d_model):
        raise HeadNotStockError(
            f"{SCORE} of {folder.name} has shape {tuple(score.shape)}; {wanted} x {hosted.info.d_model} is "
            f"needed: {_other_outputs(score, wanted)}",
            field=head.field,
        )
    if not (finite := torch.isfinite(score)).all():
        raise HeadNotStockError(
            f"{SCORE} of {folder.name} holds {int((~finite).sum())} numbers of {score.numel()} that are NaN "
            "or infinite: it decides nothing. Give the folder of a training that did not diverge",
            field=head.field,
        )
    return score if wanted == 1 else score[_order(head, labels)]


def _other_outputs(score: Tensor, wanted: int) -> str:
    """Say what to do with a head of another shape than is wanted, by what it is."""
    outputs = score.shape[0] if score.ndim == 2 else 0
    if outputs == 1 and wanted == 2:
        return "one output is a reward; name it as one, with its positive label"
    if outputs == 2 and wanted == 1:
        return "two outputs are a classifier; name it as one, or give a model with one output, the reward"
    return f"a decision is between two labels; give a head of {wanted} on this model, or train a probe"


def _same_weights(
    hosted: HostedModel, folder: Path, entries: Mapping[str, TensorEntry]
) -> Generator[None, None, None]:
    """Hold every tensor of a folder but the score against the hosted model's, and every one of these too.

    Names may lack the base model's prefix, as stock checkpoints may. The unembedding, which a classifier
    does not have, need not be there; a tensor that the model uses twice need stand there once.

    Raises:
        ParentChangedError: Naming what differs, what is missing, or what the hosted model does not have.
    """
    loaded: dict[str, Any] = hosted.model.state_dict()
    prefix, compared = hosted.model.base_model_prefix, set[str]()
    for name, entry in entries.items():
        if name == SCORE or name.endswith(_BUFFERS):
            continue
        known = name if name in loaded else f"{prefix}.{name}"
        own = loaded.get(known)
        if own is None:
            raise ParentChangedError(
                f"{name} of {folder.name} has no counterpart in the hosted model; load the base that it was "
                "made for",
                tensor=name,
            )
        stored, held = read_tensor(folder, entry), own.cpu()
        if not torch.equal(stored.to(held.dtype), held):
            raise ParentChangedError(
                f"{name} of {folder.name} is not the hosted model's{_rounded(stored, held)}", tensor=name
            )
        compared.add(known)
        yield
    missing = [names[0] for names in _parameters(hosted.model) if compared.isdisjoint(names)]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ParentChangedError(
            f"{folder.name} lacks {', '.join(missing[:_NAMED])}{more} of the hosted model, so that it cannot "
            "be told on which weights its head was trained; give the whole folder as `save_pretrained` "
            "writes it",
            tensor=missing[0],
        )


def _rounded(stored: Tensor, held: Tensor) -> str:
    """Say what to do: of weights that differ by their precision alone, how to have them agree."""
    if stored.shape == held.shape and torch.equal(held.to(stored.dtype), stored):
        kept, loaded = (str(one.dtype).removeprefix("torch.") for one in (stored, held))
        how = f"load the model as {kept}, or save" if stored.dtype == torch.bfloat16 else "save"
        return (
            f", but that rounded to {kept}, and it is loaded as {loaded}: {how} the classifier with the "
            "weights of its base as they are"
        )
    return "; load the base that it was made for"


def _parameters(model: Any) -> list[list[str]]:
    """Return the names of every parameter but those of the unembedding alone; several where it is tied."""
    unembedding = model.get_output_embeddings()
    apart = set() if unembedding is None else {id(one) for one in unembedding.modules()}
    names, elsewhere = dict[int, list[str]](), set[int]()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            names.setdefault(id(parameter), []).append(name)
            if id(module) not in apart:
                elsewhere.add(id(parameter))
    return [found for number, found in names.items() if number in elsewhere]


def stock_configuration(head: ClassifierHead | RewardHead) -> Any:
    """Return a given head's configuration, with what transformers leave out of the file where it is usual.

    Raises:
        HeadNotStockError: If it cannot be read.
    """
    folder = Path(head.folder)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as failure:
        raise HeadNotStockError(
            f"the configuration of {folder.name} cannot be read: it is no stock sequence classifier; give "
            "the whole folder as `save_pretrained` writes it",
            field=head.field,
        ) from failure


def _order(head: ClassifierHead | RewardHead, labels: Sequence[str]) -> list[int]:
    named = stock_configuration(head).id2label.items()  # LABEL_0 and LABEL_1 stand in no file
    numbers = {str(label): int(number) for number, label in named if int(number) in (0, 1)}
    if any(label not in numbers for label in labels):
        raise HeadNotStockError(
            f"id2label of {Path(head.folder).name} names {', '.join(numbers) or 'nothing'}; the labels are "
            f"{', '.join(labels)}. Call the labels of the texts what the classifier calls them",
            field=head.field,
        )
    return [numbers[label] for label in labels]


def reward_head(score: Tensor, threshold: float | None, pooled: Tensor, labels: Tensor) -> LinearHead:
    """Turn a reward `(1, d_model)` into a decision: above the threshold is the second label.

    Args:
        score: The head.
        threshold: None: the one that is most accurate on these texts, the lowest of several.
        pooled: `(n, d_model)` of the ambiguous set.
        labels: 0 or 1.
    """
    at = best_threshold(pooled @ score[0], labels) if threshold is None else threshold
    return two_sided(STOCK, score[0], -at)


def reward_doubt(score: Tensor, pooled: Tensor, y: Tensor, names: tuple[str, str]) -> tuple[str, ...]:
    """Say so where a reward `(1, d_model)` is no higher for the label that it is said to stand for.

    Args:
        score: The head.
        pooled: `(n, d_model)` of the ambiguous set.
        y: 0 or 1, both occurring; 1 is the positive label.
        names: Of the labels.
    """
    rewards = pooled @ score[0]
    negative, positive = (float(rewards[y == label].mean()) for label in (0, 1))
    if positive > negative:
        return ()
    return (
        f"the reward of {names[1]}, which a high one is said to stand for, is {positive:.3g} on average, "
        f"that of {names[0]} {negative:.3g}: the reward contradicts its positive label on the ambiguous set, "
        "and if that label is the wrong way round, so is every figure here",
    )


def best_threshold(values: Tensor, labels: Tensor) -> float:
    """Return the midpoint between neighbours at which `value > threshold` is most often the label."""
    ordered, order = values.double().sort(stable=True)
    y = labels[order].double()
    edges = torch.cat([ordered[:1] - 1, (ordered[1:] + ordered[:-1]) / 2, ordered[-1:] + 1])
    below = torch.cat([torch.zeros(1).double(), (1 - y).cumsum(0)])  # zeros that are right
    above = torch.cat([y.flip(0).cumsum(0).flip(0), torch.zeros(1).double()])  # ones that are right
    between = torch.cat([torch.ones(1), ordered.diff() != 0, torch.ones(1)])  # equal ones are not parted
    return float(edges[int(((below + above) * between).argmax())])
