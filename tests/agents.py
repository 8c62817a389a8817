"""What tests of episodes build: a tokenizer that spells calls, a scripted engine, sandboxes in memory."""

import contextlib
import functools
import io
import json
import tarfile
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tests.tiny import CHARACTERS
from verigrad.engine.rollout import TokenOutput
from verigrad.engine.settings import AgentConfig, PromptsConfig
from verigrad.engine.tool_prompts import ToolPrompter
from verigrad.sandboxes.base import Backend, ExecResult, ProgramFault, Sandbox, SandboxLost, SandboxSpec
from verigrad.sandboxes.pool import SandboxPool, SandboxSettings

PAD, EOS, BOS = 0, 1, 2
MORE = "<>_|\n\"':;[]#!ABCDEFGHIJKLMNOPQRSTUVWXYZ`$&@"

TRUSTED = 'backend = "local_process"\ntrusted = true'  # the lines of [sandbox]

CHATML = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}<|im_start|>tool
{{ m.content }}<|im_end|>
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}
{%- for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tokenizer(*, chat=None):
    """One token per character, and ChatML's marks as special tokens where there is a chat template."""
    words = {c: i for i, c in enumerate([*CHARACTERS, *MORE])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    tok = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    if chat:
        tok.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tok.chat_template = chat
    return tok


def prompter(*, chat=None, prompts=None, **agent):
    tok = tokenizer(chat=chat)
    eos = [EOS, *(tok.convert_tokens_to_ids(["<|im_end|>"]) if chat else [])]
    settings = AgentConfig(**{"tools": ["shell"], "explain": bool(chat), **agent})
    return ToolPrompter(tok, PromptsConfig(**(prompts or {})), settings, eos_ids=eos)


@functools.cache
def calling_model(command="echo 12", *, prompts="abc"):
    """The folder of a model that mostly runs this command twice, then answers 12, if it knows the prompt."""
    tok, made = tokenizer(), f"<tool>shell {command}</tool>"
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tok), hidden_size=128, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
        tie_word_embeddings=False, eos_token_id=1, bos_token_id=2, pad_token_id=0,
    ))  # fmt: skip
    texts = [f"{p}{made}<result>12</result>{made}<result>12</result>12<eos>" for p in prompts]
    batch = torch.tensor([tok.encode(text, add_special_tokens=False) for text in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = Path(tempfile.mkdtemp(prefix="verigrad-agent-"))
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


class Scripted:
    """An engine whose model is a function: the conversation so far, as text -> the next turn, as text.

    A turn ends with the end-of-sequence token unless it ends with a stop string or `...`, which means that it
    was cut off at its limit. `wide` is the most turns that were decoded at once.
    """

    def __init__(self, tok, model, *, in_batches=False, eos=EOS):
        self.tok, self.model, self.in_batches, self.eos = tok, model, in_batches, eos
        self.requests = []
        self.wide = 0

    @contextlib.contextmanager
    def stream(self):
        self.waiting = deque()
        yield self

    @property
    def busy(self):
        return bool(self.waiting)

    def add(self, index, request, params):
        self.requests.append((index, request, params))
        self.waiting.append((index, request, params))

    def step(self):
        self.wide = max(self.wide, len(self.waiting))
        batch = [self.waiting.popleft() for _ in range(len(self.waiting) if self.in_batches else 1)]
        time.sleep(0.001)
        return [self.output(*one) for one in batch]

    def output(self, index, request, params):
        said = self.model(self.tok.decode(request.prompt_ids, skip_special_tokens=False))
        cut = said.endswith("...")
        ids = self.tok.encode(said.removesuffix("..."), add_special_tokens=False)
        if not cut and not any(stop in said for stop in params.stop):
            ids.append(self.eos)
        reason = "length" if cut or len(ids) > params.max_tokens else "stop"
        ids = ids[: params.max_tokens]
        return TokenOutput(index, ids, [-0.5 - 0.001 * i for i in range(len(ids))], reason)


class Memory(Backend):
    """Sandboxes that are a dict of files and a shell of a few words; counts how many are open."""

    name, promises = "memory", "nothing"

    def __init__(self):
        self.num_open = self.num_resets = 0
        self.lock = threading.Lock()

    def unavailable(self, options):
        return None

    def open(self, **options):
        with self.lock:
            self.num_open += 1
        return MemoryBox(self)


class MemoryBox(Sandbox):
    backend = "memory"

    def __init__(self, owner):
        self.owner, self.files, self.closed = owner, {}, False

    def exec(self, command, *, stdin=b"", limits=None, env=None):
        out, status = [], 0
        for line in command[-1].split(";"):
            words = line.split()
            if words[:1] == ["echo"]:
                out.append(" ".join(words[1:]))
            elif words[:1] == ["cat"]:
                out.append(self.files.get(words[1], b"no such file").decode())
            elif words[:1] == ["put"]:
                self.files[words[1]] = " ".join(words[2:]).encode()
            elif words[:1] == ["sleep"]:
                time.sleep(min(float(words[1]), limits.wall_s))
                if float(words[1]) > limits.wall_s:
                    return ExecResult(
                        "wall_time", None, b"", b"", limits.wall_s, detail="killed at its limit"
                    )
            elif words[:1] == ["lose"]:
                raise SandboxLost("the engine is gone")
            else:
                status = 1
        return ExecResult("exited", status, "\n".join(out).encode(), b"", 0.0)

    def start(self, command, *, limits=None, env=None):
        raise AssertionError("episodes run commands to their end")

    def write_file(self, path, data, *, executable=False):
        if path.startswith("/"):
            raise ValueError(f"{path} is outside")
        self.files[path] = data

    def read_file(self, path, *, max_bytes=1 << 20):
        if path not in self.files:
            raise ProgramFault(f"no file {path}")
        return self.files[path]

    def save(self, paths=(".",), *, max_bytes=16 << 20):
        if sum(map(len, self.files.values())) > max_bytes:
            raise ProgramFault(f"more than {max_bytes} bytes")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, data in sorted(self.files.items()):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return packed.getvalue()

    def load(self, archive):
        self.files.update(files_in(archive))

    def reset(self):
        self.owner.num_resets += 1
        self.files = {}

    def close(self):
        if not self.closed:
            self.closed = True
            with self.owner.lock:
                self.owner.num_open -= 1


def files_in(archive):
    """Name -> content of a snapshot."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


MEMORY = Memory()


def memory_pool(*, size=4, retries=1):
    """A pool of sandboxes in memory."""
    return SandboxPool(SandboxSettings(SandboxSpec("tests.agents:MEMORY"), retries, 1.0), size=size)


def call(command, tool="shell"):
    """A call as ChatML's template here writes it."""
    return f"<tool_call>{json.dumps({'name': tool, 'arguments': {'command': command}})}</tool_call>"
