"""How many adjoints go down the frozen network together: what the engine does, and what is predicted from.

The sizes bound the memory of a sweep and the time of a quantum.
"""

from __future__ import annotations

TARGETS_PER_ROUND = 64
"""Features expanded per round at first (R in DESIGN 5.5).

Later rounds are half of what is expanded by then: the order of the rest has settled, and the batch is worth
more than the ranking (scores of graphs move by less than 0.001; doubling every time costs 0.02).
"""

SCORES_PER_SWEEP = 3 << 25
"""Contributions held dense during a sweep: targets times what is scored; 384 MiB in float32."""

WHOLE_EDGES, WHOLE_EDGES_ON_GPU = 5 << 25, 1 << 30
"""Edges that a growing graph may store: 1.25 GiB, on a GPU 8. Where they fit, all but negligible ones are."""

STORED_EDGES = 1 << 27
"""Of these, what is shared out equally between rows, 1 GiB; where a row has more, its smallest may go."""

LENDING_PAIRS = 1 << 30
"""Rows times active features up to which a row may store more than its share."""

TABLED_BYTES = 3 << 30
"""Tables of a prompt on a GPU are not made larger: a long prompt has work enough."""

_NEURON_ROWS = 1 << 11
_SHORT_ROWS, _LONG_ROWS, _TABLED_ROWS = 1 << 13, 1 << 16, 1 << 15


def neuron_targets_per_sweep(n_pos: int) -> int:
    """Targets per sweep where neurons are met: scores of a layer are dense, so that rows are few."""
    return max(1, _NEURON_ROWS // n_pos)


def feature_targets_per_sweep(n_pos: int, *, tabled: bool = False) -> int:
    """Targets per sweep where a set's features are met.

    A long prompt takes a round's targets together all the same: with a handful of targets per position, time
    would go into walking its positions once per sweep, faster than linearly in tokens. Over tables, on a GPU,
    a sweep costs its calls, so that there are few of them.
    """
    if tabled:
        return max(1, _TABLED_ROWS // n_pos)
    return max(1, _SHORT_ROWS // n_pos, min(TARGETS_PER_ROUND, _LONG_ROWS // n_pos))
