"""`verigrad train` on a recipe of stages: each in a process of its own, in order, skipping what is done.

A process per stage gives all memory back, and makes a stage what the same command alone would have been.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import filelock

from verigrad.engine import checkpoint, config, stage_recipe
from verigrad.engine import dry_run as dry_run_checks
from verigrad.engine.config import ConfigError
from verigrad.engine.failures import WorkError
from verigrad.engine.stage_recipe import Stage, StagedRecipe
from verigrad.verifiers.worker import die_with

INTERRUPTED, INPUT_IS_WRONG = 130, 2


def has_stages(recipe: str) -> bool:
    """Whether a recipe is one of stages."""
    return "stage" in config.read_tree(config.find_recipe(recipe))


def run(recipe: str, overrides: Sequence[str], *, dry_run: bool, debug: bool) -> int:
    """Run the stages that are not done; returns the exit status of the one that ended it, or 0."""
    staged = stage_recipe.load(recipe, overrides)
    if dry_run:
        require_verifiers(staged)
        show_recipe(staged)
        return 0
    require_all(staged)
    folder = Path(staged.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"run.folder = {staged.folder!r} cannot be made ({error.strerror}); name another"
        ) from error
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise WorkError(
            f"{folder} is being written by another process; wait for it, or set run.folder"
        ) from None
    try:
        return run_all(staged, debug=debug)
    finally:
        lock.release()


def run_all(staged: StagedRecipe, *, debug: bool) -> int:
    """Run stage after stage until one does not end well."""
    num = len(staged.stages)
    with Forwarder() as signals:
        for stage in staged.stages:
            title = f"stage {stage.number}/{num} {stage.name}: verigrad {stage.cfg.verb}"
            if is_done(stage):
                say(f"{title} is done: {stage.result}")
                continue
            say(title)
            status = signals.wait_for(command(stage, staged, debug=debug))
            if signals.asked and status in (0, INTERRUPTED, -signal.SIGINT):
                say(f"stopped in stage {stage.name}; run the same command again to go on")
                return INTERRUPTED
            if status < 0:
                raise WorkError(
                    f"stage {stage.name} was killed by signal {-status} "
                    f"({signal.Signals(-status).name}); run the same command again to go on"
                )
            if status:
                how = f"stage {stage.name} ({stage.number} of {num}) ended with status {status}"
                print(f"verigrad: {how}; {remedy(stage, status)}", file=sys.stderr)
                return status
    for stage in staged.stages:
        say(f"{stage.label}: {stage.result}")
    return 0


def command(stage: Stage, staged: StagedRecipe, *, debug: bool) -> list[str]:
    """The command that runs a stage, whose whole recipe is written beside its folder."""
    path = Path(staged.folder) / f"{stage.label}.toml"
    path.write_text(config.to_toml(stage.cfg))
    words = [sys.executable, "-P", "-m", "verigrad.engine.cli", stage.cfg.verb, str(path)]
    return [*words, "--debug"] if debug else words


def is_done(stage: Stage) -> bool:
    """Whether its folder holds this very recipe and its whole result; else the stage says what is so."""
    folder = Path(stage.cfg.run.folder)
    record = folder / "config.toml"
    if not record.is_file() or record.read_text() != config.to_toml(stage.cfg):
        return False
    if stage.cfg.verb in stage_recipe.ROWS_OF:
        return (folder / stage_recipe.ROWS_OF[stage.cfg.verb]).is_file()
    last = Path(stage.result)
    return last.is_dir() and checkpoint.damage(last) is None


def remedy(stage: Stage, status: int) -> str:
    """What to do about a stage that ended badly; finished ones stay in any case."""
    if status == INPUT_IS_WRONG:
        return "correct it and run the command again: finished stages are kept"
    return (
        "run the same command again to go on there; to give this stage other settings, remove "
        f"{stage.cfg.run.folder} first: finished stages are kept"
    )


def require_all(staged: StagedRecipe) -> None:
    """Raise ConfigError for what would end a later stage, hours from now, and can be seen at once."""
    if absent := list(stage_recipe.missing_files(staged)):
        raise ConfigError(f"{staged.name}: {'; '.join(absent)}; correct the path")
    require_verifiers(staged)


def require_verifiers(staged: StagedRecipe) -> None:
    """Raise ConfigError for a verifier of any stage that cannot be loaded as the recipe says."""
    for stage in staged.stages:
        try:
            dry_run_checks.check_verifiers(stage.cfg)
        except ConfigError as error:
            raise ConfigError(f"{staged.name}: stage {stage.name}: {error}") from error


def show_recipe(staged: StagedRecipe) -> None:
    """Print the resolved recipe of every stage, and what their steps will do."""
    print(stage_recipe.to_toml(staged))
    for stage in staged.stages:
        print(f"# {stage.label}: verigrad {stage.cfg.verb} -> {stage.result}")
        for name, value in config.batch_algebra(stage.cfg):
            print(f"# {stage.label}: {name}: {value}")


def say(text: str) -> None:
    """A line, before anything that a stage prints."""
    print(text, flush=True)


class Forwarder:
    """While open, signals that ask to stop are passed on to the running stage, which decides how it ends.

    The stage has a session of its own, so that a terminal's Ctrl-C reaches it once, from here; it dies with
    this process.
    """

    def __init__(self) -> None:
        self.asked = False
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def wait_for(self, words: Sequence[str]) -> int:
        """Run a command to its end; its exit status, negative for a signal that killed it."""
        if self.asked:
            return INTERRUPTED
        self._child = subprocess.Popen(
            words, start_new_session=True, preexec_fn=partial(die_with, os.getpid())
        )
        if self.asked:  # between the look above and the start
            self._child.send_signal(signal.SIGINT)
        return self._child.wait()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._child is not None:
            self._child.send_signal(number)

    def __enter__(self) -> "Forwarder":
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._before[number] = signal.signal(number, self._pass_on)
        except ValueError:  # not the main thread: whoever runs us there handles signals itself
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
