"""Influences of an imported circuit's nodes, and what share of all influence enters through its errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trephine.app.circuits.circuit_queries import Wiring, influence_of
from trephine.domain.circuits import Circuit, NodeKind
from trephine.domain.errors import CorruptRecordError, InvalidRequestError

OF_LINKS = (
    " of what enters through the file's links enters through error nodes. What share of all influence that "
    "is the file does not say: what its graph left out is in no link."
)
"""What is said of errors' share where a file does not tell it, behind the number."""


def with_influence(circuit: Circuit, error_share: float | None) -> Circuit:
    """Give nodes the influence that follows from the file's links, which are all that such a file must hold.

    Over links alone errors have a larger share than of all influence: what the graph left out is in no link,
    and the remainders, where a file tells them, are net sums in which most of it cancels (of one graph 0.77
    with them, 0.83 without, where 0.29 is right). So a share of all influence is the file's own, or none.

    Args:
        circuit: As the file has it; the first of its caveats says that it was imported.
        error_share: Of all influence, as a file of ours tells it; None where the file does not.

    Raises:
        InvalidRequestError: If the links form a cycle.
    """
    try:
        influence = influence_of(Wiring(circuit))
    except CorruptRecordError as error:
        raise InvalidRequestError("the graph's links form a cycle", field="artifact") from error
    shares = iter([target.share for target in circuit.targets])
    nodes = tuple(
        replace(node, influence=next(shares) if node.kind is NodeKind.LOGIT else share)
        for node, share in zip(circuit.nodes, influence.tolist(), strict=True)
    )
    if error_share is not None:
        return replace(circuit, nodes=nodes, figures=replace(circuit.figures, error_share=error_share))
    errors = sum(node.influence for node in nodes if node.kind is NodeKind.ERROR)
    # Beside what else is said of an import, not among what the file says.
    said = (f"{errors:.1%}{OF_LINKS}",) if errors else ()
    return replace(circuit, nodes=nodes, caveats=(*circuit.caveats[:1], *said, *circuit.caveats[1:]))


def with_shares(circuit: Circuit, shares: Sequence[float]) -> Circuit:
    """Give every node of a global circuit its share of the edges' strength; errors are none of its nodes."""
    nodes = (replace(node, influence=share) for node, share in zip(circuit.nodes, shares, strict=True))
    return replace(circuit, nodes=tuple(nodes))
