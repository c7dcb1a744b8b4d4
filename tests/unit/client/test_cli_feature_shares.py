"""Several edited features stand on the terminal one by one."""

from __future__ import annotations

import pytest

from trephine.client.cli.certificate_text import show_main_figures
from trephine.client.cli.output import Output
from trephine.client.decoding import decode
from trephine.client.types import Certificate
from trephine.v1 import edit_service_pb2 as pb

FIGURES = {
    "firing_tokens:a:0:3": 40.0,
    "edit_kl_firing_mean:a:0:3": 0.02,
    "kl_intervened_exported_firing_mean:a:0:3": 0.001,
    "recovery_firing:a:0:3": 0.95,
    "carried:a:0:3": 0.01,
    "firing_tokens:b:12:700": 0.0,
    "recovery": 0.99,
}


def test_each_feature_has_a_row_and_what_was_not_measured_is_no_zero(capsys: pytest.CaptureFixture[str]):
    """One that is not carried though most of the edit on its tokens is; one that never fires."""
    measured = [pb.Measurement(name=name, value=value) for name, value in FIGURES.items()]
    show_main_figures(Output(json=False), decode(Certificate, pb.Certificate(measurements=measured)))
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("FEATURE\tTOKENS\tEDIT\tLEFT\tRECOVERED\tCARRIED")
    assert lines[start + 1 :] == [
        "a:0:3\t40\t2.00e-02\t1.00e-03\t0.9500\t0.0100",
        "b:12:700\t0\tnot measured\tnot measured\tnot measured\tnot measured",
    ]
    as_stored = {"kl_intervened_exported_in_stored_dtype": 0.004, "noise_floor_dtype": 0.002}
    measured += [pb.Measurement(name=f"{k}_firing_mean:a:0:3", value=v) for k, v in as_stored.items()]
    show_main_figures(Output(json=False), decode(Certificate, pb.Certificate(measurements=measured)))
    assert "a:0:3\t40\t2.00e-02\t1.00e-03\t0.9500\t0.0100\t4.00e-03\t2.00e-03" in capsys.readouterr().out
    show_main_figures(Output(json=False), decode(Certificate, pb.Certificate(measurements=measured[6:7])))
    assert "FEATURE" not in capsys.readouterr().out
