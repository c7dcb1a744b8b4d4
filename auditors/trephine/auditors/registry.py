"""Which auditors are installed. One that cannot be loaded is an error that names it, never left out."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from trephine.domain.errors import AuditorFailedError, AuditorNotFoundError
from trephine.domain.findings import AuditorInfo
from trephine.domain.ports import Auditor

GROUP = "trephine.auditors"


def installed() -> dict[str, EntryPoint]:
    """Entry points of auditors by name, sorted; nothing is imported.

    Raises:
        AuditorFailedError: If two distributions claim the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        known = found.setdefault(point.name, point)
        if known.value != point.value:
            raise AuditorFailedError(
                f"two auditors are called {point.name!r}: {_origin(known)} and {_origin(point)}; "
                "uninstall one of them",
                auditor=point.name,
            )
    return found


def load(name: str) -> Auditor:
    """Import and make one auditor.

    Raises:
        AuditorNotFoundError: If none has that name.
        AuditorFailedError: If it cannot be imported or made, or is no auditor.
    """
    points = installed()
    if name not in points:
        raise AuditorNotFoundError(
            f"no auditor is called {name!r}; installed are {', '.join(points) or 'none'}", auditor=name
        )
    try:
        auditor = points[name].load()()
    except (Exception, SystemExit) as error:
        raise AuditorFailedError(
            f"the auditor {name!r} of {_origin(points[name])} cannot be loaded: "
            f"{type(error).__name__}: {error}",
            auditor=name,
        ) from error
    if not isinstance(auditor, Auditor):
        raise AuditorFailedError(
            f"{points[name].value} of {_origin(points[name])} is no auditor: it lacks info() or run()",
            auditor=name,
        )
    return auditor


def describe(name: str) -> AuditorInfo:
    """Load one auditor and ask who it is.

    Raises:
        AuditorNotFoundError: If none has that name.
        AuditorFailedError: If it cannot be loaded or does not describe itself by its own name.
    """
    auditor = load(name)
    try:
        info = auditor.info()
    except (Exception, SystemExit) as error:
        raise AuditorFailedError(
            f"the auditor {name!r} cannot describe itself: {type(error).__name__}: {error}", auditor=name
        ) from error
    if not isinstance(info, AuditorInfo) or info.name != name:
        raise AuditorFailedError(
            f"the auditor {name!r} must describe itself by an AuditorInfo of that name", auditor=name
        )
    return info


def describe_all() -> tuple[AuditorInfo, ...]:
    """Describe every installed auditor.

    Raises:
        AuditorFailedError: Naming the first that cannot be loaded.
    """
    return tuple(describe(name) for name in installed())


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
