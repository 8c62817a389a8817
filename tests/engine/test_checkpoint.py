"""Checkpoints are whole or absent."""

import json

import pytest
from safetensors import SafetensorError

from verigrad.engine import checkpoint


def save(folder, step, text="weights", keep=2):
    def write(half):
        (half / "inner").mkdir()
        (half / "inner" / "a.bin").write_text(text)
        (half / "b.bin").write_text(text * 2)

    return checkpoint.save(folder, step, write, keep=keep)


def steps(folder):
    return [step for step, _ in checkpoint.newest_first(folder)]


def test_what_is_saved_is_whole(tmp_path):
    path = save(tmp_path, 7)
    assert path == tmp_path / "step_000007"
    assert checkpoint.damage(path) is None
    listed = json.loads((path / "manifest.json").read_text())
    assert listed["step"] == 7
    assert set(listed["files"]) == {"inner/a.bin", "b.bin"}


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), RuntimeError, SafetensorError])
def test_a_failure_half_way_leaves_the_one_before(tmp_path, failure):
    save(tmp_path, 1)

    def write(half):
        (half / "a.bin").write_text("half")
        raise failure

    with pytest.raises(checkpoint.CheckpointError, match="checkpoint of step 2 could not be written"):
        checkpoint.save(tmp_path, 2, write, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]
    assert checkpoint.damage(tmp_path / "step_000001") is None


def test_a_kill_half_way_leaves_only_what_is_cleared_away(tmp_path):
    def write(half):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 2, write, keep=1)
    assert steps(tmp_path) == []
    checkpoint.remove_halves(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 1_000_000):
        save(tmp_path, step)
    assert steps(tmp_path) == [1_000_000, 3]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_step_is_written_again_over_a_damaged_one(tmp_path):
    (save(tmp_path, 3) / "b.bin").unlink()
    path = save(tmp_path, 3, text="new")
    assert checkpoint.damage(path) is None
    assert (path / "b.bin").read_text() == "newnew"


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda p: (p / "b.bin").unlink(), "b.bin is missing"),
        (lambda p: (p / "b.bin").write_text("short"), "b.bin has changed"),
        (lambda p: (p / "inner/a.bin").write_text("weighty"), "inner/a.bin has changed"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing or unreadable"),
        (lambda p: (p / "manifest.json").write_text('{"files"'), "manifest.json is missing or unreadable"),
        (lambda p: (p / "manifest.json").write_text("[1]"), "manifest.json is missing or unreadable"),
        (lambda p: (p / "manifest.json").write_text('{"files": [1]}'), "missing or unreadable"),
        (lambda p: (p / "manifest.json").write_bytes(b"\xff\x00"), "manifest.json is missing or unreadable"),
        (lambda p: (p / "manifest.json").write_text('{"files": {}}'), "manifest.json names no files"),
    ],
)
def test_damage_is_named(tmp_path, harm, says):
    path = save(tmp_path, 1)
    harm(path)
    assert says in checkpoint.damage(path)


def test_pruning_prefers_no_damaged_one_to_a_whole_one(tmp_path):
    save(tmp_path, 1)
    damaged = save(tmp_path, 9)
    (damaged / "b.bin").unlink()
    checkpoint.put_aside(damaged)
    save(tmp_path, 2, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000002", "step_000009.damaged"]
    assert checkpoint.damage(tmp_path / "step_000002") is None


@pytest.mark.parametrize("name", ["step_000001.half", "step_abc", "step_000001 copy", "step_1", "other"])
def test_other_folders_are_no_checkpoints(tmp_path, name):
    (tmp_path / name).mkdir()
    assert steps(tmp_path) == []
