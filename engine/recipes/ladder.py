"""The quickstart's task and starting model: sums and products on seven levels, taught by a mediocre teacher.

`problems` makes the rows, `model` makes a 0.6 M parameter model in about two minutes on one CPU core. The
teacher mostly blurts an answer, often wrong, and sometimes works it out, digit by digit, with slips:

    57+48=?<think>7+8+0=15;5+4+1=10</think>\\boxed{105}     worked out
    57+48=?<think></think>\\boxed{125}                      blurted

so the model starts out mostly blurting, and reinforcement learning is left to find that working it out pays.
Pairs of numbers are reserved for one side by their hash: no problem, in either order of its numbers, is ever
seen in a demonstration.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LEVELS = ("add2", "add3", "add4", "add5", "mul2", "mul3", "mul4")  # operation and digits
DEMO_WEIGHTS = {2: 0.36, 3: 0.30, 4: 0.20, 5: 0.14}  # by digits: the teacher likes easy ones
WORKS_OUT, GUESSES_RIGHT, SLIPS = 0.4, 0.3, 0.05  # the teacher's habits, as shares
SLIP_SIZES = {"+": (-2, -1, 1, 2), "*": (-10, -1, 1, 10)}
LARGEST_STEP = {"+": 19, "*": 89}  # 9+9+1 and 9*9+8

NAMED_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<think>", "</think>", "\\boxed{")
CHARACTERS = "0123456789+-*/=()., ;:<>?{}%\nabcdefghijklmnopqrstuvwxyz"
VOCABULARY = (*NAMED_TOKENS, *CHARACTERS, "<reserved0>", "<reserved1>")  # 64
TOKEN_IDS = {token: i for i, token in enumerate(VOCABULARY)}
PAD, EOS, BOS = (TOKEN_IDS[token] for token in ("<pad>", "<eos>", "<bos>"))
SLICE = 16  # sequences padded to one length
PIECE = r"<think>|</think>|\\boxed\{|[\s\S]"

Calculation = tuple[int, str, int]  # first number, "+" or "*", second number
Tokens = tuple[list[int], int]  # ids of a demonstration, and how many of them are prompt


def problems(*, seed: int, num_problems: int = 7000, levels: Sequence[str] = LEVELS) -> list[dict[str, str]]:
    """Rows {prompt, answer, level}: distinct problems in mixed order, equally many of each level.

    A level that has fewer gives all it has (mul2: about 480), so there may be less than `num_problems` rows.
    """
    if not levels or not set(levels) <= set(LEVELS):
        raise ValueError(f"levels = {levels}: expected some of {', '.join(LEVELS)}. Name only these.")
    rng = random.Random(f"ladder problems {seed}")
    rows = []
    for level in levels:
        wanted = num_problems // len(levels)
        drawn: set[Calculation] = set()
        for _ in range(20 * wanted):
            a, op, b = draw(level, rng)
            if not is_demonstrated(a, b) and (b, op, a) not in drawn:
                drawn.add((a, op, b))
            if len(drawn) == wanted:
                break
        rows += [{"prompt": prompt_of(*c), "answer": str(solve(*c)), "level": level} for c in sorted(drawn)]
    rng.shuffle(rows)
    return rows


def draw(level: str, rng: random.Random) -> Calculation:
    """A calculation of one level."""
    digits = int(level[3:])
    a = rng.randrange(10 ** (digits - 1), 10**digits)
    if level.startswith("mul"):
        return a, "*", rng.randint(2, 9)
    b = rng.randrange(10 ** (digits - 1 - rng.randint(0, 1)), 10**digits)
    return (a, "+", b) if rng.random() < 0.5 else (b, "+", a)


def is_demonstrated(a: int, b: int) -> bool:
    """Whether this pair of numbers, in either order, is reserved for demonstrations: a third of all are."""
    pair = f"{min(a, b)},{max(a, b)}".encode()
    return int.from_bytes(hashlib.blake2b(pair, digest_size=8).digest(), "big") % 3 == 0


def prompt_of(a: int, op: str, b: int) -> str:
    """The question, as the model reads it."""
    return f"{a}{op}{b}=?"


def solve(a: int, op: str, b: int) -> int:
    """The right answer."""
    return a + b if op == "+" else a * b


def demonstrations(rng: random.Random) -> Iterator[tuple[str, str]]:
    """What the teacher shows, without end: (prompt, completion after `<think>`)."""
    weights = [DEMO_WEIGHTS[int(level[3:])] for level in LEVELS]
    while True:
        calculation = draw(rng.choices(LEVELS, weights)[0], rng)
        if not is_demonstrated(calculation[0], calculation[2]):
            continue
        if rng.random() < WORKS_OUT:
            thought, answer = work_out(calculation, rng)
        else:
            thought, answer = "", guess(calculation, rng)
        yield prompt_of(*calculation), f"{thought}</think>\\boxed{{{answer}}}"


def work_out(calculation: Calculation, rng: random.Random) -> tuple[str, str]:
    """The teacher's steps, last digit first, and the answer they lead to; a slip is carried on."""
    a, op, b = calculation
    carry, digits, steps = 0, "", []
    for place in range(max(len(str(a)), len(str(b)))):
        x = a // 10**place % 10
        y = b // 10**place % 10 if op == "+" else b
        total = solve(x, op, y) + carry
        if rng.random() < SLIPS:
            total = min(max(total + rng.choice(SLIP_SIZES[op]), 0), LARGEST_STEP[op])
        steps.append(f"{x}{op}{y}+{carry}={total:02d}")
        carry, digits = total // 10, f"{total % 10}{digits}"
    return ";".join(steps), str(int(f"{carry}{digits}"))


