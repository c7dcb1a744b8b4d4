"""IndexFeatures: stream a corpus through the model once and keep what each feature does on it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import psutil

from trephine.domain.commands import Progress
from trephine.domain.errors import BrokenCorpusError, InvalidRequestError
from trephine.domain.feature_index import DENSE_FIRING, bytes_per_feature
from trephine.domain.features import FeatureIndexInfo, IndexFeatures
from trephine.domain.replacements import ReplacementLayerInfo, SupportRule
from trephine.domain.sites import NEURONS
from trephine.engine.features.contexts import Block, Context, ContextRule, blocks
from trephine.engine.features.corpus import Place, check_corpus, corpus_path
from trephine.engine.features.file import IndexFile
from trephine.engine.features.reading import chosen_layers, encode_rows, first_tokens, read_inputs
from trephine.engine.features.tally import Firings, LayerTally
from trephine.engine.models.fingerprint import file_hash
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.sets import require_set
from trephine.engine.runs.batches import batches

_PASS_TOKENS = 512
_PASS_ROWS = 64
_BYTES_PER_TOKEN = 4
"""English text; for the total that progress shows."""
_CHECKED_BYTES_PER_TOKEN = 16
_MEMORY_SHARE = 0.25
"""Of the memory that is free, for counts. Layers that do not fit are counted in another pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    hosted: HostedModel
    command: IndexFeatures
    corpus: Path
    layers: tuple[ReplacementLayerInfo, ...]
    rule: ContextRule
    sha256: str


@dataclass(slots=True, kw_only=True)
class _Counted:
    """How far it is; stored in the transaction that stores the counts."""

    offset: int = 0
    line: int = 1
    documents: int = 0
    contexts: int = 0
    positions: int = 0
    tokens: int = 0
    first: int = 0
    """Layers in front of this one, by place in the list, are done."""
    beyond: int = 0
    """Those from this one on have not been begun; 0 in a file of before: all are counted at once."""

    @property
    def place(self) -> Place:
        return Place(offset=self.offset, line=self.line, document=self.documents)


def index_features(
    session: Session, command: IndexFeatures
) -> Generator[Progress | None, None, FeatureIndexInfo]:
    """Build an index, or go on with one; one forward pass or one layer of it per quantum.

    Raises:
        BrokenCorpusError: If the corpus is no text, or has no context of two tokens.
        ReplacementNotFoundError: If the set is not loaded.
        LayerOutOfRangeError: If it does not cover a layer.
        DiskFullError: If there is no room; what was committed is gone on with.
        CorruptRecordError: If the file at the path was begun for something else.
    """
    hosted = session.require_model().pinned()
    corpus = corpus_path(command.corpus)
    layers = chosen_layers(hosted, command.replacement, command.layers)
    if command.context_tokens > hosted.info.context_length:
        raise InvalidRequestError(
            f"{hosted.info.name} reads at most {hosted.info.context_length} tokens at a time",
            field="context_tokens",
        )
    rule = ContextRule(first=first_tokens(hosted, command.replacement), length=command.context_tokens)
    sha256 = yield from file_hash(corpus)
    job = _Job(hosted=hosted, command=command, corpus=corpus, layers=layers, rule=rule, sha256=sha256)
    with closing(IndexFile(Path(command.path))) as file:
        file.begin_request(_identity(job))
        done = file.fact("info")
        if done is None:
            yield from _count(job, file)
            done = file.fact("info")
        file.finish()
    return FeatureIndexInfo(**{**done, "layers": tuple(done["layers"])})


def _identity(job: _Job) -> dict[str, object]:
    """What an unfinished file must have been begun with to be gone on with."""
    command = job.command
    return {
        "content_hash": _content_hash(job.hosted, command.replacement),
        "corpus": job.sha256,
        "layers": [layer.layer for layer in job.layers],
        "d_sae": [layer.d_sae for layer in job.layers],
        "first": list(job.rule.first),
        **{
            name: getattr(command, name)
            for name in ("context_tokens", "max_tokens", "contexts_per_feature", "window", "commit_tokens")
        },
    }


