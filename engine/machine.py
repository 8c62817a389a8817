"""Environment of a training process, set before torch and vLLM are first imported."""

import logging
import os
import warnings

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


def prepare_process() -> None:
    """Set defaults for the libraries underneath; what the user set in the environment stays."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*SwigPy.*")
    for noisy in ("vllm", "transformers", "datasets", "filelock", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
