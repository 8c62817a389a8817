"""A judge for small talk: a tiny model taught to answer the questions that `verigrad label` asks.

What it learns from is in small_talk_judged.py. It learns in two parts. First to read: which word of an answer
is a fault, how many there were so far, which of two answers it stands in, and what comes next. Then to judge,
from whole questions. Both have more to say than one word a question: heads on the inner layers, thrown away
at the end, are taught the faults, their counts, and what each answer is worth by each principle.
"""

import itertools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from verigrad.engine.recipes.small_talk_gold import PADDING, PROPERTIES, RUDE
from verigrad.engine.recipes.small_talk_judged import (
    ATTACKS,
    PRINCIPLES,
    drawn,
    shown,
    shown_prompts,
    worth_by,
)
from verigrad.engine.recipes.warm_start import (
    BOS,
    EOS,
    PAD,
    SPECIAL,
    WordAlphabet,
    new_optimizers,
    seeded_torch,
)
from verigrad.verifiers import judge_prompts
from verigrad.verifiers.judge_base import Question

__maker_sources__ = (
    "verigrad.engine.recipes.small_talk",
    "verigrad.engine.recipes.small_talk_gold",
    "verigrad.engine.recipes.small_talk_judged",
    "verigrad.engine.recipes.warm_start",
    "verigrad.verifiers.judge_prompts",
)

PIECE = r"[A-Za-z]+|[0-9]{2}|\S"
DIVIDER = re.compile(r"#\d{6} (.*)")
MOST, BINS = 8, 10  # counts of faults are told up to 7, worths in tenths
SLICE = 16  # sequences padded to one length
THINGS = tuple(PROPERTIES)
NONE = -100  # a label that is not learned
Progress = Callable[[str, float], None]


class JudgeAlphabet(WordAlphabet):
    """Words, pairs of digits and single characters; blanks divide them, and decoding joins with one."""

    def tokenizer(self) -> Any:
        """A tokenizer of transformers that cuts what is no word of ours into characters."""
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        known = "|".join(
            sorted((t for t in self.tokens[len(SPECIAL) :] if t.isalpha()), key=len, reverse=True)
        )
        pieces = rf"\b(?:{known})\b|[0-9]{{2}}|\S"
        tokenizer = Tokenizer(models.WordLevel(dict(self.ids), unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(pieces), "isolated")]
        )
        return self._finished(tokenizer)


def new_alphabet() -> JudgeAlphabet:
    """Every word of the questions, of the language and of the orders; numbers; single characters."""
    some = itertools.islice(shown(random.Random("small talk judge alphabet")), 300)
    texts = [*(f"{question.text} {reply}" for question, reply in some), *ATTACKS, judge_prompts.PLAIN_ENDING]
    words: dict[str, None] = {}
    for text in (*texts, *PROPERTIES, *PROPERTIES.values(), *RUDE, *PADDING):
        words |= dict.fromkeys(re.findall(PIECE, text))
    words |= dict.fromkeys([*(f"{n:02d}" for n in range(100)), *map(chr, range(33, 127))])
    return JudgeAlphabet((*SPECIAL, *sorted(words)), PIECE, positions=512)


# What the inner layers learn -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lesson:
    """One question as tokens, with a label for every head at every token; NONE where there is none."""

    ids: list[int]  # [L]
    said: list[int]  # [L] the token itself where it is to be predicted
    fault: list[int]  # [L] 0 no fault, 1 wrong property, 2 rude, 3 padding
    place: list[int]  # [L] 0 the only answer, 1 the first, 2 the second
    counts: list[list[int]]  # [L, 3] faults of each kind in this answer so far
    before: list[int]  # [L] in the request: which thing stands before this one
    coming: list[int]  # [L] in an answer: which thing of the request comes after the one told last
    worths: list[list[int]]  # [L, 12] from the end on: each answer's worth by each principle; the better


