"""The command line: `trephine`."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Annotated

import typer

from trephine.client.cli import (
    circuits,
    dataset_circuits,
    edits,
    exports,
    features,
    models,
    operations,
    replacements,
)
from trephine.client.cli.ablate import ABLATE_EXAMPLES, ablate
from trephine.client.cli.arguments import path_option
from trephine.client.cli.audit import AUDIT_EXAMPLES, audit
from trephine.client.cli.circuit_views import TRACE_EXAMPLES, trace_attention
from trephine.client.cli.deltas import APPLY_DELTA_EXAMPLES, MAKE_DELTA_EXAMPLES
from trephine.client.cli.deltas import apply as apply_delta
from trephine.client.cli.deltas import make as make_delta
from trephine.client.cli.demonstrate import DEMO_EXAMPLES, demo
from trephine.client.cli.discover import DISCOVER_EXAMPLES, discover
from trephine.client.cli.discover_dataset import DISCOVER_DATASET_EXAMPLES, discover_dataset
from trephine.client.cli.discover_global import DISCOVER_GLOBAL_EXAMPLES, discover_global
from trephine.client.cli.exit_codes import INTERRUPTED, ExitCode, exit_code_of
from trephine.client.cli.export import EXPORT_EXAMPLES, VERIFY_EXAMPLES, export, verify
from trephine.client.cli.export_classifier import EXPORT_CLASSIFIER_EXAMPLES, export_classifier
from trephine.client.cli.generate import GENERATE_EXAMPLES, generate
from trephine.client.cli.invocation import Invocation
from trephine.client.cli.output import Output
from trephine.client.cli.remove_spurious import REMOVE_SPURIOUS_EXAMPLES, remove_spurious
from trephine.client.cli.service import SERVE_EXAMPLES, doctor, serve
from trephine.client.cli.suggestions import SuggestingGroup
from trephine.client.errors import (
    AdmissionFailedError,
    DiskFullError,
    ExportTargetExistsError,
    FeatureIndexNotFoundError,
    HandshakeFailedError,
    ModelNotFoundError,
    ReplacementNotFoundError,
    ServerUnreachableError,
    SigningIdentityError,
    SigstoreUnreachableError,
    TrephineError,
    UnauthenticatedError,
)
from trephine.client.evidence import EvidenceWarning
from trephine.client.local_disk import is_full
from trephine.client.terminal import printable, printable_lines

app = typer.Typer(
    name="trephine",
    cls=SuggestingGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group, name in (
    (models, "models"),
    (replacements, "replacements"),
    (features, "features"),
    (circuits, "circuits"),
    (dataset_circuits, "dataset-circuits"),
    (edits, "edits"),
    (exports, "exports"),
    (operations, "operations"),
):
    app.add_typer(group.app, name=name)
for command, epilog in (
    (discover, DISCOVER_EXAMPLES),
    (discover_dataset, DISCOVER_DATASET_EXAMPLES),
    (discover_global, DISCOVER_GLOBAL_EXAMPLES),
    (trace_attention, TRACE_EXAMPLES),
    (ablate, ABLATE_EXAMPLES),
    (generate, GENERATE_EXAMPLES),
    (remove_spurious, REMOVE_SPURIOUS_EXAMPLES),
    (export, EXPORT_EXAMPLES),
    (export_classifier, EXPORT_CLASSIFIER_EXAMPLES),
    (verify, VERIFY_EXAMPLES),
    (audit, AUDIT_EXAMPLES),
    (demo, DEMO_EXAMPLES),
    (serve, SERVE_EXAMPLES),
    (doctor, None),
):
    app.command(epilog=epilog)(command)
app.command("make-delta", epilog=MAKE_DELTA_EXAMPLES)(make_delta)
app.command("apply-delta", epilog=APPLY_DELTA_EXAMPLES)(apply_delta)


def _version(wanted: bool) -> None:
    if wanted:
        Output(json=False).document(distribution_version("trephine"))
        raise typer.Exit(0)


_EPILOG = "\n".join(
    (
        "\b",
        "Exit status of every command:",
        "  0  it worked             3  findings at or above --fail-on, or not verified",
        "  1  something broke       4  inconclusive, or nothing could ship",
        "  2  wrong use or input    5  the baseline is invalid",
        "",
        "\b",
        "Start here:",
        "  trephine demo --out out/demo",
    )
)


@app.callback(epilog=_EPILOG)
def options(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(envvar="TREPHINE_SERVER", help="HOST:PORT of a running server. Unset: a local one."),
    ] = None,
    token_file: Annotated[
        Path | None,
        path_option("--token-file", "File with that server's bearer token.", envvar="TREPHINE_TOKEN_FILE"),
    ] = None,
    root_certificates: Annotated[
        Path | None,
        path_option("--root-certificates", "PEM file of the authorities to trust; unset: the system's."),
    ] = None,
    certificate_name: Annotated[
        str | None,
        typer.Option(
            help="Name that the server's certificate is for, where HOST is another: a tunnel's end, say. "
            "This and --root-certificates mean TLS on loopback, too.",
        ),
    ] = None,
    insecure_connect: Annotated[
        bool,
        typer.Option(
            "--insecure-connect",
            help="Go without TLS to a server beyond this machine that runs with --insecure-listen: token and "
            "prompts can be read on the way.",
        ),
    ] = False,
    state: Annotated[
        Path | None,
        path_option("--state", "State folder of a local server; unset: your own.", envvar="TREPHINE_STATE"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print responses as proto-JSON.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Open a language model, find the circuit, cut it out, prove that it is gone, ship the weights.

    Commands share the server of your state folder, or start one that ends with the last command using
    it. Results go to stdout, progress to stderr. Ctrl-C cancels what runs; a second one leaves at once.
    """
    context.obj = Invocation(
        server=server,
        token_file=token_file,
        root_certificates=root_certificates,
        state=None if server else state,
        output=Output(json=json),
        certificate_name=certificate_name,
        insecure_connect=insecure_connect,
    )


