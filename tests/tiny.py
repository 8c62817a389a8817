"""What several test files build: a tiny model folder, a small task, rollouts written out by hand."""

import functools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from verigrad.engine.config import Config, resolve
from verigrad.engine.prefixes import layout_of
from verigrad.engine.schema import Rollout, ScoredGroup
from verigrad.verifiers.base import Problem, Verdict

CHARACTERS = ["<pad>", "<eos>", "<bos>", *"0123456789+-*/=()?., abcdefghijklmnopqrstuvwxyz{}\\"]


def tokenizer():
    words = {c: i for i, c in enumerate(CHARACTERS)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


def new_model(*, tied=False, seed=0, dropout=0.0):
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=tied, eos_token_id=1,
        bos_token_id=2, pad_token_id=0, initializer_range=0.2, attention_dropout=dropout,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


@functools.cache
def model_folder(*, tied=False, seed=0, dropout=0.0):
    folder = Path(tempfile.mkdtemp(prefix="verigrad-tiny-"))
    new_model(tied=tied, seed=seed, dropout=dropout).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def config(**sections):
    """A resolved Config; sections as dicts."""
    base = {
        "policy": {"model": "unused", "device": "cpu", "tokens_per_batch": 512, "update_dtype": "same"},
        "data": {"path": "unused"},
        "rollout": {"max_prompt_tokens": 64, "max_tokens": 64, "group_size": 4, "groups_per_step": 4,
                    "kv_cache_gb": 0.25},
        "optim": {"lr": 1e-2},
    }  # fmt: skip
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return resolve(Config.model_validate(base))


def rollout(prompt, completion, *, logprobs=None, finish="stop", version=0):
    num_prompt, num = len(prompt), len(completion)
    values = [-1.0] * num if logprobs is None else list(logprobs)
    return Rollout(
        token_ids=[*prompt, *completion], loss_mask=[False] * num_prompt + [True] * num,
        logprobs=[0.0] * num_prompt + values, policy_versions=[-1] * num_prompt + [version] * num,
        text="", finish_reason=finish, seed=0,
    )  # fmt: skip


def whole(length):
    """The layout of one sequence."""
    return layout_of(torch.arange(length), torch.tensor([0, length]))


def random_groups(*, num=4, size=4, seed=0):
    """Scored groups with ragged random rollouts; logprobs are made up."""
    g = torch.Generator().manual_seed(seed)

    def draw(n):
        return torch.randint(3, 60, (n,), generator=g).tolist()

    groups = []
    for index in range(num):
        prompt = draw(3 + index)
        lengths = torch.randint(2, 20, (size,), generator=g).tolist()
        rollouts = [
            rollout(prompt, draw(n), logprobs=(-4 * torch.rand(n, generator=g)).tolist()) for n in lengths
        ]
        advantages = torch.randn(size, generator=g).tolist()
        verdicts = [Verdict.right() if a > 0 else Verdict.wrong() for a in advantages]
        groups.append(ScoredGroup(Problem(str(index), "p", "a"), rollouts, verdicts, advantages))
    return groups


RECIPE = """\
[train]
num_steps = 5
num_minibatches = 2
max_nonfinite_steps = 2

[run]
folder = "run"
save_every = 2

[data]
path = "sums.jsonl"
num_eval = 6

[verifier]
name = "verifiers_of_tests.py:{verifier}"

[policy]
model = "{model}"
device = "cpu"
tokens_per_batch = 1024

[rollout]
backend = "{backend}"
group_size = 4
groups_per_step = 4
max_prompt_tokens = 250
max_tokens = 8
max_seqs = 16

[optim]
lr = 1e-3

[eval]
every = 2
num_samples = 2
temperature = 0.7
pass_k = [1, 2]
"""

VERIFIERS = '''\
"""Verifiers that a model of random weights can please."""
import time
from verigrad.verifiers.base import verifier


@verifier("low_first", runs="inline", shaping=True)
def low_first(text):
    """Right if the first character comes early among the tiny tokenizer's."""
    return text[:1] in "0123456789+-*/=()?., abc"


@verifier("in_worker", shaping=True)
def in_worker(text):
    """The same in a worker process, now and then slower."""
    time.sleep(0.02 * (len(text) % 3 == 0))
    return text[:1] in "0123456789+-*/=()?., abc"


@verifier("never_right", runs="inline")
def never_right(text):
    return False


@verifier("always_raises", runs="inline")
def always_raises(text):
    raise KeyError("a bug of the verifier")


@verifier("wants_hint", runs="inline")
def wants_hint(text, hint):
    return hint in text
'''


def write_recipe(folder, *, verifier="low_first", backend="transformers", shared_prefix=""):
    """A whole recipe in a folder, to be run from there: 5 steps of a random model, seconds in all."""
    rows = [
        {
            "prompt": f"{shared_prefix}{a}+{b}=",
            "answer": str(a + b),
            "kind": "even" if (a + b) % 2 == 0 else "odd",
        }
        for a in range(6)
        for b in range(6)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "verifiers_of_tests.py").write_text(VERIFIERS)
    recipe = folder / "tiny.toml"
    text = RECIPE.replace("{verifier}", verifier).replace("{backend}", backend)
    recipe.write_text(text.replace("{model}", model_folder()))
    return recipe


def start_cli(*arguments, folder, **popen):
    """The real `verigrad` in a process of its own."""
    command = [sys.executable, "-m", "verigrad.engine.cli", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, **pipes, **popen)


def run_cli(*arguments, folder, timeout=300):
    """Run it to its end: (exit status, stdout, stderr)."""
    process = start_cli(*arguments, folder=folder)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


class Forked:
    """`verigrad ARGUMENTS` in a process forked from one that has imported torch already: seconds."""

    def __init__(self, *arguments, folder):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["verigrad.engine.train", "matplotlib.pyplot"])
        self.printed = folder / f"printed-{time.monotonic_ns()}.txt"
        words = [str(argument) for argument in arguments]
        given = (words, str(folder), str(self.printed))
        self.process = context.Process(target=_run_forked, args=given, daemon=True)
        self.process.start()
        self.pid = self.process.pid

    def wait(self, timeout=120):
        """(exit status, everything printed)."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s: {self.text()}"
        return self.process.exitcode, self.text()

    def text(self):
        return self.printed.read_text() if self.printed.exists() else ""

    def running(self):
        return self.process.is_alive()

    def kill(self):
        self.process.kill()
        self.process.join()


def _run_forked(words, folder, printed):
    os.chdir(folder)
    handle = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from verigrad.engine import cli

    sys.exit(cli.guarded(words))
