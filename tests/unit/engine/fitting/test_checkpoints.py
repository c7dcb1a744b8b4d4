from pathlib import Path

import pytest
import torch

from trephine.engine.fitting.checkpoints import Checkpoints, State
from trephine.engine.fitting.files import write_tensors
from trephine.engine.fitting.optimiser import Rate, adam, optimiser_tensors, restore_optimiser


def test_the_newest_checkpoint_is_read_and_the_older_ones_go(tmp_path: Path):
    """Only whole checkpoints count; what a kill left half written is passed over."""
    checkpoints = Checkpoints(folder=tmp_path)
    assert checkpoints.latest() is None
    for chunk in (0, 3, 12):
        checkpoints.save(chunk, State(tensors={"a": torch.full((2,), float(chunk))}, facts={"n": chunk}))
    half = tmp_path / ".chunk-00000020.part"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"cut short")
    state = checkpoints.latest()
    assert state is not None
    assert state.facts == {"n": 12, "chunk": 12}
    assert state.tensors["a"].tolist() == [12.0, 12.0]
    assert [path.name for path in tmp_path.glob("chunk-*")] == ["chunk-00000012"]


def test_a_checkpoint_brings_the_generator_back(tmp_path: Path):
    """Random numbers go on from where the checkpoint was made."""
    checkpoints = Checkpoints(folder=tmp_path)
    with torch.random.fork_rng():
        checkpoints.save(1, State(tensors={}, facts={}))
        expected = torch.rand(3)
        torch.manual_seed(99)
        checkpoints.latest()
        assert torch.equal(torch.rand(3), expected)


def test_an_interrupted_write_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A failure in the middle of a write shows nothing new."""
    checkpoints = Checkpoints(folder=tmp_path)
    checkpoints.save(1, State(tensors={"a": torch.ones(1)}, facts={}))

    def failing(*args: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr("trephine.engine.fitting.checkpoints.publish", failing)
    with pytest.raises(OSError, match="killed"):
        checkpoints.save(2, State(tensors={"a": torch.zeros(1)}, facts={}))
    state = checkpoints.latest()
    assert state is not None
    assert state.facts["chunk"] == 1


def test_a_file_of_tensors_that_share_memory_is_written(tmp_path: Path):
    """Views of one tensor are written as tensors of their own."""
    whole = torch.arange(6.0)
    write_tensors(tmp_path / "x.safetensors", {"a": whole[:3], "b": whole.view(2, 3).T})
    assert (tmp_path / "x.safetensors").exists()
    assert not list(tmp_path.glob(".*"))


def test_adam_goes_on_with_its_moments():
    """An optimiser that is taken apart and put together takes the same next step."""

    def trained(steps: int, through: bool) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        optimiser = adam([weight])
        for step in range(steps):
            if through and step == steps - 1:
                kept, optimiser = optimiser_tensors(optimiser), adam([weight])
                restore_optimiser(optimiser, kept)
            optimiser.param_groups[0]["lr"] = 0.1
            optimiser.zero_grad()
            (weight**2).sum().backward()
            optimiser.step()
        return weight.detach()

    assert torch.equal(trained(5, through=True), trained(5, through=False))


def test_the_rate_rises_and_falls():
    """It starts low, reaches its peak, ends near 0, and is a function of the step alone."""
    rate = Rate(peak=1.0, steps=100)
    values = [rate.at(step) for step in range(100)]
    assert max(values) == 1.0
    assert values[0] < 0.3
    assert values[-1] < 0.1
    assert values[5:75] == [1.0] * 70
