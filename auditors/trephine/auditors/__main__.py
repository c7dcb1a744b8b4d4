"""`python -m trephine.auditors --fd N`: the process in which auditors run, serving one socket."""

from __future__ import annotations

import argparse
import os
import resource
import select
import signal
import socket
import sys
import threading
import traceback

from trephine.auditors import registry
from trephine.domain.commands import Progress
from trephine.domain.errors import AuditorFailedError, InvalidRequestError, TrephineError
from trephine.domain.findings import AuditOutcome, AuditSpec
from trephine.ipc import codec
from trephine.ipc.auditor_host import AUDITOR_LIMITS, DESCRIBE_AUDITOR, LIST_AUDITORS, RUN_AUDITOR
from trephine.ipc.blocking import BlockingChannel
from trephine.ipc.frames import Frame, Tree
from trephine.ipc.subject import SubjectProxy

HANG_SECONDS = 2.0
"""How long this process may go on once the service is gone; then its whole group is killed."""


def main(arguments: list[str] | None = None) -> int:
    """Serve the socket that the parent passed down; return once it is closed."""
    parser = argparse.ArgumentParser(prog="python -m trephine.auditors")
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket")
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_end_when_left_behind, args=(options.fd,), daemon=True).start()
    channel = BlockingChannel(socket.socket(fileno=options.fd), limits=AUDITOR_LIMITS)
    while (request := channel.next_request()) is not None:
        _serve(channel, request)
    return 0


def _serve(channel: BlockingChannel, request: Frame) -> None:
    try:
        channel.reply(request.id, _answer(channel, request))
    except TrephineError as error:
        channel.fail(request.id, error)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        traceback.print_exc(file=sys.stderr)
        channel.fail(request.id, _failure(error))


def _failure(error: BaseException) -> AuditorFailedError:
    """Name what a plugin raised; its text may be of any kind and size."""
    try:
        text = str(error)[:500]
    except Exception as unprintable:
        text = f"(its text raised {type(unprintable).__name__})"
    return AuditorFailedError(f"the auditor raised {type(error).__name__}: {text}")


def _answer(channel: BlockingChannel, request: Frame) -> Tree:
    if request.command == LIST_AUDITORS:
        return [codec.to_tree(info) for info in registry.describe_all()]
    if request.command == DESCRIBE_AUDITOR:
        return codec.to_tree(registry.describe(str(request.body)))
    if request.command == RUN_AUDITOR:
        return _run(channel, request)
    raise InvalidRequestError(f"there is no command {request.command!r} here", field="command")


def _run(channel: BlockingChannel, request: Frame) -> Tree:
    spec = codec.from_tree(AuditSpec, request.body)
    auditor = registry.load(spec.auditor)
    outcome = auditor.run(SubjectProxy(channel), _Context(channel, request.id, spec))
    if not isinstance(outcome, AuditOutcome):
        raise AuditorFailedError(
            f"{spec.auditor} returned {type(outcome).__name__} where an AuditOutcome is due",
            auditor=spec.auditor,
        )
    return codec.to_tree(outcome)


class _Context:
    """The `AuditContext` of one run."""

    def __init__(self, channel: BlockingChannel, request: int, spec: AuditSpec) -> None:
        self._channel = channel
        self._request = request
        self._spec = spec

    @property
    def spec(self) -> AuditSpec:
        """The request."""
        return self._spec

    def progress(self, stage: str, done: int, total: int) -> None:
        """Report progress."""
        step = Progress(stage=stage, done=done, total=total)
        self._channel.emit(self._request, codec.to_tree(step))


def _end_when_left_behind(fd: int) -> None:
    """Kill this process group if the service is gone and a plugin does not notice in time."""
    poll = select.poll()
    poll.register(fd, 0)  # a hang-up is always reported
    poll.poll()
    threading.Event().wait(HANG_SECONDS)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