def _content_hash(hosted: HostedModel, name: str) -> str:
    return hosted.info.weight_hash if name == NEURONS else require_set(hosted, name).info.content_hash


def _count(job: _Job, file: IndexFile) -> Generator[Progress | None, None, None]:
    """Stream what is left of the corpus into the file, once for as many layers as memory holds counts of."""
    command, size = job.command, job.corpus.stat().st_size
    counted = _Counted(**(file.fact("progress") or {}))
    if not counted.documents and not counted.first:
        for done in check_corpus(job.corpus, command.max_tokens * _CHECKED_BYTES_PER_TOKEN):
            yield Progress(stage="check the corpus", done=done, total=size)
    while True:
        if not counted.beyond:
            counted.beyond = len(job.layers) if counted.documents else _held(job, counted.first)
        yield from _stream(job, file, counted)
        if counted.beyond == len(job.layers):
            break
        counted = _Counted(first=counted.beyond)
    with file.transaction():
        file.set_fact("info", asdict(_info(job, file, counted)))
    yield Progress(stage="index", done=counted.tokens, total=counted.tokens)


def _held(job: _Job, first: int) -> int:
    """Return the number of the first layer, from one on, whose counts are not held with the others'."""
    size = bytes_per_feature(kept=job.command.contexts_per_feature, window=job.command.window)
    room = int(psutil.virtual_memory().available * _MEMORY_SHARE)
    beyond = first
    for layer in job.layers[first:]:
        room -= layer.d_sae * size
        if room < 0 and beyond > first:
            break
        beyond += 1
    return beyond


def _stream(job: _Job, file: IndexFile, counted: _Counted) -> Generator[Progress | None, None, None]:
    """Run what is left of the corpus and count some layers."""
    command, tallies = job.command, {}
    for layer in job.layers[counted.first : counted.beyond]:
        tallies[layer.layer] = LayerTally(
            layer.d_sae,
            kept=command.contexts_per_feature,
            window=command.window,
            arrays=file.arrays(layer.layer),
        )
        yield None
    for block in _blocks(job, counted):
        if counted.tokens >= command.max_tokens:
            break
        yield _progress(job, counted)
        block = _trimmed(block, command.max_tokens - counted.tokens)
        yield from _add_block(job, tallies, block, counted)
        yield from _commit(job, file, tallies, block, counted)
    if not counted.contexts:
        raise BrokenCorpusError("the corpus holds no document of two tokens or more; give a longer text")


