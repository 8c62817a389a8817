"""What an engine is asked for -> a process of its own that samples beside this one, and its answers.

    trainer   open, add, load, version  ->   engine_process_child.py: one engine, stepped while it is busy
              <-   finished samples          weights lie in a block of memory that both see

Such processes divide the machine's cores; with several GPUs the child takes the last one. It is started with
a clean environment, and ends when this process ends, however that comes.
"""

import contextlib
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verigrad.engine.backends import module_of
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.engine_process_weights import SharedWeights, new_file
from verigrad.engine.rollout import SamplerError, SamplingParams, TokenOutput, TokenRequest
from verigrad.engine.weight_sharing import NoLayout

WAIT_S = 0.05  # longest step of a stream
STOP_S = 5.0  # from being asked to stop to being killed
SHOWN = 5  # last lines of a dead process that are told

Wanted = tuple[int, TokenRequest, SamplingParams]


def is_wanted(cfg: Config) -> bool:
    """Whether the recipe, or this machine where the recipe is silent, has the sampler in its own process."""
    if not cfg.rollout.max_staleness:
        return False
    if cfg.rollout.engine_process is not None:
        return cfg.rollout.engine_process
    return (torch.cuda.device_count() if on_gpu(cfg) else num_cores()) > 1


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_gpu(cfg: Config) -> bool:
    """Whether engines compute on a GPU."""
    return torch.cuda.is_available() and cfg.policy.device != "cpu"


def environment(cfg: Config, *, threads: int) -> dict[str, str]:
    """The child's: this one's, with its share of cores or its GPU, and the same paths for imports."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if not on_gpu(cfg):
        return env | {"OMP_NUM_THREADS": str(threads)}
    if torch.cuda.device_count() > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        last = visible.split(",")[-1].strip() or str(torch.cuda.device_count() - 1)
        env["CUDA_VISIBLE_DEVICES"] = last
    return env


class Child:
    """A process that imports an engine, and then waits to be told which model it is for."""

    def __init__(self, cfg: Config, *, threads: int) -> None:
        """`threads`: its share of the cores."""
        self.file = new_file()
        self.printed = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the child
        ours, theirs = socket.socketpair()
        with theirs:
            handles = theirs.fileno(), self.file.fileno()
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "verigrad.engine.engine_process_child",
                    *map(str, handles),
                    module_of(cfg),
                ],
                env=environment(cfg, threads=threads),
                stdin=subprocess.DEVNULL,
                stdout=self.printed,
                stderr=self.printed,
                pass_fds=handles,
                start_new_session=True,  # Ctrl-C is the trainer's, which ends the child when it is done
            )
        self.connection = Connection(ours.detach())

    def kill(self) -> None:
        """End it, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self.connection.close()