def guess(calculation: Calculation, rng: random.Random) -> str:
    """The teacher's gut feeling: right now and then, else the right length with one or two digits redrawn."""
    answer = list(str(solve(*calculation)))
    if rng.random() >= GUESSES_RIGHT:
        for _ in range(rng.randint(1, 2)):
            place = rng.randrange(len(answer))
            answer[place] = str(rng.randint(0 if place else 1, 9))
    return "".join(answer)


def model(
    folder: Path,
    *,
    seed: int,
    progress: Callable[[str, float], None],
    num_steps: int = 600,
    batch_size: int = 64,
    lr: float = 6e-3,
    hidden_size: int = 128,
    num_layers: int = 4,
) -> None:
    """Write a model that has seen `num_steps` batches of demonstrations, with its tokenizer, to `folder`."""
    with seeded_torch(seed):
        policy = new_model(hidden_size, num_layers)
        rng = random.Random(f"ladder demonstrations {seed}")
        warm_start(policy, rng, progress, num_steps=num_steps, batch_size=batch_size, lr=lr)
    policy.save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)


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


def warm_start(
    policy: Any,
    rng: random.Random,
    progress: Callable[[str, float], None],
    *,
    num_steps: int,
    batch_size: int,
    lr: float,
) -> None:
    """Supervised learning on the completions of demonstrations."""
    shown = demonstrations(rng)

    def next_batch(done: float) -> list[Tokens]:
        return [tokens_of(*next(shown)) for _ in range(batch_size)]

    learn(policy, next_batch, progress, num_steps=num_steps, lr=lr)


def learn(
    policy: Any,
    next_batch: Callable[[float], Sequence[Tokens]],
    progress: Callable[[str, float], None],
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


def tokens_of(prompt: str, completion: str) -> Tokens:
    """Token ids of a demonstration, and how many of them are prompt."""
    question = [BOS, *(TOKEN_IDS[piece] for piece in re.findall(PIECE, f"{prompt}<think>"))]
    return [*question, *(TOKEN_IDS[piece] for piece in re.findall(PIECE, completion)), EOS], len(question)


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


def new_model(hidden_size: int, num_layers: int) -> Any:
    """An untrained Llama; embedding and head are not tied, so a sampler can be updated weight by weight.

    Not a Qwen2: for that model type transformers 5 replaces the saved tokenizer by Qwen2's own.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )


def new_tokenizer() -> Any:
    """One token per character, and one for each of `<think>`, `</think>` and `\\boxed{`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(dict(TOKEN_IDS), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "isolated")
    tokenizer.decoder = decoders.Fuse()
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
        model_max_length=256,
    )
