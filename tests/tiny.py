"""What several test files build: a tiny model folder, a small task, rollouts written out by hand."""

import functools
import tempfile
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from verigrad.engine.config import Config, resolve
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
        "policy": {"model": "unused", "device": "cpu", "tokens_per_batch": 512},
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
