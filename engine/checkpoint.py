"""Checkpoints that are either whole or absent, each with a manifest that tells which."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

MANIFEST = "manifest.json"
HALF = ".half"  # suffix of a folder that is still being written
DAMAGED = ".damaged"  # suffix of one that was written whole and is not any more
TRIPPED = ".tripped"  # suffix of one from after a sign of reward hacking, taken out by a rollback


class CheckpointError(OSError):
    """A checkpoint could not be written; earlier ones are untouched."""


def save(
    folder: Path, step: int, write: Callable[[Path], None], *, keep: int, keep_before: int | None = None
) -> Path:
    """Write `folder/step_NNNNNN` through `write`, atomically, then `prune`.

    The folder appears under its name only after every byte is on disk, so a kill or a full disk at any
    moment leaves either the old state or the new one. Raises CheckpointError when the disk refuses.
    """
    target = folder / name_of(step)
    half = folder / f"{name_of(step)}{HALF}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        write(half)
        manifest = {str(p.relative_to(half)): _fingerprint(p) for p in _files(half)}
        (half / MANIFEST).write_text(json.dumps({"step": step, "files": manifest}, indent=1))
        for path in _files(half):
            sync_to_disk(path)
        sync_to_disk(half)
        if target.exists():  # a corrupt one of the same step: the run went back behind it
            shutil.rmtree(target)
        half.rename(target)
        sync_to_disk(folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # both libraries wrap ENOSPC in their own
        shutil.rmtree(half, ignore_errors=True)
        raise CheckpointError(f"checkpoint of step {step} could not be written: {error}") from error
    prune(folder, keep=keep, keep_before=keep_before)
    return target


def newest_first(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, folder) of every finished checkpoint; whether it is whole is for `damage` to say."""
    found = [(step, path) for path in folder.glob("step_*") if (step := step_of(path.name)) is not None]
    yield from sorted(found, reverse=True)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file of its manifest is there with its bytes."""
    try:
        manifest = dict(json.loads((checkpoint / MANIFEST).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    if not manifest:
        return f"{MANIFEST} names no files"
    for name, fingerprint in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if _fingerprint(path) != fingerprint:
            return f"{name} has changed since it was written"
    return None


def remove_halves(folder: Path) -> None:
    """Clear what a killed save left behind."""
    for half in folder.glob(f"*{HALF}"):
        shutil.rmtree(half, ignore_errors=True)


def put_aside(checkpoint: Path, suffix: str = DAMAGED) -> None:
    """Take a checkpoint out of the count, so that pruning never prefers it to a good one."""
    aside = checkpoint.with_name(checkpoint.name + suffix)
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def prune(folder: Path, *, keep: int, keep_before: int | None = None) -> None:
    """Remove all but the `keep` newest checkpoints, and the newest one from before step `keep_before`."""
    found = list(newest_first(folder))
    before = [path for step, path in found if keep_before is not None and step < keep_before][:1]
    for path in [path for _, path in found[keep:] if path not in before]:
        doomed = path.with_name(f"{path.name}{HALF}")  # renamed first: a half-removed one must not be found
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def name_of(step: int) -> str:
    """step_000050."""
    return f"step_{step:06d}"


def step_of(name: str) -> int | None:
    """The 50 of step_000050; None for any other name."""
    match = re.fullmatch(r"step_(\d{6,})", name)
    return int(match[1]) if match else None


def sync_to_disk(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _fingerprint(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
