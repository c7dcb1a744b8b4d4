"""Bad replacement sets, corpora and features, and the error that each gets: `python -m benchmarks.bad_sets`.

Every case is a command line, run as people run it. The same cases are an e2e test
(`tests/e2e/test_bad_sets.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trephine.client.cli.exit_codes import ExitCode

D_SAE = 16
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": os.devnull}
"""Environment in which nothing is looked up on the network or has been downloaded before."""
RELEASE = ("gpt2-small-res-jb", "blocks.8.hook_resid_pre")
Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ground:
    """What a case works with."""

    model: Path
    """A plain Hugging Face folder."""
    d_model: int
    folder: Path
    """Scratch folder, empty for every case."""

    @property
    def with_model(self) -> Words:
        """The option that names the model."""
        return ("--model", str(self.model))

    def load(self, folder: Path, *options: str) -> Words:
        """The command that loads a folder."""
        return ("replacements", "load", str(folder), *self.with_model, *options)

    def ablate(self, address: str) -> Words:
        """The command that ablates one feature."""
        given = ("--target", " Mary", "--controls", "0", "--feature", address)
        return ("ablate", "When Mary and John", *self.with_model, *given)


@dataclass(frozen=True, slots=True)
class SetCase:
    """One bad input, as a command line."""

    name: str
    reason: str
    """The stable reason of the error that must come."""
    says: str
    """Words that its message must hold: what to do."""
    command: Callable[[Ground], Words]
    before: Callable[[Ground], Words] | None = None
    """A command that must succeed first."""


def write_random_set(ground: Ground, *, name: str = "bad", reads: int = 0, **changes: Any) -> Path:
    """Write a random transcoder of layer 0 as SAELens does: sound, but for `changes` to its configuration.

    Args:
        ground: Where, and for which model.
        name: Of its folder.
        reads: Width of its input; 0: the model's.
        changes: Of the metadata.
    """
    d_in, folder = reads or ground.d_model, ground.folder / name
    config = {
        "architecture": "transcoder",
        "d_in": d_in,
        "d_out": d_in,
        "d_sae": D_SAE,
        "metadata": {
            "hook_name": "blocks.0.mlp.hook_in",
            "hook_name_out": "blocks.0.hook_mlp_out",
            "prepend_bos": False,
            **changes,
        },
    }
    generator = torch.Generator().manual_seed(0)
    sizes = {"W_enc": (d_in, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, d_in), "b_dec": (d_in,)}
    tensors = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def _wrong_widths(ground: Ground) -> Words:
    folder = write_random_set(ground)
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    (folder / "cfg.json").write_text(json.dumps(config | {"d_sae": D_SAE + 1}), encoding="utf-8")
    return ground.load(folder)


def _another_model(ground: Ground) -> Words:
    return ground.load(write_random_set(ground, reads=ground.d_model + 8, model_name="gpt2"))


def _deeper_model(ground: Ground) -> Words:
    deep: dict[str, Any] = {"hook_name": "blocks.99.mlp.hook_in", "hook_name_out": "blocks.99.hook_mlp_out"}
    return ground.load(write_random_set(ground, **deep))


def _nan(ground: Ground) -> Words:
    folder = write_random_set(ground)
    tensors = {
        "W_enc": torch.full((ground.d_model, D_SAE), float("nan")),
        "b_enc": torch.zeros(D_SAE),
        "W_dec": torch.zeros(D_SAE, ground.d_model),
        "b_dec": torch.zeros(ground.d_model),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    return ground.load(folder)


def _truncated(ground: Ground) -> Words:
    folder = write_random_set(ground)
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    return ground.load(folder)


def _pickle(ground: Ground) -> Words:
    folder = write_random_set(ground)
    (folder / "sae_weights.safetensors").unlink()
    (folder / "sae_weights.pt").write_bytes(b"\x80\x04")
    return ground.load(folder)


def _unverified(ground: Ground) -> Words:
    folder = ground.folder / "bad"
    folder.mkdir()
    weights = {"w_enc": torch.zeros(ground.d_model, D_SAE), "w_dec": torch.zeros(D_SAE, 1, ground.d_model)}
    save_file(weights, folder / "layer_0.safetensors")
    return ground.load(folder)


def _binary_corpus(ground: Ground) -> Words:
    corpus = ground.folder / "corpus.txt"
    corpus.write_bytes(bytes(range(256)) * 16)
    small = ("--features", str(D_SAE), "--k", "2", "--tokens", "4096", "--layers", "0")
    return ("replacements", "fit", "never-made", "--corpus", str(corpus), *ground.with_model, *small)


def _degraded(name: str) -> Callable[[Ground], Words]:
    return lambda ground: ground.load(write_random_set(ground, name=name), "--accept-degraded")


CASES: tuple[SetCase, ...] = (
    SetCase(
        "wrong widths",
        "BROKEN_REPLACEMENT",
        "Fetch the set again, or correct its configuration",
        _wrong_widths,
    ),
    SetCase("NaN weights", "BROKEN_REPLACEMENT", "Use a checkpoint from before, or fit the set again", _nan),
    SetCase(
        "a config for another model",
        "BROKEN_REPLACEMENT",
        "it is for gpt2. Load the set made for this model",
        _another_model,
    ),
    SetCase(
        "a config for a deeper model",
        "BROKEN_REPLACEMENT",
        "Load the set made for this model, or load that model",
        _deeper_model,
    ),
    SetCase("a truncated file", "BROKEN_REPLACEMENT", "fetch it again", _truncated),
    SetCase(
        "a pickle",
        "UNSAFE_REPLACEMENT",
        "convert the set to safetensors with the library that wrote it",
        _pickle,
    ),
    SetCase("a format without a writer", "UNSUPPORTED_REPLACEMENT", "--unverified-format", _unverified),
    SetCase(
        "weights that do nothing of what they claim",
        "ADMISSION_FAILED",
        "--accept-degraded",
        lambda ground: ground.load(write_random_set(ground)),
    ),
    SetCase(
        "a set that does not exist",
        "REPLACEMENT_NOT_FOUND",
        "Name one of them, or give the folder of a set",
        lambda ground: ("replacements", "load", "nothing-here", *ground.with_model),
    ),
    SetCase(
        "a release that cannot be reached",
        "REPLACEMENT_NOT_FOUND" if find_spec("sae_lens") else "UNSUPPORTED_OPTION",
        "check it, or import where there is one" if find_spec("sae_lens") else "pip install",
        lambda ground: ("replacements", "import", *RELEASE, str(ground.folder / "new")),
    ),
    SetCase(
        "a release that does not exist",
        "REPLACEMENT_NOT_FOUND" if find_spec("sae_lens") else "UNSUPPORTED_OPTION",
        "Near it are" if find_spec("sae_lens") else "pip install",
        lambda ground: ("replacements", "import", "gpt2-small-res", "layer_0", str(ground.folder / "new")),
    ),
    SetCase("a corpus with binary junk", "BROKEN_CORPUS", "give UTF-8 text, or JSONL", _binary_corpus),
    SetCase(
        "a feature out of range",
        "FEATURE_OUT_OF_RANGE",
        f"features 0 to {D_SAE - 1}; name one of these",
        lambda ground: ground.ablate(f"bad-features:0:{D_SAE}"),
        before=_degraded("bad-features"),
    ),
    SetCase(
        "a layer that the set does not cover",
        "LAYER_OUT_OF_RANGE",
        "Name one of these, or load a set that covers it",
        lambda ground: ground.ablate("bad-layers:1:0"),
        before=_degraded("bad-layers"),
    ),
)


def run_case(
    case: SetCase, ground: Ground, run: Callable[[Sequence[str]], tuple[int, str]]
) -> tuple[int, str]:
    """Run a case; return its exit status and what it said on stderr.

    Raises:
        RuntimeError: If the command before it failed.
    """
    if case.before is not None:
        code, said = run(case.before(ground))
        if code != ExitCode.PASS:
            raise RuntimeError(f"{case.name}: what comes before it failed: {said}")
    return run(case.command(ground))


def outcomes(model: Path) -> Iterator[tuple[SetCase, int, str]]:
    """Run every case beside the server of this machine's user."""
    width = int(json.loads((model / "config.json").read_text(encoding="utf-8"))["hidden_size"])

    def run(words: Sequence[str]) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "trephine.client", *words],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | OFFLINE,
        )
        return done.returncode, done.stderr

    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            yield case, *run_case(case, Ground(model, width, Path(folder)), run)


def main() -> None:
    """Print the table; exit 1 if a case gets another error than its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a plain Hugging Face folder")
    wrong = 0
    for case, code, said in outcomes(parser.parse_args().model):
        right = code == ExitCode.USAGE and case.reason in said and case.says in said
        wrong += not right
        print(f"{'ok ' if right else 'BAD'} {case.name}\n      {code}: {said.strip()}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
