"""`python -m trephine.server serve|fetch|import-release|doctor|health`: what needs the service's own code."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from trephine.domain.errors import ErrorKind, TrephineError
from trephine.server.places import default_cache, default_state

PASS, INTERNAL, USAGE = 0, 1, 2
_USAGE_KINDS = {ErrorKind.INVALID, ErrorKind.NOT_FOUND, ErrorKind.UNSUPPORTED}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit code: 0 pass, 1 failure, 2 usage."""
    options = _parser().parse_args(arguments)
    commands = {
        "serve": _serve,
        "fetch": _fetch,
        "import-release": _import_release,
        "doctor": _doctor,
        "health": _health,
    }
    try:
        return commands[options.command](options)
    except TrephineError as error:
        sys.stderr.write(f"{error.reason}: {error.message}\n")
        return USAGE if error.kind in _USAGE_KINDS else INTERNAL
    except KeyboardInterrupt:
        return INTERNAL


def _serve(options: argparse.Namespace) -> int:
    # Imported here, so that `fetch` and `doctor` need neither gRPC nor the job store.
    from trephine.server.logs import configure_logs
    from trephine.server.serving import serve
    from trephine.server.settings import load_settings

    flags = {name: value for name, value in vars(options).items() if value not in (None, False)}
    settings = load_settings(
        {name: value for name, value in flags.items() if name not in ("command", "config")}, options.config
    )
    configure_logs(settings.log_level, content=settings.log_content)
    try:
        asyncio.run(serve(settings))
    except TrephineError:
        raise
    except Exception:
        structlog.get_logger("trephine.server").exception("the server failed")
        return INTERNAL
    return PASS


def _fetch(options: argparse.Namespace) -> int:
    from trephine.server.fetch import fetch

    def report(line: str) -> None:
        sys.stderr.write(f"{options.name}: {line}\n")
        sys.stderr.flush()

    folder = fetch(options.name, options.cache or default_cache(), options.dtype, report)
    sys.stdout.write(f"{folder}\n")
    return PASS


def _import_release(options: argparse.Namespace) -> int:
    from trephine.server.importing import import_release

    def report(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    folder = import_release(options.release, options.sae_id, options.folder, report)
    sys.stdout.write(f"{folder}\n")
    return PASS


def _doctor(options: argparse.Namespace) -> int:
    from trephine.server.doctor import examine, render

    facts = examine(options.state)
    sys.stdout.write((json.dumps(facts, indent=2) if options.json else render(facts)) + "\n")
    return PASS if facts["extras"]["service"] == "present" else INTERNAL


def _health(options: argparse.Namespace) -> int:
    from trephine.server.probe import is_serving

    if is_serving(options.state or default_state()):
        sys.stdout.write("serving\n")
        return PASS
    sys.stderr.write("not serving\n")
    return INTERNAL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trephine.server", description=__doc__)
    commands: Any = parser.add_subparsers(dest="command", required=True)
    _add_serve(commands.add_parser("serve", help="serve until a signal"))
    fetch = commands.add_parser("fetch", help="fetch a model into the cache; prints its folder")
    fetch.add_argument("name", help="smollm2 or smollm2-bf16")
    fetch.add_argument("--dtype", choices=["float32", "bfloat16"])
    fetch.add_argument("--cache", type=Path, help="cache folder; default: $TREPHINE_CACHE or the user's own")
    release = commands.add_parser(
        "import-release", help="save one dictionary of a SAELens release into a folder; prints it"
    )
    release.add_argument("release", help="as SAELens' list names it, or a hub repository")
    release.add_argument("sae_id", help="within the release")
    release.add_argument("folder", type=Path, help="new folder; sets are folders of such folders")
    doctor = commands.add_parser("doctor", help="versions, folders, room, extras")
    doctor.add_argument("--json", action="store_true")
    doctor.add_argument("--state", type=_path, help="state folder; unset: $TREPHINE_STATE or the user's own")
    health = commands.add_parser("health", help="0 if the state folder's server is serving")
    health.add_argument("--state", type=_path)
    return parser


def _path(text: str) -> Path:
    """Refuse an empty path, which Python takes for the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty and names no file or folder; write . for the current one")
    return Path(text)


def _add_serve(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--config", type=Path, help="TOML file of settings; flags and TREPHINE_* win")
    for flag, text in _PATHS.items():
        serve.add_argument(flag, type=_path, help=text)
    serve.add_argument("--listen", help="HOST:PORT beside the Unix socket; calls need the token")
    serve.add_argument("--model-root", dest="model_roots", type=Path, action="append", help="repeatable")
    serve.add_argument(
        "--replacement-root", dest="replacement_roots", type=Path, action="append", help="repeatable"
    )
    serve.add_argument("--insecure-listen", action="store_true", help="allow a public address without TLS")
    serve.add_argument("--ephemeral", action="store_true", help="end with the last client's lease")
    serve.add_argument("--grace-seconds", type=float)
    serve.add_argument("--engine-threads", type=int)
    serve.add_argument(
        "--memory-budget-bytes",
        type=int,
        help="that loading one model may take and, apart, one call beyond its model, whatever else runs; "
        "default: what is free for a model, no bound for calls",
    )
    serve.add_argument("--database-url", help="job store; default: SQLite in the state folder")
    serve.add_argument("--artifacts-url", help="artifact store as fsspec names it")
    serve.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    serve.add_argument("--log-content", action="store_true", help="log messages that may quote prompts")


_PATHS = {
    "--state": "state folder; one server owns it",
    "--cache": "cache folder; its sub folders models and replacements are roots",
    "--export-root": "where exports are published",
    "--token-file": "bearer token for --listen, mode 0600; default: STATE/token, made if absent",
    "--tls-cert": "PEM certificate chain",
    "--tls-key": "PEM private key",
    "--signing-key": "PEM private key (P-256) that signs exports",
    "--sigstore-token-file": "identity token for exports signed with Sigstore; default: what CI offers",
    "--sigstore-trust-config": "JSON file of another Sigstore than the public one",
}

if __name__ == "__main__":
    sys.exit(main())
