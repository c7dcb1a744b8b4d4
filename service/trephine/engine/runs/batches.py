"""How many rows share a forward pass: bounded in tokens, so that a quantum stays short."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trephine.domain.errors import OverBudgetError
from trephine.engine.models.capabilities import MAX_ROWS


def batches(lengths: Sequence[int], *, max_tokens: int, max_rows: int) -> Iterator[range]:
    """Split rows, in order, into ranges whose padded size stays within bounds; a long row goes alone.

    Args:
        lengths: Tokens of every row.
        max_tokens: Rows times longest row of a batch.
        max_rows: Rows of a batch.
    """
    start, longest = 0, 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > start and ((row - start + 1) * longest > max_tokens or row - start == max_rows):
            yield range(start, row)
            start, longest = row, length
    if lengths:
        yield range(start, len(lengths))


def check_row_count(rows: int) -> None:
    """Refuse more rows than one command may have.

    Raises:
        OverBudgetError: If there are too many.
    """
    if rows > MAX_ROWS:
        raise OverBudgetError(
            f"{rows} rows are more than {MAX_ROWS}; send them in several calls", field="rows", limit=MAX_ROWS
        )