def main() -> None:
    """Run the command line and end with its exit status."""
    warnings.simplefilter("ignore", EvidenceWarning)  # shown with the edit, in the words of a terminal
    try:
        app()
    except TrephineError as failure:
        _complain(failure)
        sys.exit(exit_code_of(failure))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output left, as `head` does; nobody is there to be told.
        sys.stderr.close()
        sys.exit(ExitCode.INTERNAL)
    except OSError as failure:
        if not is_full(failure) or failure.filename is not None:
            raise
        # Commands tell of their files themselves; what has no name is the output itself.
        _complain(DiskFullError(f"cannot write the output: {failure.strerror}; make room and try again"))
        _drop_output()
        sys.exit(ExitCode.INTERNAL)


def _drop_output() -> None:
    """Send what is still to be written nowhere: the interpreter's last flush would fail a second time."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_HINTS = {
    AdmissionFailedError.reason: "--accept-degraded loads it all the same, and every result says so",
    ExportTargetExistsError.reason: "another --out gives another folder here, and another name on the server",
    FeatureIndexNotFoundError.reason: "see `trephine features indexes`; `trephine features index` builds one",
    HandshakeFailedError.reason: "see --root-certificates, --certificate-name and --insecure-connect in "
    "`trephine --help`",
    ModelNotFoundError.reason: "see `trephine models list`; `trephine models fetch smollm2` gets a small one",
    ReplacementNotFoundError.reason: "see `trephine replacements list`; `... load SET` loads one",
    SigningIdentityError.reason: "--identity-token-file FILE gives a token; without --sigstore a key signs",
    SigstoreUnreachableError.reason: "without --sigstore the server's key signs, and needs no network",
    UnauthenticatedError.reason: "give the server's token with --token-file FILE",
    ServerUnreachableError.reason: "is it running there? Without --server a local one is started",
}
"""What to type next, for errors whose message cannot know the command line."""


def _complain(failure: TrephineError) -> None:
    output = Output(json=False)
    where = f" (field {printable(failure.field)})" if failure.field else ""
    output.note(f"error: {printable_lines(failure.message)}{where} [{failure.reason}]")
    hint = _HINTS.get(failure.reason)
    if hint is not None:
        output.note(hint)
