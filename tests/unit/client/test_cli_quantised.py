"""GGUF files of an export on the terminal."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.client.test_cli_removal import certificate
from trephine.client.cli.output import Output
from trephine.client.cli.quantised import show_quantised
from trephine.client.types import GgufType, QuantisedCopy


def test_every_file_with_what_is_left_of_the_edit(capsys):
    """A share that was not measured is a dash, and none of no effect; without files nothing is printed."""
    copy = QuantisedCopy(
        kind=GgufType.Q4_0, file="gguf/q4_0.gguf", size=2 << 20, kl=1e-3, edit_kl=1e-2, recovery=0.9,
        kl_firing=None, edit_kl_firing=None, recovery_firing=None, quantisation_kl=0.05,
        perplexity_ratio=1.001, top1_agreement=1.0,
    )  # fmt: skip
    show_quantised(Output(json=False), replace(certificate(None), quantised=(copy,)))
    row = capsys.readouterr().out.splitlines()[-1].split("\t")
    assert row == ["gguf/q4_0.gguf", "2", "1.00e-02", "1.00e-03", "0.9000", "-", "1.0010", "5.00e-02"]
    still = replace(copy, kl_firing=0.0, edit_kl_firing=0.0)
    show_quantised(Output(json=False), replace(certificate(None), quantised=(still,)))
    assert capsys.readouterr().out.splitlines()[-1].split("\t")[4:6] == ["0.9000", "no effect"]
    show_quantised(Output(json=False), certificate(None))
    assert capsys.readouterr().out == ""
