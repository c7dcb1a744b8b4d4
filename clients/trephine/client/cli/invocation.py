"""What every command is given: the global options, a connection, and how long work is waited for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import typer

from trephine.client.cli.exit_codes import INTERRUPTED
from trephine.client.cli.output import Output
from trephine.client.cli.progress import ProgressView
from trephine.client.connection import connect
from trephine.client.errors import CancelledByCallerError, LocalFileError
from trephine.client.model import Model
from trephine.client.operations import Operation
from trephine.client.trephine import Trephine

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """The options before the command."""

    server: str | None
    token_file: Path | None
    root_certificates: Path | None
    state: Path | None
    output: Output
    certificate_name: str | None = None
    insecure_connect: bool = False

    def connect(self) -> Trephine:
        """Open a connection as the options say."""
        return connect(
            self.server,
            token=self._token(),
            state=self.state,
            root_certificates=self.root_certificates,
            certificate_name=self.certificate_name,
            insecure_connect=self.insecure_connect,
        )

    def load(self, trephine: Trephine, model: str) -> Model:
        """The model as it is served, loaded if it is not yet; progress on stderr, Ctrl-C cancels."""
        ready = trephine.loaded_model(model, as_it_is=True)
        if ready is not None:
            if ready.info.dtype != "float32":  # what figures are in, where nobody asked for it just now
                self.output.note(f"{ready.info.name} is loaded in {ready.info.dtype}")
            return ready
        started = trephine.start_load(model)
        return self.complete(trephine, started, f"load {model}")

    def complete(
        self, trephine: Trephine, operation: Operation[ResultT], what: str, *, detach: bool = False
    ) -> ResultT:
        """Wait for an operation. Ctrl-C cancels it, a second one leaves at once.

        Raises:
            typer.Exit: With `detach`, after its name was printed; after Ctrl-C.
        """
        if detach:
            self.leave(trephine, (operation,))
        try:
            with ProgressView(self.output, what) as view:
                return operation.result(on_progress=view.show, on_partial=view.partial)
        except KeyboardInterrupt:
            self._cancel(operation)
            raise typer.Exit(INTERRUPTED) from None

    def leave(self, trephine: Trephine, operations: Iterable[Operation[Any]]) -> NoReturn:
        """Print each operation's name, as soon as it is started, and end the command; the work goes on.

        Raises:
            typer.Exit: Always.
        """
        trephine.detach()
        for operation in operations:
            self.output.document(operation.to_json() if self.output.json else operation.name)
        raise typer.Exit(0)

    def _cancel(self, operation: Operation[ResultT]) -> None:
        self.output.note(f"cancelling {operation.name}; press Ctrl-C again to leave at once")
        try:
            operation.cancel()
            operation.result()
        except CancelledByCallerError:
            self.output.note(f"cancelled {operation.name}")
        except KeyboardInterrupt:
            self.output.note(f"left {operation.name}; it was asked to stop")

    def _token(self) -> str | None:
        if self.token_file is None:
            return None
        try:
            return self.token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as failure:
            raise LocalFileError(f"cannot read the token file {self.token_file}: {failure}") from failure


def invocation(context: typer.Context) -> Invocation:
    """The global options of a command's context."""
    found = context.obj
    if not isinstance(found, Invocation):
        raise TypeError("the command was called without the main program")
    return found