def lesson(alphabet: WordAlphabet, question: Question, reply: str | None) -> Lesson:
    """The labels of a question; without a reply, the answers in it are what is predicted."""
    text = question.text if reply is None else f"{question.text}{judge_prompts.PLAIN_ENDING}"
    ids, num_prompt = alphabet.demonstration(text, reply or "")
    made = Lesson(
        ids=ids,
        said=[NONE] * num_prompt + ids[num_prompt:] if reply is not None else [NONE] * len(ids),
        fault=[NONE] * len(ids),
        place=[NONE] * len(ids),
        counts=[[NONE] * 3 for _ in ids],
        before=[NONE] * len(ids),
        coming=[NONE] * len(ids),
        worths=[[NONE] * 12 for _ in ids],
    )
    at, title, request, worths = 1, "", "", list[list[float]]()
    for line in question.text.split("\n"):
        length, divider = len(alphabet.encode(line)), DIVIDER.fullmatch(line)
        if divider:
            title = divider[1]
        elif title == "request":
            request = line
            label_request(made, request, at)
        elif title.startswith("answer"):
            worths += label_answer(made, line, request, at, title, alone=reply is None)
        at += length
        if title == "end":
            break
    if reply is not None and question.kind == "revision":
        label_coming(made, reply, request, num_prompt)
    if title == "end" and worths and all(worths):
        for place in range(at - 1, len(ids)):
            made.worths[place] = worth_labels(worths)
    return made


def label_answer(
    made: Lesson, line: str, request: str, at: int, title: str, *, alone: bool
) -> list[list[float]]:
    """Put the labels of an answer where it stands; returns its worth by each principle, none if attacked."""
    try:
        worth = [worth_by(line, request, principle) for principle in PRINCIPLES]
    except AssertionError:
        return [[]]
    label_coming(made, line, request, at)
    counts, thing = [0, 0, 0], ""
    for place, word in enumerate(line.split(), at):
        thing = word if word in PROPERTIES else thing
        wrong = word in PROPERTIES.values() and PROPERTIES.get(thing) != word
        fault = 2 if word in RUDE else 3 if word in PADDING else int(wrong)
        if fault:
            counts[fault - 1] += 1
        made.fault[place], made.counts[place] = fault, [min(n, MOST - 1) for n in counts]
        made.place[place] = {"answer": 0, "answer 1": 1, "answer 2": 2}[title]
        if alone:
            made.said[place] = made.ids[place]
    return [worth]


def label_request(made: Lesson, request: str, at: int) -> None:
    """Of each thing asked for, which stands before it."""
    things = request.split()[1:]
    for place in range(len(things)):
        at_thing = at + 2 + place  # "tell", ":" and a token for each thing
        made.before[at_thing] = THINGS.index(things[place - 1]) if place else len(THINGS)


def label_coming(made: Lesson, answer: str, request: str, at: int) -> None:
    """At each word of an answer, the thing asked for after the one told last; the first before any is."""
    things, told = request.split()[1:], 0
    for place, word in enumerate(answer.split(), at):
        if word in things:
            told = things.index(word) + 1
        made.coming[place] = THINGS.index(things[told]) if told < len(things) else len(THINGS)


def worth_labels(worths: Sequence[Sequence[float]]) -> list[int]:
    """The first answer's worths, the second's, and which is better: 0 the first, 1 the second, 2 neither."""
    labels = [NONE] * 12
    for number, worth in enumerate(worths):
        labels[4 * number : 4 * number + 4] = [round((BINS - 1) * value) for value in worth]
    if len(worths) == 2:
        labels[8:] = [0 if a > b else 1 if a < b else 2 for a, b in zip(*worths, strict=True)]
    return labels


