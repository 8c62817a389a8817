"""Environment of a training process, set before torch and vLLM are first imported."""

import ctypes
import logging
import os
import sys
import warnings
from pathlib import Path

QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process: its step loop is ours
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # pinning would also pin the trainer and the verifier's workers
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads starve the workers on a small machine
    "KMP_BLOCKTIME": "0",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
KEPT_BYTES = 2**30  # blocks up to this size, and as much of them as were freed, stay with the process


def prepare_process() -> None:
    """Set defaults for the libraries underneath; what the user set in the environment stays."""
    keep_freed_memory()
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*SwigPy.*")
    for noisy in ("vllm", "transformers", "datasets", "filelock", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, on a machine that computes on its CPU; whether it was told so.

    Activations come and go by the hundred megabytes each step. By default each goes back to the system and is
    cleared page by page when it is asked for again, about 7% of a step's time. A machine with a GPU keeps its
    activations there, and wants the memory back that loading a model took.
    """
    if sys.platform != "linux" or Path("/dev/nvidiactl").exists():
        return False
    if any(name.startswith("MALLOC_") for name in os.environ):  # the user's own choice
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    mallopt(M_ARENA_MAX, 1)  # one store for all threads: what one frees the next may take
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BYTES) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
