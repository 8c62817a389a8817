"""What the made models share: an alphabet with its tokenizer, a small Llama, and learning from a teacher."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SLICE = 16  # sequences padded to one length
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")  # the first tokens of every alphabet, in this order
PAD, EOS, BOS = 0, 1, 2

Tokens = tuple[list[int], int]  # ids of a demonstration, and how many of them are prompt
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The tokens of a made model, and how text is cut into them."""

    tokens: tuple[str, ...]  # [V] SPECIAL first
    piece: str  # regular expression: the longest token at each place
    positions: int = 256  # longest sequence
    ids: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        if self.tokens[: len(SPECIAL)] != SPECIAL or len(set(self.tokens)) != len(self.tokens):
            raise ValueError(f"an alphabet begins with {', '.join(SPECIAL)} and names no token twice")
        object.__setattr__(self, "ids", {token: number for number, token in enumerate(self.tokens)})

    def encode(self, text: str) -> list[int]:
        """Token ids; KeyError for a character that the alphabet lacks."""
        return [self.ids[piece] for piece in re.findall(self.piece, text)]

    def demonstration(self, prompt: str, completion: str) -> Tokens:
        """A prompt (whatever is forced upon the completion included) and what the teacher writes after it."""
        question = [BOS, *self.encode(prompt)]
        return [*question, *self.encode(completion), EOS], len(question)

    def tokenizer(self) -> Any:
        """A tokenizer of transformers for this alphabet, with `<bos>` in front of a prompt."""
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

        tokenizer = Tokenizer(models.WordLevel(dict(self.ids), unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(self.piece), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return self._finished(tokenizer)

    def _finished(self, tokenizer: Any) -> Any:
        from tokenizers import processors
        from transformers import PreTrainedTokenizerFast

        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", BOS)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            eos_token="<eos>",
            bos_token="<bos>",
            unk_token="<unk>",
            clean_up_tokenization_spaces=False,
            model_max_length=self.positions,
        )

    def llama(self, hidden_size: int, num_layers: int, *, num_heads: int = 4, num_kv_heads: int = 2) -> Any:
        """An untrained Llama; embedding and head are not tied, so a sampler can be updated weight by weight.

        Heads need 32 or 64 dimensions for vLLM's CPU build. Not a Qwen2: for that model type transformers 5
        replaces the saved tokenizer by Qwen2's own.
        """
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(self.tokens),
                hidden_size=hidden_size,
                intermediate_size=2 * hidden_size,
                num_hidden_layers=num_layers,
                num_attention_heads=num_heads,
                num_key_value_heads=num_kv_heads,
                max_position_embeddings=self.positions,
                tie_word_embeddings=False,
                bos_token_id=BOS,
                eos_token_id=EOS,
                pad_token_id=PAD,
            )
        )


@dataclass(frozen=True, slots=True)
class WordAlphabet(Alphabet):
    """Tokens that are words: blanks divide them, and decoding joins them with one blank."""

    def tokenizer(self) -> Any:
        """A tokenizer of transformers for these words, with `<bos>` in front of a prompt."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        tokenizer = Tokenizer(models.WordLevel(dict(self.ids), unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return self._finished(tokenizer)


@contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """Seed torch and keep it to one thread, and leave both as they were.

    The operations are so small that a second thread costs more in waiting than it brings, and with one the
    weights do not depend on the number of cores.
    """
    num_threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)


def learn(
    policy: Any,
    next_batch: Callable[[float], Sequence[Tokens]],
    progress: Progress,
    *,
    num_steps: int,
    lr: float,
    slice_size: int = SLICE,
) -> None:
    """One step per batch, which is asked for with the share done; the rate rises for 20 steps, then falls."""
    optimizers = new_optimizers(policy)
    for step in range(num_steps):
        loss = backward(policy, next_batch(step / num_steps), slice_size=slice_size)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 20) * max(0.02, 1 - step / num_steps)
            optimizer.step()
            optimizer.zero_grad()
        if step % 10 == 9 or step + 1 == num_steps:
            progress(f"warm start {step + 1}/{num_steps}, loss {loss:.2f}", (step + 1) / num_steps)


def backward(policy: Any, batch: Sequence[Tokens], *, slice_size: int = SLICE) -> float:
    """Gradients of the mean loss per completion token; sequences of like length together, to pad little."""
    batch = sorted(batch, key=lambda item: len(item[0]))
    num_tokens = sum(len(ids) - num_prompt for ids, num_prompt in batch)
    total = 0.0
    for start in range(0, len(batch), slice_size):
        loss = slice_loss(policy, batch[start : start + slice_size]) / num_tokens
        torch.autograd.backward(loss)
        total += loss.item()
    return total


def slice_loss(policy: Any, batch: Sequence[Tokens]) -> Tensor:
    """Summed loss of the completions' tokens."""
    length = max(len(ids) for ids, _ in batch)
    input_ids = torch.tensor([ids + [PAD] * (length - len(ids)) for ids, _ in batch])  # [S, L]
    labels = torch.tensor([[-100] * n + ids[n:] + [-100] * (length - len(ids)) for ids, n in batch])  # [S, L]
    logits = policy(input_ids=input_ids.to(policy.device), use_cache=False).logits  # [S, L, V]
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(policy.device), reduction="sum"
    )


def new_optimizers(policy: Any) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between the layers, AdamW for the rest."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in policy.named_parameters():
        inner = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if inner else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def is_reserved(key: str, *, share: int = 3) -> bool:
    """Whether what has this key is for demonstrations alone: one in `share` of all, by their hash."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % share == 0
