"""The wheel is whole: the service starts from it alone, and the image copies what is there."""

from __future__ import annotations

import json
import os
import re
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel and our dependencies, without the checkout.

    The dependencies come from this environment by one path line, which does not process its `.pth` files: the
    editable install is not seen.
    """
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    inside = next((folder / "lib").glob("python*")) / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(inside)
    (inside / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


def test_wheel_holds_every_package_and_asset(wheel: Path):
    """Contract, client, service, auditors, page assets and the retain text are all inside; tests are not."""
    names = zipfile.ZipFile(wheel).namelist()
    tracked = [
        path.relative_to(ROOT / top).as_posix()
        for top in ("protos", "clients", "service", "auditors")
        for path in (ROOT / top / "trephine").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert not set(tracked) - set(names)
    assert not [name for name in names if name.startswith("tests/")]


def test_client_needs_neither_torch_nor_the_service(clean_python: Path):
    """Importing the client and its command line from the wheel pulls in no torch, transformers or numpy."""
    code = (
        "import sys, trephine.client, trephine.client.cli; "
        "print([m for m in ('torch', 'transformers', 'numpy', 'trephine.domain') if m in sys.modules])"
    )
    done = subprocess.run(
        [clean_python, "-I", "-c", code], check=True, capture_output=True, text=True, cwd="/"
    )
    assert done.stdout.strip() == "[]"


def test_service_starts_from_the_wheel_alone(clean_python: Path, tmp_path: Path):
    """A server started from the wheel in a clean environment answers the client's commands, then ends."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TREPHINE_STATE": str(tmp_path / "state"),
        "TREPHINE_CACHE": str(tmp_path / "cache"),
    }
    command = [
        clean_python,
        "-I",
        "-c",
        "from trephine.client.cli import main; main()",
        "--json",
        "models",
        "list",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"] == []


def test_dockerfile_copies_what_exists_and_runs_as_nobody_special():
    """Every COPY source exists and passes .dockerignore; the image is multi-stage and non-root."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    stages = [rest for verb, rest in steps if verb == "FROM"]
    assert len(stages) == 2
    assert " AS build" in stages[0]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for rest in (rest for verb, rest in steps if verb == "COPY"):
        if rest.startswith("--from="):
            continue
        for source in rest.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source in allowed, source
    verbs = [verb for verb, _ in steps]
    assert "HEALTHCHECK" in verbs
    assert verbs.index("USER") < verbs.index("ENTRYPOINT")
    assert next(rest for verb, rest in steps if verb == "USER") not in {"root", "0"}
    assert not re.search(r"pip install[^&]*(-e|--editable)\b", text)


def test_dockerfile_entry_points_exist(clean_python: Path):
    """The image's entry point and health check name commands of the server that exist."""
    help_text = subprocess.run(
        [clean_python, "-I", "-m", "trephine.server", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    ).stdout
    for name in ("serve", "health"):
        assert name in help_text
