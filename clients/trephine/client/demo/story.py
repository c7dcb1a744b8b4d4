"""The order of the chapters. What each does is in `chapters.py` and `shipping.py`."""

from __future__ import annotations

from pathlib import Path

from trephine.client.cli.exit_codes import ExitCode
from trephine.client.cli.output import Output
from trephine.client.cli.service import run_service
from trephine.client.connection import connect
from trephine.client.demo import chapters, shipping
from trephine.client.demo.folder import prepare_folder
from trephine.client.demo.narration import Narrator
from trephine.client.errors import ModelNotFoundError
from trephine.client.trephine import Trephine


def tell(out: Path, *, model: str, output: Output) -> ExitCode:
    """Run the demo into a folder.

    Raises:
        LocalFileError: If the folder was not made by an earlier demo.
        TrephineError: Whatever goes wrong on the way.
    """
    folder = prepare_folder(out)
    narrator = Narrator(output)
    narrator.say("Trephine: open a model, find a circuit, cut it, prove that it is gone, ship the weights.")
    with connect(state=folder / "state") as trephine:
        _require_model(trephine, model, narrator)
        outcome = _tell(trephine, model, folder, narrator)
    narrator.summarise(folder / "summary.json")
    narrator.say()
    narrator.say(f"Done in {narrator.seconds:.0f} s. Look at {out / 'circuit.html'} and {out / 'audit'}.")
    return outcome


def _tell(trephine: Trephine, model: str, folder: Path, narrator: Narrator) -> ExitCode:
    loaded = chapters.load(trephine, model, narrator)
    circuit = chapters.discover(loaded, folder, narrator)
    selection = chapters.choose(circuit, narrator)
    if selection.features:
        chapters.verify(loaded, circuit, selection, narrator)
    chapters.steer(loaded, narrator)
    if selection.features:
        shipping.ship(trephine, loaded, selection, folder, narrator)
    chapters.audit(trephine, loaded, folder, narrator)
    return ExitCode.PASS if selection.features else ExitCode.INCONCLUSIVE


def _require_model(trephine: Trephine, model: str, narrator: Narrator) -> None:
    """Fetch a model that is known by name and not here yet."""
    try:
        if "/" not in model:
            trephine.models.get(model)
    except ModelNotFoundError:
        narrator.say(f"{model} is not in the cache yet: fetching and converting it once.")
        if run_service("fetch", model, quiet=True) != 0:
            raise
