"""A judge's model and a Unix socket -> vLLM's OpenAI server on it: `python -m ... SOCKET OPTIONS`.

Started once for all workers of a verifier by verifiers/services.py; OPTIONS is JSON: model (a folder, a hub
id or a maker), model_options, memory_gb. Beside the socket it writes the model's special tokens, for whoever
asks to break them up in what is judged. It becomes the server by exec.
"""

import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from verigrad.engine import machine
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.failures import WorkError
from verigrad.verifiers.judged import SPECIAL_TOKENS

LAUNCHER = "vllm.entrypoints.launchers.api_server.entry"  # what `vllm serve` runs
PLAIN_TEMPLATE = "{{ bos_token or '' }}{{ messages[-1]['content'] }}\nReply:"
"""For a model without a chat template: its beginning, the question, and where its reply begins."""


def main() -> int:
    """Serve; returns only when that cannot be."""
    socket, options = sys.argv[1], json.loads(sys.argv[2])
    machine.prepare_process()
    try:
        command = command_of(socket, options)
    except (ConfigError, WorkError) as error:
        line = " ".join(str(error).split())
        for theirs, ours in (("policy.model", "model"), ("policy.options", "model_options")):
            line = line.replace(theirs, ours)  # as the verifier calls its options
        print(f"verigrad: {line}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    os.execv(command[0], command)


def command_of(socket: str, options: dict[str, Any]) -> list[str]:
    """The server's command line; makes or fetches the model. ConfigError where there is none."""
    from verigrad.engine import model_files
    from verigrad.engine.backends import vllm_installed

    if not vllm_installed():
        raise ConfigError("a judge given by `model` is served by vLLM, which is not installed; give a `url`")
    cfg = Config.model_validate(
        {
            "policy": {"model": options["model"], "options": options["model_options"]},
            "rollout": {"max_prompt_tokens": 1, "max_tokens": 1},
        }
    )
    model = model_files.fetch(cfg)
    special = json.dumps(model_files.special_tokens(model.tokenizer))
    Path(socket).with_name(SPECIAL_TOKENS).write_text(special)
    command = [
        sys.executable, "-m", *serving(str(model.folder)),
        "--served-model-name", "judge", "--uds", socket, "--disable-log-stats",
        "--disable-uvicorn-access-log",
        "--generation-config", "vllm", "--max-logprobs", "20",
    ]  # fmt: skip
    if not getattr(model.tokenizer, "chat_template", None):
        template = Path(socket).with_name("plain.jinja")  # in the service's own folder, which goes with it
        template.write_text(PLAIN_TEMPLATE)
        command += ["--chat-template", str(template)]
    import torch

    # The cache has a size of its own, so that the trainer and its sampler find the device as they left it.
    command += ["--kv-cache-memory-bytes", str(int(options["memory_gb"] * 2**30))]
    if torch.cuda.is_available():
        return [*command, "--gpu-memory-utilization", "0.05"]  # what must be free at the start
    return [*command, "--enforce-eager", "--dtype", "float32"]


def serving(model: str) -> list[str]:
    """The module that serves a model, and how it is told which: `vllm serve` wherever that starts.

    vLLM's command line asks for the version of the package `vllm`, and so does not start where the CPU build
    is installed under the name of its own; what `serve` runs does.
    """
    if find_distribution("vllm"):
        return ["vllm.entrypoints.cli.main", "serve", model]
    return [LAUNCHER, "--model", model]


def find_distribution(name: str) -> bool:
    """Whether a package of this name is installed."""
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main())
