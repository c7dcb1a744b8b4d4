"""What `trephine circuits verify` prints."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.unit.rpc.test_wire_verification import stored
from trephine.client.cli.circuit_verification import show_verification
from trephine.client.cli.output import Output
from trephine.client.decoding import decode
from trephine.client.types import CircuitVerification
from trephine.rpc.wire.circuit_verification import verification_to_wire


def found(*, control: bool = True) -> CircuitVerification:
    """A finished verification, as the client sees it."""
    return decode(CircuitVerification, verification_to_wire(stored(control=control)))


def test_tables_hold_every_figure_and_say_how(capsys):
    """Circuit and control in the same tables; verdicts in words; each figure's ablation below."""
    show_verification(Output(json=False), found())
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert sum(line.startswith("single nodes\t") for line in lines) == 2
    assert "paths of the graph\tthe circuit\tpermuted edges\t0.100 (-0.900 to 1.100)\tINCONCLUSIVE" in lines
    assert (
        "mean\tthe circuit\t+7.000\t-1.000\t+2.000\t-0.500, p 0.048\t+3.000 (50%)\t+6.500, p 0.095" in lines
    )
    assert "the circuit\t+7.000\t+2.000\t-20.000\t-21.000\t-3.000\t50 of 900" in lines
    assert "31 features at positions >= 1 of 256 in the graph, over tc" in printed
    assert any(line.startswith("how: single nodes by paths of the graph") for line in lines)
    assert any("mind the sink" in line for line in lines)


def test_where_necessity_counts_from_is_beside_the_model(capsys):
    """Where errors are dropped that is another number; the same but for rounding is not printed."""
    whole = found(control=False)
    [one] = whole.given.faithfulness
    for still, shown in ((3.25, "+7.000 (+3.250 without errors)"), (7.0004, "+7.000"), (None, "+7.000")):
        given = replace(whole.given, faithfulness=(replace(one, unablated=still),))
        show_verification(Output(json=False), replace(whole, given=given))
        assert f"mean\tthe circuit\t{shown}\t-1.000" in capsys.readouterr().out


def test_json_is_the_message(capsys):
    """For programs, everything."""
    show_verification(Output(json=True), found(control=False))
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == "circuitVerifications/v1"
    assert document["given"]["worstCase"]["rounded"] == -21.0
    assert "control" not in document