def _progress(job: _Job, counted: _Counted, more: int = 0) -> Progress:
    """Say how far it is, in tokens; what was counted of some layers counts by their share."""
    size = job.corpus.stat().st_size
    total = min(job.command.max_tokens, max(1, size // _BYTES_PER_TOKEN))
    now = min(counted.tokens + more, total) * (counted.beyond - counted.first)
    done = (total * counted.first + now) // len(job.layers)
    return Progress(stage="index", done=done, total=total)


def _blocks(job: _Job, counted: _Counted) -> Iterator[Block]:
    return blocks(job.hosted, job.corpus, counted.place, job.rule, tokens=job.command.commit_tokens)


def _trimmed(block: Block, room: int) -> Block:
    """Leave out contexts that begin beyond the last token asked for; nothing comes after such a block."""
    before = accumulate((len(context.ids) for context in block.contexts), initial=0)
    kept = tuple(context for context, start in zip(block.contexts, before, strict=False) if start < room)
    return replace(block, contexts=kept)


def _add_block(
    job: _Job, tallies: dict[int, LayerTally], block: Block, counted: _Counted
) -> Generator[Progress | None, None, None]:
    """Run a block's contexts in passes of bounded size, and count them."""
    # By length, so that little is padded; the order depends on the block alone.
    order = sorted(range(len(block.contexts)), key=lambda place: -len(block.contexts[place].ids))
    lengths = [len(block.contexts[place].ids) for place in order]
    done, layers = 0, job.layers[counted.first : counted.beyond]
    for part in batches(lengths, max_tokens=_PASS_TOKENS, max_rows=_PASS_ROWS):
        places = [order[row] for row in part]
        inputs = read_inputs(job.hosted, layers, [block.contexts[place].ids for place in places])
        yield None
        for layer in layers:
            for code in encode_rows(job.hosted, job.command.replacement, inputs, layer):
                place = places[code.row]
                rows, columns = code.firing.cpu().numpy().nonzero()
                values = code.activations.cpu().numpy()[rows, columns].astype(np.float64)
                tallies[layer.layer].add(
                    counted.contexts + place,
                    np.asarray(block.contexts[place].ids, np.int64),
                    Firings(positions=rows, features=columns, values=values),
                )
            yield None
        done += sum(lengths[row] for row in part)
        yield _progress(job, counted, done)


def _commit(
    job: _Job, file: IndexFile, tallies: dict[int, LayerTally], block: Block, counted: _Counted
) -> Generator[None, None, None]:
    """Store the counts with the place up to which they go, in one transaction."""
    first = counted.contexts
    _advance(counted, block)
    with file.transaction():
        for layer, tally in tallies.items():
            tally.settle()
            file.write_arrays(layer, tally.arrays)
            yield
        if not counted.first:  # later layers count the same contexts
            file.write_contexts(_rows(first, block.contexts))
            seen = sorted(set(chain.from_iterable(context.ids for context in block.contexts)))
            file.write_tokens(job.hosted.tokens(seen))
        file.set_fact("progress", asdict(counted))
    yield


def _advance(counted: _Counted, block: Block) -> None:
    lengths = [len(context.ids) for context in block.contexts]
    counted.offset, counted.line = block.following.offset, block.following.line
    counted.documents = block.following.document
    counted.contexts += len(lengths)
    counted.tokens += sum(lengths)
    counted.positions += sum(lengths) - len(lengths)


def _rows(first: int, contexts: Sequence[Context]) -> Iterator[tuple[int, int, bytes]]:
    for number, context in enumerate(contexts, first):
        yield number, context.document, np.asarray(context.ids, "<i4").tobytes()


def _info(job: _Job, file: IndexFile, counted: _Counted) -> FeatureIndexInfo:
    hosted, command = job.hosted, job.command
    neurons = command.replacement == NEURONS
    first = job.rule.first
    return FeatureIndexInfo(
        replacement=command.replacement,
        content_hash=_content_hash(hosted, command.replacement),
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
        corpus=command.corpus_name,
        corpus_sha256=job.sha256,
        tokens=counted.positions,
        contexts=counted.contexts,
        documents=counted.documents,
        layers=tuple(layer.layer for layer in job.layers),
        features=sum(layer.d_sae for layer in job.layers),
        fired=sum(_fired(file, layer) for layer in job.layers),
        degraded=not neurons and require_set(hosted, command.replacement).info.degraded,
        begins_with=hosted.token(first[0]).display if first else "",
        rule=_rule(job.layers),
    )


def _fired(file: IndexFile, layer: ReplacementLayerInfo) -> int:
    """Count the features of a layer that fired at all."""
    counts = np.frombuffer((file.arrays(layer.layer) or {}).get("counts", b""), "<i8")
    return int((counts > 0).sum())


def _rule(layers: Sequence[ReplacementLayerInfo]) -> str:
    dense = {layer.support is SupportRule.DENSE for layer in layers}
    if dense == {True}:
        return f"among the {DENSE_FIRING} of its layer that contribute most at a position"
    support = "in the support that its kind defines"
    return (
        support if dense == {False} else f"{support}; of dense layers the {DENSE_FIRING} that contribute most"
    )


HANDLERS: dict[type, Handler] = {IndexFeatures: index_features}
"""Commands of this module."""
