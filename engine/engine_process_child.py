"""Messages of a trainer -> samples, from an engine in this process: the other end of engine_process.py.

    python -m verigrad.engine.engine_process_child CONNECTION WEIGHTS MODULE

CONNECTION and WEIGHTS are file descriptors; MODULE, the engine's, is imported before there is work.

What the trainer asks for is read between two steps of decoding. What is finished goes out through a thread,
so that decoding never waits for a trainer that is busy. When the trainer is gone this process ends.
"""

import importlib
import os
import queue
import sys
import threading
import time
import traceback
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from verigrad.engine.machine import prepare_process

ANSWERED = ("open", "load", "lay_out", "holds", "adapter")  # messages whose sender waits
TELL_EVERY_S = 0.05  # how often the time spent decoding is told

Inbox = queue.SimpleQueue[tuple[Any, ...]]


class Host:
    """An engine, the streams open on it, and the two directions of the connection."""

    def __init__(self, engine: Any, connection: Any, inbox: Inbox, weights: int) -> None:
        self.engine, self.inbox, self.handle = engine, inbox, weights
        self.outbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.streams: dict[int, Any] = {}
        self.open: dict[int, ExitStack] = {}
        self.shared: Any = None
        # Weights without a version are not used: what they sample would be called by that of the old ones.
        self.untold = False
        self.busy_s, self.told = 0.0, 0.0
        threading.Thread(target=self._write, args=(connection,), daemon=True).start()

    def _write(self, connection: Any) -> None:
        while True:
            try:
                connection.send(self.outbox.get())
            except OSError:
                os._exit(0)

    def run(self) -> None:
        """Serve until told to stop."""
        while True:
            busy = [number for number, stream in self.streams.items() if stream.busy]
            while self.untold or not (busy and self.inbox.empty()):
                message = self.inbox.get()
                if message[0] == "stop":
                    return
                self.take(message)
                busy = [number for number, stream in self.streams.items() if stream.busy]
            for number in busy:
                start = time.perf_counter()
                outputs = self.streams[number].step()
                self.busy_s += time.perf_counter() - start
                if outputs or self.busy_s - self.told > TELL_EVERY_S:
                    self.told = self.busy_s
                    self.outbox.put(("outputs", number, outputs, self.busy_s))

    def take(self, message: tuple[Any, ...]) -> None:
        """Do what one message says. What is waited for is answered; any other failure ends the process."""
        from verigrad.engine.rollout import SamplerError

        kind, *given = message
        try:
            getattr(self, f"on_{kind}")(*given)
        except SamplerError as error:
            if kind not in ANSWERED:
                raise
            self.outbox.put(("refused", str(error)))

    def on_open(self, number: int, lasting: bool) -> None:
        """A stream, called by this number."""
        stack = ExitStack()
        self.streams[number] = stack.enter_context(self.engine.stream(lasting=lasting))
        self.open[number] = stack
        self.outbox.put(("done",))

    def on_add(self, number: int, wanted: list[tuple[Any, ...]]) -> None:
        """More samples for a stream."""
        for one in wanted:
            self.streams[number].add(*one)

    def on_close(self, number: int) -> None:
        """End a stream, and drop what it has not finished."""
        self.open.pop(number).close()
        del self.streams[number]
        self.outbox.put(("closed", number))

    def on_block(self, places: Any, size: int) -> None:
        """There is a block, and this is where each weight lies in it."""
        from verigrad.engine.engine_process_weights import SharedWeights

        self.shared = SharedWeights(self.handle, places, size)

    def on_lay_out(self, shapes: Any) -> None:
        """See VllmEngine.lay_out."""
        import torch

        from verigrad.engine.rollout import SamplerError
        from verigrad.engine.weight_sharing import NoLayout

        lay_out = getattr(self.engine, "lay_out", None)
        if lay_out is None:
            raise SamplerError("the sampler is no vLLM engine")
        try:
            lay_out(shapes and {name: torch.Size(shape) for name, shape in shapes.items()})
        except NoLayout as error:
            raise SamplerError(str(error)) from error
        self.outbox.put(("done",))

    def on_holds(self) -> None:
        """Whether the engine computes with the weights in the block; else it is refused."""
        from verigrad.engine.rollout import SamplerError

        if not self.engine.layout.holds(self.shared.read()):
            raise SamplerError("the engine computes with other weights")
        self.outbox.put(("done",))

    def on_load(self) -> None:
        """Take the weights that are in the block."""
        self.engine.load_weights(self.shared.read())
        self.outbox.put(("done",))
        self.untold = True

    def on_adapter(self, folder: str) -> None:
        """Use the adapter in the folder."""
        from verigrad.engine.rollout import SamplerError

        if self.streams:
            raise SamplerError(f"{folder}: what is half sampled would go on with the old adapter")
        self.engine.load_adapter(Path(folder))
        self.outbox.put(("done",))
        self.untold = True

    def on_version(self, version: int) -> None:
        """How the weights are called."""
        self.engine.version, self.untold = version, False


def read(connection: Any, inbox: Inbox) -> None:
    """Put what comes into the inbox, until the trainer is gone; then end, whatever the engine is doing."""
    while True:
        try:
            inbox.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)


def main(connection: Any, weights: int, module: str) -> None:
    """Build the engine that the first message describes, and serve."""
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=read, args=(connection, inbox), daemon=True).start()
    importlib.import_module(module)
    cfg, folder, eos_ids, seed = inbox.get()
    from verigrad.engine.config import ConfigError
    from verigrad.engine.rollout_backends import build_engine

    try:
        engine = build_engine(cfg, folder, eos_ids=eos_ids, seed=seed)
    except ConfigError as error:
        connection.send(("wrong", str(error)))
        return
    with engine.stream() as stream:
        in_batches = stream.in_batches
    connection.send(("ready", in_batches))
    host = Host(engine, connection, inbox, weights)
    try:
        host.run()
    except BaseException as error:
        traceback.print_exc()
        host.outbox.put(("failed", f"{type(error).__name__}: {error}"))
        time.sleep(0.5)  # for the thread that writes
        os._exit(1)
    os._exit(0)  # threads and the engine's own may wait for each other; there is nothing left to save


if __name__ == "__main__":
    prepare_process()
    main(Connection(int(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
