"""One episode's sandbox: set up at the first tool call, tools run in it, its final state taken out.

All of it runs in threads, one call at a time for each episode, while the engine decodes other episodes.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from verigrad.engine import tools as tool_table
from verigrad.engine.episode_row import EpisodeSetup
from verigrad.engine.settings import AgentConfig
from verigrad.engine.tools import Call, Observation, Tool
from verigrad.sandboxes.base import (
    ExecResult,
    Limits,
    Process,
    ProgramFault,
    Sandbox,
    SandboxLost,
)
from verigrad.sandboxes.pool import SandboxPool


class SetupFailed(Exception):
    """What the row wants done in a clean sandbox did not work; says what, and how it ended."""


class TooLarge(Exception):
    """The final state holds more than agent.artifact_mb."""


class EpisodeBox:
    """A leased sandbox and what may be done in it. What raises here has given the sandbox back."""

    def __init__(self, pool: SandboxPool, cfg: AgentConfig) -> None:
        self.pool, self.cfg = pool, cfg
        self._lease: AbstractContextManager[Sandbox] | None = None
        self._box: Sandbox | None = None

    @property
    def is_open(self) -> bool:
        """Whether it has a sandbox."""
        return self._box is not None

    def open(self, setup: EpisodeSetup) -> None:
        """Lease a sandbox and set it up; in another one when it is lost meanwhile.

        Raises SetupFailed, and SandboxError when none can be had.
        """
        for left in reversed(range(self.pool.settings.retries + 1)):
            self._lease = self.pool.lease()
            try:
                box = self._lease.__enter__()
                set_up(box, setup, self.cfg)
            except SandboxLost as error:
                self.close(error)
                if not left:
                    raise
            except BaseException as error:
                self.close(error)
                raise
            else:
                self._box = box
                return

    def act(
        self, calls: Sequence[Call], tools: Mapping[str, Tool], *, seconds_left: float
    ) -> list[Observation]:
        """Run the calls of one turn, one after the other. Raises SandboxError."""
        assert self._box is not None, "open() comes first"
        ends = time.monotonic() + seconds_left
        observations = []
        try:
            for call in calls:
                seconds = min(self.cfg.tool_seconds, max(ends - time.monotonic(), 0.01))
                box = TimedSandbox(self._box, seconds)
                observations.append(tool_table.run(call, tools, box, max_chars=self.cfg.observation_chars))
        except BaseException as error:
            self.close(error)
            raise
        return observations

    def finish(self) -> bytes:
        """The final state, see `saved`; then the sandbox is given back. Raises TooLarge and SandboxError."""
        assert self._box is not None, "open() comes first"
        try:
            state = saved(self._box, self.cfg)
        except BaseException as error:
            self.close(error)
            raise
        self.close()
        return state

    def close(self, error: BaseException | None = None) -> None:
        """Give the sandbox back, to be wiped; with a SandboxError it is thrown away instead."""
        lease, self._lease, self._box = self._lease, None, None
        if lease is not None:
            try:
                lease.__exit__(type(error) if error else None, error, None)
            except BaseException as raised:
                if raised is not error:
                    raise


def untouched(pool: SandboxPool, cfg: AgentConfig, setup: EpisodeSetup) -> bytes:
    """The final state of an episode without a call: what the row has set up, and nothing else.

    Done again in another sandbox when one is lost. Raises SetupFailed, TooLarge and SandboxError.
    """

    def job(box: Sandbox) -> bytes:
        set_up(box, setup, cfg)
        return saved(box, cfg)

    return pool.run(job)


def set_up(box: Sandbox, setup: EpisodeSetup, cfg: AgentConfig) -> None:
    """Do in a clean sandbox what the row wants done. Raises SetupFailed and SandboxError."""
    for path, text in setup.files.items():
        try:
            box.write_file(path, text.encode())
        except (ValueError, ProgramFault) as error:
            raise SetupFailed(f"setup.files: {path!r}: {error}") from error
    for command in setup.commands:
        result = box.exec(["bash", "-c", command], limits=Limits(wall_s=cfg.max_seconds))
        if not result.ok:
            told = tool_table.clipped(tool_table.printed(result), 500)
            raise SetupFailed(f"setup.commands: {command!r:.200} failed: {told}")


def saved(box: Sandbox, cfg: AgentConfig) -> bytes:
    """agent.artifacts, see Sandbox.save; nothing of the model's runs any more. Raises TooLarge."""
    try:
        return box.save(cfg.artifacts, max_bytes=cfg.artifact_mb << 20)
    except ProgramFault as error:
        raise TooLarge(str(error)) from error


class TimedSandbox(Sandbox):
    """A sandbox as a tool sees it: all its commands together may take so many seconds, and it stays open."""

    def __init__(self, box: Sandbox, seconds: float) -> None:
        self.box, self.backend = box, box.backend
        self.ends = time.monotonic() + seconds

    def exec(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
    ) -> ExecResult:
        """See Sandbox.exec."""
        return self.box.exec(command, stdin=stdin, limits=self._within(limits), env=env)

    def start(
        self, command: Sequence[str], *, limits: Limits | None = None, env: Mapping[str, str] | None = None
    ) -> Process:
        """See Sandbox.start."""
        return self.box.start(command, limits=self._within(limits), env=env)

    def _within(self, limits: Limits | None) -> Limits:
        left = max(self.ends - time.monotonic(), 0.01)
        if limits is None:
            return Limits(wall_s=left, cpu_s=max(left, 1.0))
        return Limits(
            min(limits.wall_s, left), limits.cpu_s, limits.memory_mb, limits.output_bytes, limits.file_mb,
            limits.pids,
        )  # fmt: skip

    def write_file(self, path: str, data: bytes, *, executable: bool = False) -> None:
        """See Sandbox.write_file."""
        self.box.write_file(path, data, executable=executable)

    def read_file(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        """See Sandbox.read_file."""
        return self.box.read_file(path, max_bytes=max_bytes)

    def save(self, paths: Sequence[str] = (".",), *, max_bytes: int = 16 << 20) -> bytes:
        """See Sandbox.save."""
        return self.box.save(paths, max_bytes=max_bytes)

    def load(self, archive: bytes) -> None:
        """See Sandbox.load."""
        self.box.load(archive)

    def reset(self) -> None:
        """See Sandbox.reset. What the row set up is gone, too."""
        self.box.reset()

    def close(self) -> None:
        """Nothing: the sandbox is the episode's, not the tool's."""