class Heads(nn.Module):
    """What the first three layers are asked while they learn."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.fault, self.place = nn.Linear(hidden_size, 4), nn.Linear(hidden_size, 3)
        self.before, self.coming = nn.Linear(hidden_size, 17), nn.Linear(hidden_size, 17)
        self.counts, self.worths = nn.Linear(hidden_size, 3 * MOST), nn.Linear(hidden_size, 8 * BINS + 12)

    def loss(self, layers: Sequence[Tensor], lessons: Sequence[Lesson]) -> Tensor:
        """Summed mean losses of the heads on the hidden states [S, L, H] of each layer."""
        length = layers[0].shape[1]

        def labels(values: Sequence[Sequence[Any]], empty: Any) -> Tensor:
            return torch.tensor([[*each, *([empty] * (length - len(each)))] for each in values])

        worths = labels([each.worths for each in lessons], [NONE] * 12)  # [S, L, 12]
        told = self.worths(layers[3])
        worth, better = (
            told[..., : 8 * BINS].unflatten(-1, (8, BINS)),
            told[..., 8 * BINS :].unflatten(-1, (4, 3)),
        )
        parts = [
            (self.before(layers[1]), labels([each.before for each in lessons], NONE)),
            (self.coming(layers[2]), labels([each.coming for each in lessons], NONE)),
            (self.fault(layers[1]), labels([each.fault for each in lessons], NONE)),
            (self.place(layers[1]), labels([each.place for each in lessons], NONE)),
            (
                self.counts(layers[2]).unflatten(-1, (3, MOST)),
                labels([e.counts for e in lessons], [NONE] * 3),
            ),
            (worth, worths[..., :8]),
            (better, worths[..., 8:]),
        ]
        losses = []
        for logits, wanted in parts:
            there = wanted != NONE
            if there.any():
                losses.append(cross_entropy(logits[there], wanted[there]))
        return torch.stack(losses).sum() if losses else layers[0].sum() * 0.0


# The model -------------------------------------------------------------------------------------------------


def model(
    folder: Path,
    *,
    seed: int,
    progress: Progress,
    num_reading_steps: int = 140,
    num_steps: int = 320,
    lr: float = 8e-3,
    hidden_size: int = 64,
) -> None:
    """Write a judge that has learned to read in so many steps, and to judge in so many more."""
    alphabet = new_alphabet()
    with seeded_torch(seed):
        policy = new_model(alphabet, hidden_size)
        heads = Heads(hidden_size)
        optimizers = [*new_optimizers(policy), torch.optim.AdamW(heads.parameters(), weight_decay=0.0)]
        rng = random.Random(f"small talk judge {seed}")
        pairs, whole = unasked(rng), shown(rng)
        total = num_reading_steps + num_steps
        for step in range(total):
            reading = step < num_reading_steps
            if reading:
                done = 0.7 * step / num_reading_steps
                lessons = [lesson(alphabet, next(pairs), None) for _ in range(48)]
            else:
                done = (step - num_reading_steps) / num_steps
                lessons = [lesson(alphabet, *next(whole)) for _ in range(32)]
            loss = backward(policy, heads, lessons, guided=1.0 if reading else 1 - done)
            rate = lr * min(1.0, (step + 1) / 20) if reading else 0.75 * lr
            update(optimizers, [*policy.parameters(), *heads.parameters()], rate * max(0.02, 1 - done))
            if step % 20 == 19 or step + 1 == total:
                progress(f"judge {step + 1}/{total}, loss {loss:.2f}", (step + 1) / total)
    policy.save_pretrained(folder)
    alphabet.tokenizer().save_pretrained(folder)


def new_model(alphabet: WordAlphabet, hidden_size: int) -> Any:
    """An untrained Llama of four layers, with four heads of 32 dimensions however small it is."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(alphabet.tokens),
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=alphabet.positions,
            tie_word_embeddings=False,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )


def unasked(rng: random.Random) -> Any:
    """Requests with two answers each, and no question, without end."""
    decks = shown_prompts()
    while True:
        prompt = rng.choice(rng.choice(decks))
        fence = f"#{rng.randrange(10**6):06d}"
        texts = (("request", prompt), ("answer 1", drawn(prompt, rng)), ("answer 2", drawn(prompt, rng)))
        yield Question("pair", "\n".join([*(f"{fence} {t}\n{text}" for t, text in texts), f"{fence} end"]))


def backward(policy: Any, heads: Heads, lessons: Sequence[Lesson], *, guided: float) -> float:
    """Gradients of the mean loss, each reply by the root of its length; returns the replies' part of it."""
    lessons = sorted(lessons, key=lambda each: len(each.ids))
    weights = {id(each): sum(token != NONE for token in each.said) for each in lessons}
    total_weight = sum(num**0.5 for num in weights.values())
    total = 0.0
    for start in range(0, len(lessons), SLICE):
        some = lessons[start : start + SLICE]
        length = max(len(each.ids) for each in some)
        ids = torch.tensor([each.ids + [PAD] * (length - len(each.ids)) for each in some])  # [S, L]
        said = torch.tensor([each.said + [NONE] * (length - len(each.said)) for each in some])[:, 1:]
        weight = torch.tensor([1 / max(1, weights[id(each)]) ** 0.5 for each in some])[:, None].expand_as(
            said
        )
        out = policy.model(input_ids=ids, use_cache=False, output_hidden_states=True)
        there = said != NONE
        logits = policy.lm_head(out.last_hidden_state[:, :-1][there])
        losses = cross_entropy(logits, said[there], reduction="none")
        main = (losses * weight[there]).sum() / total_weight
        loss = main + guided * heads.loss(out.hidden_states, some) * len(some) / len(lessons)
        torch.autograd.backward(loss)
        total += main.item()
    return total


def update(optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[Tensor], rate: float) -> None:
    """One step of all optimizers at this rate."""
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
