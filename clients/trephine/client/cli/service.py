"""Commands that need the service's own code run it as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from trephine.client.cli.arguments import path_option
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.server_process import default_state, require_service


def run_service(*arguments: str, quiet: bool = False) -> int:
    """Run a command of the service and return its exit status; `quiet` leaves its results out."""
    require_service()
    command = [sys.executable, "-m", "trephine.server", *arguments]
    return subprocess.run(command, check=False, stdout=subprocess.DEVNULL if quiet else None).returncode


def make_folder(output: Output, *arguments: str) -> int:
    """Run a command of the service that makes a folder and prints its path; return its exit status."""
    if not output.json:
        return run_service(*arguments)
    require_service()
    command = [sys.executable, "-m", "trephine.server", *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE)
    if done.returncode == 0:
        output.document(json.dumps({"folder": os.fsdecode(done.stdout).strip()}))
    return done.returncode


def become_service(*arguments: str) -> NoReturn:
    """Turn this process into the service, so that signals reach it as they should."""
    require_service()
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "trephine.server", *arguments])  # noqa: S606


SERVE_EXAMPLES = examples(
    "trephine serve",
    "trephine serve --listen 127.0.0.1:7400 --token-file token --model-root ~/models",
    "trephine serve --config server.toml",
)


def serve(
    context: typer.Context,
    listen: Annotated[
        str | None, typer.Option(help="HOST:PORT beside the Unix socket: loopback, or any with TLS.")
    ] = None,
    token_file: Annotated[
        Path | None,
        path_option(
            "--token-file", "0600 file with the bearer token of --listen; unset: STATE/token, made if absent."
        ),
    ] = None,
    model_root: Annotated[
        list[Path] | None, path_option("--model-root", "Folder whose models may be loaded. May be repeated.")
    ] = None,
    replacement_root: Annotated[
        list[Path] | None,
        path_option("--replacement-root", "Folder whose replacement sets may be loaded. May be repeated."),
    ] = None,
    export_root: Annotated[
        Path | None, path_option("--export-root", "Folder that exports are published into.")
    ] = None,
    signing_key: Annotated[
        Path | None,
        path_option(
            "--signing-key",
            "PEM private key (P-256) that signs exports; unset: STATE/signing.pem, made if absent.",
        ),
    ] = None,
    sigstore_token_file: Annotated[
        Path | None,
        path_option(
            "--sigstore-token-file",
            "Identity token for exports that are signed with Sigstore; unset: what CI offers.",
        ),
    ] = None,
    sigstore_trust_config: Annotated[
        Path | None,
        path_option("--sigstore-trust-config", "JSON file of another Sigstore than the public one."),
    ] = None,
    tls_cert: Annotated[Path | None, path_option("--tls-cert", "PEM certificate chain of --listen.")] = None,
    tls_key: Annotated[Path | None, path_option("--tls-key", "PEM private key of that certificate.")] = None,
    insecure_listen: Annotated[
        bool, typer.Option("--insecure-listen", help="Allow an address beyond loopback without TLS.")
    ] = False,
    config: Annotated[
        Path | None,
        path_option(
            "--config", "TOML file of settings: these and more, such as engine_threads and log_level."
        ),
    ] = None,
) -> None:
    """Run a server until it is stopped. Commands of the same state folder then share it.

    A setting is what its flag says, else its variable (TREPHINE_ENGINE_THREADS), else its line in --config;
    `python -m trephine.server serve --help` lists all of them.
    """
    state = invocation(context).state or default_state()
    arguments = ["serve", "--state", str(state.absolute())]
    arguments += ["--listen", listen] if listen else []
    files = {
        "--config": config,
        "--token-file": token_file,
        "--tls-cert": tls_cert,
        "--tls-key": tls_key,
        "--signing-key": signing_key,
        "--sigstore-token-file": sigstore_token_file,
        "--sigstore-trust-config": sigstore_trust_config,
    }
    for flag, file in files.items():
        arguments += [flag, str(file.absolute())] if file else []
    arguments += ["--insecure-listen"] if insecure_listen else []
    for root in model_root or ():
        arguments += ["--model-root", str(root.expanduser().absolute())]
    for root in replacement_root or ():
        arguments += ["--replacement-root", str(root.expanduser().absolute())]
    arguments += ["--export-root", str(export_root.absolute())] if export_root else []
    become_service(*arguments)


def doctor(context: typer.Context) -> None:
    """Check this machine: dependencies, memory, disk, the cached model."""
    given = invocation(context)
    arguments = ["doctor", "--state", str((given.state or default_state()).absolute())]
    arguments += ["--json"] if given.output.json else []
    raise typer.Exit(run_service(*arguments))