class EngineProcess:
    """See rollout.Engine. Safe to use from several threads; an engine that died is one SamplerError."""

    apart = True

    def __init__(
        self,
        cfg: Config,
        model_folder: str,
        *,
        eos_ids: Sequence[int],
        seed: int,
        child: Child | None = None,
    ) -> None:
        """`child`: one that was started before."""
        child = child or Child(cfg, threads=max(1, num_cores() // 2))
        self._file, self._printed = child.file, child.printed
        self.process, self._connection = child.process, child.connection
        self._sending, self._asking = threading.Lock(), threading.Lock()
        self._answers: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._streams: dict[int, RemoteStream] = {}
        self._num_streams = 0
        self._shared: SharedWeights | None = None
        self._version, self._untold = -1, False  # untold: there are weights that have no version yet
        self.busy_s = 0.0  # the child has spent decoding, as far as it has told
        self.closed = False
        self.death: str | None = None  # why there will be no more answers
        self.in_batches, self._ready = False, False  # the former is known when the latter
        self.send(cfg, model_folder, list(eos_ids), seed)
        self._reader = threading.Thread(target=self._read, name="engine-process", daemon=True)
        self._reader.start()

    # -- the connection ------------------------------------------------------------------------------

    def _read(self) -> None:
        """Hand what the child says to whom it is for, until it says no more."""
        while True:
            try:
                kind, *said = self._connection.recv()
            except (EOFError, OSError, TypeError):  # TypeError: closed while waiting
                self._mourn()
                self._answers.put(("dead",))
                return
            if kind == "outputs":
                number, outputs, self.busy_s = said
                if outputs and number in self._streams:
                    self._streams[number].arrived.put(outputs)
            elif kind == "closed":
                self._streams.pop(said[0], None)
            elif kind == "failed":
                self.death = f"the sampler's process failed: {said[0]}"
            else:
                self._answers.put((kind, *said))

    def _mourn(self) -> None:
        """Say why the child ended, once."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=STOP_S)
        if self.death is None:
            status = self.process.returncode
            how = (
                f"was killed by signal {-status}" if status and status < 0 else f"ended with status {status}"
            )
            lines = self._last_lines()
            said = f"; its last words: {lines}" if lines else ""
            self.death = f"the sampler's process {how}{said}"
        self.death += ". Run the same command again: it goes on from the last checkpoint"

    def _last_lines(self) -> str:
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").strip().splitlines()
        return " | ".join(line.strip() for line in lines[-SHOWN:])

    def send(self, *message: Any) -> None:
        """Tell the child; SamplerError where it is no more."""
        if self.closed:
            raise SamplerError("the sampler's process was closed")
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            self.require_alive(after=STOP_S)

    def require_alive(self, *, after: float = 0.0) -> None:
        """Raise SamplerError if the child has died; with `after`, it has, and why is known within that."""
        ends = time.monotonic() + after
        while after and self.death is None and time.monotonic() < ends:
            time.sleep(0.01)
        if self.death is not None or after:
            raise SamplerError(self.death or "the sampler's process does not answer")

    def ask(self, *message: Any) -> None:
        """Tell the child and wait until it has done it; SamplerError with its reason when it refuses."""
        with self._asking:
            if not self._ready:  # it starts while others do
                self.in_batches = self._answer()[0]
                self._ready = True
            self.send(*message)
            self._answer()

    def _answer(self) -> list[Any]:
        kind, *said = self._answers.get()
        if kind == "dead":
            self._answers.put(("dead",))  # for the next who asks
            self.require_alive(after=STOP_S)
        if kind == "wrong":
            raise ConfigError(said[0])
        if kind == "refused":
            raise SamplerError(said[0])
        return said

    # -- an engine -----------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """See Engine.version."""
        return self._version

    @version.setter
    def version(self, version: int) -> None:
        self._version, self._untold = version, False
        self.send("version", version)

    @contextmanager
    def stream(self, *, lasting: bool = False) -> Iterator["RemoteStream"]:
        """See Engine.stream."""
        if self._untold:
            self.version = self._version
        with self._sending:
            self._num_streams += 1
            stream = self._streams[self._num_streams] = RemoteStream(self, self._num_streams)
        self.ask("open", stream.number, lasting)
        stream.in_batches = self.in_batches
        try:
            yield stream
        finally:
            if self.death is None and not self.closed:
                self.send("close", stream.number)

    def generate(self, requests: Sequence[TokenRequest], params: SamplingParams) -> Iterator[TokenOutput]:
        """See Engine.generate."""
        with self.stream() as stream:
            stream.add_all([(index, request, params) for index, request in enumerate(requests)])
            while stream.busy:
                yield from stream.step()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See Engine.load_weights. Returns when they are loaded; they are used when they have a version."""
        self.put(weights)
        self.ask("load")
        self._untold = True

    def put(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Write them where the child can see them, and no more."""
        if self._shared is None:
            self._shared = SharedWeights.of(self._file.fileno(), weights)
            self.send("block", self._shared.places, self._shared.size)
        else:
            self._shared.write(weights)

    def lay_out(self, shapes: Mapping[str, torch.Size] | None) -> "RemoteLayout | None":
        """See VllmEngine.lay_out: whether the child can write weights into their places is found there."""
        plain = None if shapes is None else {name: tuple(shape) for name, shape in shapes.items()}
        try:
            self.ask("lay_out", plain)
        except SamplerError as error:
            self.require_alive()
            if plain is not None:
                raise NoLayout(str(error)) from error
        return None if plain is None else RemoteLayout(self)

    def load_adapter(self, folder: Path) -> None:
        """See Engine.load_adapter. Refused beside a lasting stream, which would go on with the old one."""
        self.ask("adapter", str(folder))
        self._untold = True

    def release(self) -> None:
        """See Engine.release. The child's memory is its own."""

    def reclaim(self) -> None:
        """See Engine.reclaim."""

    def close(self) -> None:
        """See Engine.close."""
        if not self.closed:
            with contextlib.suppress(SamplerError):
                self.send("stop")
            self.closed = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=STOP_S)
            self.process.kill()
            self.process.wait()
            self._reader.join(timeout=STOP_S)
            self._connection.close()


class RemoteLayout:
    """See weight_sharing.Layout: of a model in the child, which shares no memory with the trainer's."""

    shared = False

    def __init__(self, engine: EngineProcess) -> None:
        self.engine = engine

    def holds(self, weights: Iterable[tuple[str, Tensor]]) -> bool:
        """Whether the child computes with these weights."""
        self.engine.put(weights)
        try:
            self.engine.ask("holds")
        except SamplerError:
            self.engine.require_alive()
            return False
        return True

    def share(self, model: torch.nn.Module) -> None:
        """Never: NoLayout."""
        raise NoLayout("the sampler is a process of its own")


class RemoteStream:
    """See Stream: one that the child decodes whether it is looked at or not."""

    def __init__(self, engine: EngineProcess, number: int) -> None:
        self.engine, self.number, self.in_batches = engine, number, False
        self.arrived: queue.SimpleQueue[list[TokenOutput]] = queue.SimpleQueue()
        self._num_open, self._counting = 0, threading.Lock()

    @property
    def busy(self) -> bool:
        """See Stream."""
        return self._num_open > 0

    def add(self, index: int, request: TokenRequest, params: SamplingParams) -> None:
        """See Stream."""
        self.add_all([(index, request, params)])

    def add_all(self, wanted: Sequence[Wanted]) -> None:
        """Several at once."""
        with self._counting:
            self._num_open += len(wanted)
        self.engine.send("add", self.number, list(wanted))

    def step(self, wait_s: float = WAIT_S) -> list[TokenOutput]:
        """See Stream: what has arrived since, waiting a moment for the first."""
        outputs: list[TokenOutput] = []
        with contextlib.suppress(queue.Empty):
            outputs += self.arrived.get(block=wait_s > 0, timeout=wait_s)
            while True:
                outputs += self.arrived.get_nowait()
        if not outputs:
            self.engine.require_alive()
        with self._counting:
            self._num_open -= len(outputs)
        return outputs
