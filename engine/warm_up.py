"""What a run will need, imported in a thread while its main thread waits for other processes."""

import contextlib
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from verigrad.engine import trace_file
from verigrad.engine.backends import vllm_installed
from verigrad.engine.config import Config


@contextmanager
def importing_engine(cfg: Config) -> Iterator[None]:
    """Import vLLM, where it samples in this process, while the block runs; over when the block is left.

    Nothing but a block that itself imports little: two threads that import each other's modules could see
    one half made. What goes wrong here goes wrong again, and is told of, when the engine is built.
    """
    elsewhere = cfg.rollout.backend == "transformers" or cfg.rollout.max_staleness > 0
    if elsewhere or not vllm_installed():
        yield
        return
    thread = threading.Thread(target=_import, args=("verigrad.engine.rollout_vllm",), daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _import(name: str) -> None:
    with trace_file.span("import of the engine", "imports"), contextlib.suppress(Exception):
        importlib.import_module(name)
