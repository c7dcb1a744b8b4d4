"""Reading sites of many contexts layer by layer, upwards, so that little is held at once."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.sites import Site, SiteKind
from trephine.engine.admission.splice import Values, resumed, run_context, standing_aside
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.contexts import n_tokens


class UpwardStream:
    """The residual stream of every context, carried upwards: each block runs once however often it stops.

    Args:
        hosted: The model.
        contexts: Token ids.
        stage: How progress calls the work.
    """

    def __init__(
        self, hosted: HostedModel, contexts: Sequence[Sequence[int]], *, stage: str = "read"
    ) -> None:
        self._hosted, self._contexts, self._stage = hosted, contexts, stage
        self._layer, self._tokens = 0, n_tokens(contexts)
        self._streams: list[Tensor | None] = [None] * len(contexts)

    def advance(self, sites: Sequence[Site]) -> Generator[Progress | None, None, dict[Site, Tensor]]:
        """Read sites above those read before, over all contexts, `(tokens, width)`; one context a quantum."""
        wanted = tuple(dict.fromkeys(sites))
        stop = 1 + max(site.layer for site in wanted)
        last = Site(kind=SiteKind.RESID_POST, layer=stop - 1)
        gathered: dict[Site, Tensor] = {}
        start = 0
        for number, context in enumerate(self._contexts):
            values = self._run(number, context, (*wanted, last), stop)
            self._streams[number] = values[last]
            for site in wanted:
                if site not in gathered:
                    gathered[site] = values[site].new_empty(self._tokens, values[site].shape[1])
                gathered[site][start : start + len(context)] = values[site]
            start += len(context)
            yield Progress(stage=self._stage, done=number + 1, total=len(self._contexts))
        self._layer = stop
        return gathered

    def _run(self, number: int, context: Sequence[int], reads: Sequence[Site], stop: int) -> Values:
        stream, architecture = self._streams[number], self._hosted.architecture
        if stream is None:
            stream = _embedded(self._hosted, context)
        with resumed(architecture, self._layer, stream, stop=stop):
            return run_context(self._hosted, context, {}, reads=reads, keep_last=1)[1]


def _embedded(hosted: HostedModel, context: Sequence[int]) -> Tensor:
    """Return what the first block reads, `(n_pos, d_model)`; no block runs."""
    site = Site(kind=SiteKind.RESID_PRE, layer=0)
    with standing_aside(hosted.architecture.blocks):
        return run_context(hosted, context, {}, reads=[site], keep_last=1)[1][site]
