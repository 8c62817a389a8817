"""A recipe's [judge] -> a Judge: an endpoint's client, or a model held here by vLLM (or transformers).

Questions go through the model's own chat template where it has one, else they end in "Reply:".
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from verigrad.engine import model_files
from verigrad.engine.backends import backend_of, vllm_installed
from verigrad.engine.config import Config, ConfigError, PromptsConfig
from verigrad.engine.prompts import Prompter
from verigrad.engine.rollout import derive_seed
from verigrad.verifiers.base import Problem
from verigrad.verifiers.judge_base import Judge, OnReply, Question, Reply
from verigrad.verifiers.judge_client import Endpoint, JudgeClient
from verigrad.verifiers.judge_prompts import PLAIN_ENDING

Progress = Callable[[str, float], None]
Logprobs = Mapping[int, float]  # token id -> log-probability in its place


@dataclass(frozen=True, slots=True)
class Wanted:
    """One completion wanted of a model."""

    prompt_ids: Sequence[int]
    max_tokens: int
    watched: Sequence[int]  # token ids whose log-probabilities are told in each place
    seed: int


@dataclass(frozen=True, slots=True)
class Answered:
    """One completion."""

    index: int
    token_ids: Sequence[int]
    logprobs: Sequence[Logprobs]  # [L] of the watched
    finished: bool  # not cut off by max_tokens


class Answerer(Protocol):
    """A model that completes prompts."""

    def answer(self, wanted: Sequence[Wanted]) -> Iterator[Answered]:
        """Completions as they finish."""
        ...

    def close(self) -> None:
        """End for good."""
        ...


@contextmanager
def open_judge(cfg: Config, *, spent: float = 0.0, progress: Progress | None = None) -> Iterator[Judge]:
    """The judge of the recipe, closed whatever comes. ConfigError for one that cannot be.

    `spent`: costs of earlier starts, which count towards judge.max_cost.
    """
    if cfg.judge.url:
        with JudgeClient(endpoint_of(cfg), spent=spent) as client:
            yield client
        return
    own = config_of_judge(cfg)
    try:
        model = model_files.fetch(own, progress=progress)
    except ConfigError as error:
        raise ConfigError(_about_judge(str(error))) from error
    answerer = _answerer(own, model)
    try:
        yield LocalJudge(answerer, model, cfg)
    finally:
        answerer.close()


def endpoint_of(cfg: Config) -> Endpoint:
    """The endpoint that [judge] describes."""
    judge = cfg.judge
    names = ("url", "model", "api", "api_key_env", "temperature", "max_tokens", "logprobs", "concurrency",
             "requests_per_minute", "retries", "timeout_s", "price_in", "price_out", "max_cost")  # fmt: skip
    try:
        return Endpoint(**{name: getattr(judge, name) for name in names})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def config_of_judge(cfg: Config) -> Config:
    """The recipe as if the judge were its policy: its model, lengths and seed."""
    judge = cfg.judge
    return cfg.model_copy(
        update={
            "train": cfg.train.model_copy(update={"seed": judge.seed}),
            "policy": cfg.policy.model_copy(update={"model": judge.model, "options": judge.options}),
            "rollout": cfg.rollout.model_copy(
                update={
                    "max_prompt_tokens": judge.max_prompt_tokens,
                    "max_tokens": judge.max_tokens,
                    "stop": [],
                }
            ),
        }
    )


def _about_judge(says: str) -> str:
    for ours, theirs in (
        ("rollout.max_", "judge.max_"),
        ("policy.model", "judge.model"),
        ("policy.options", "judge.options"),
    ):
        says = says.replace(ours, theirs)
    return says


def _answerer(cfg: Config, model: model_files.ModelFiles) -> Answerer:
    if backend_of(cfg) == "transformers":
        return TransformersAnswerer(cfg, model)
    if not vllm_installed():
        raise ConfigError(
            "rollout.backend = 'vllm', but vLLM is not installed; run `make setup`, or set rollout.backend = "
            "'transformers', or judge.url to an endpoint"
        )
    return VllmAnswerer(cfg, model)


class LocalJudge:
    """A judge in this process; see judge_base.Judge. It costs nothing that is counted."""

    spent = 0.0

    def __init__(self, answerer: Answerer, model: model_files.ModelFiles, cfg: Config) -> None:
        self.answerer, self.cfg = answerer, cfg.judge
        self.tokenizer = model.tokenizer
        self.eos_ids = frozenset(model.eos_ids)
        self.prompter = Prompter(model.tokenizer, PromptsConfig())
        self.special_tokens: Sequence[str] = model_files.special_tokens(model.tokenizer)
        self.identity: Mapping[str, Any] = {
            "model": cfg.judge.model,
            "fingerprint": model.fingerprint,
            "chat_template": self.prompter.uses_chat,
            "temperature": cfg.judge.temperature,
        }

    def ask(self, questions: Sequence[Question], *, on_reply: OnReply | None = None) -> list[Reply]:
        """See judge_base.Judge; a question that is too long is an error of its own."""
        replies: dict[int, Reply] = {}

        def settle(position: int, reply: Reply) -> None:
            replies[position] = reply
            if on_reply is not None:
                on_reply(position, reply)

        wanted, positions, several = [], [], {}
        for position, question in enumerate(questions):
            ids = self._prompt_ids(question)
            if len(ids) > self.cfg.max_prompt_tokens:
                says = f"the question has {len(ids)} tokens, more than judge.max_prompt_tokens"
                settle(position, Reply(None, error=f"{says} = {self.cfg.max_prompt_tokens}"))
                continue
            choices = self._choice_ids(question)
            watched = sorted({at[0] for ways in choices.values() for at in ways if len(at) == 1})
            several[position] = choices
            wanted.append(
                Wanted(ids, self.cfg.max_tokens, watched, derive_seed(question.seed, question.text))
            )
            positions.append(position)
        started = time.monotonic()
        done: list[tuple[int, Answered]] = []
        for answered in self.answerer.answer(wanted):
            position = positions[answered.index]
            if self._split_choices(questions[position], several[position]):
                done.append((position, answered))  # what begins alike is told apart first
                continue
            settle(
                position, self._reply(questions[position], several[position], answered, wanted, started, {})
            )
        for position, answered, more in self._told_apart(done, questions, several, wanted):
            settle(
                position, self._reply(questions[position], several[position], answered, wanted, started, more)
            )
        return [replies[position] for position in range(len(questions))]

    def _prompt_ids(self, question: Question) -> list[int]:
        text = question.text if self.prompter.uses_chat else f"{question.text}{PLAIN_ENDING}"
        return self.prompter.token_ids(Problem("question", text))

    def _choice_ids(self, question: Question) -> dict[str, list[tuple[int, ...]]]:
        """Each choice -> the ways in which it is written in tokens, with a blank before it and without."""
        found = {}
        for choice in question.choices:
            spelled = dict.fromkeys([choice, f" {choice}", choice.capitalize(), f" {choice.capitalize()}"])
            ways = {tuple(self.tokenizer.encode(way, add_special_tokens=False)) for way in spelled}
            unknown = self.tokenizer.unk_token_id
            found[choice] = [way for way in ways if way and unknown not in way]
        return found

    def _split_choices(self, question: Question, choices: Mapping[str, list[tuple[int, ...]]]) -> bool:
        """Whether a choice has no token of its own, as 10 where digits are tokens."""
        return not question.reasons and any(all(len(way) > 1 for way in ways) for ways in choices.values())

    def _told_apart(
        self, done: Sequence[tuple[int, Answered]], questions: Sequence[Question],
        choices: Mapping[int, Mapping[str, list[tuple[int, ...]]]], wanted: Sequence[Wanted],
    ) -> Iterator[tuple[int, Answered, Mapping[str, float]]]:  # fmt: skip
        """For choices of two tokens: the log-probability of the second after the first, by choice."""
        asked, owners = [], []
        for position, answered in done:
            for choice, ways in choices[position].items():
                for way in ways if all(len(way) > 1 for way in ways) else []:
                    if len(way) == 2:
                        prompt = [*wanted[answered.index].prompt_ids, way[0]]
                        asked.append(Wanted(prompt, 1, [way[1]], 0))
                        owners.append((position, choice, way[1]))
                        break
        after: dict[int, dict[str, float]] = {position: {} for position, _ in done}
        for answer in self.answerer.answer(asked):
            position, choice, token = owners[answer.index]
            after[position][choice] = (
                answer.logprobs[0].get(token, -math.inf) if answer.logprobs else -math.inf
            )
        for position, answered in done:
            yield position, answered, after[position]

    def _reply(
        self, question: Question, choices: Mapping[str, list[tuple[int, ...]]], answered: Answered,
        wanted: Sequence[Wanted], started: float, after: Mapping[str, float],
    ) -> Reply:  # fmt: skip
        ids = list(answered.token_ids)
        num_in, num_out = len(wanted[answered.index].prompt_ids), len(ids)
        if not answered.finished and not question.choices:
            says = f"the reply was cut off at judge.max_tokens = {self.cfg.max_tokens}"
            return Reply(None, None, num_in, num_out, error=says, seconds=time.monotonic() - started)
        said = ids[:-1] if ids and ids[-1] in self.eos_ids else ids
        text = self.prompter.decoded(said)
        probs = self._probs(question, choices, answered, after)
        return Reply(text, probs, num_in, num_out, seconds=time.monotonic() - started)

    def _probs(
        self, question: Question, choices: Mapping[str, list[tuple[int, ...]]], answered: Answered,
        after: Mapping[str, float],
    ) -> dict[str, float] | None:  # fmt: skip
        """Probability of each choice where the judgement stands: the first place, after reasons the last."""
        if not question.choices or not answered.logprobs:
            return None
        single = {way[0]: choice for choice, ways in choices.items() for way in ways if len(way) == 1}
        places = [k for k, token in enumerate(answered.token_ids) if token in single]
        if not places or (
            question.reasons and any(not any(len(w) == 1 for w in ws) for ws in choices.values())
        ):
            return None
        at = answered.logprobs[places[-1] if question.reasons else places[0]]
        probs = dict.fromkeys(question.choices, 0.0)
        for token, choice in single.items():
            probs[choice] += math.exp(at.get(token, -math.inf))
        for choice, logprob in after.items():  # P(10) = P(1) P(0 after 1), and 1 alone has the rest
            first = next((c for c in question.choices if c != choice and choice.startswith(c)), None)
            if first is not None:
                probs[choice] = probs[first] * math.exp(logprob)
                probs[first] -= probs[choice]
        return probs


class VllmAnswerer:
    """vLLM in this process, through its own step loop."""

    def __init__(self, cfg: Config, model: model_files.ModelFiles) -> None:
        from verigrad.engine.rollout_vllm import VllmEngine

        self.engine = VllmEngine(cfg, model.folder, eos_ids=model.eos_ids, seed=cfg.train.seed)
        self.temperature = cfg.judge.temperature
        self._num_asked = 0

    def answer(self, wanted: Sequence[Wanted]) -> Iterator[Answered]:
        """See Answerer."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine, names = self.engine.llm.llm_engine, {}
        for index, one in enumerate(wanted):
            name, self._num_asked = f"judge-{self._num_asked}", self._num_asked + 1
            names[name] = index
            params = SamplingParams(
                temperature=self.temperature,
                max_tokens=one.max_tokens,
                seed=one.seed if self.temperature else None,
                logprob_token_ids=list(one.watched) or None,
                stop_token_ids=self.engine.eos_ids,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(name, {"prompt_token_ids": list(one.prompt_ids)}, params)
        try:
            while names:
                for output in engine.step():
                    if output.finished:
                        index = names.pop(output.request_id.split("/")[0])
                        yield self._answered(index, output.outputs[0])
        finally:
            if names:
                engine.abort_request(list(names))
                while engine.has_unfinished_requests():
                    engine.step()

    def _answered(self, index: int, completion: Any) -> Answered:
        logprobs = [{token: one.logprob for token, one in at.items()} for at in completion.logprobs or []]
        return Answered(index, list(completion.token_ids), logprobs, completion.finish_reason == "stop")

    def close(self) -> None:
        """See Answerer."""
        self.engine.close()


class TransformersAnswerer:
    """transformers, one question after the other: for machines without vLLM."""

    def __init__(self, cfg: Config, model: model_files.ModelFiles) -> None:
        from transformers import AutoModelForCausalLM

        from verigrad.engine.policy import find_device

        self.device = find_device(cfg)
        self.model = AutoModelForCausalLM.from_pretrained(
            model.folder,
            dtype=getattr(torch, cfg.policy.dtype),
            trust_remote_code=cfg.policy.trust_remote_code,
        )
        self.model.eval().to(self.device)
        self.eos_ids, self.temperature = frozenset(model.eos_ids), cfg.judge.temperature

    def answer(self, wanted: Sequence[Wanted]) -> Iterator[Answered]:
        """See Answerer."""
        for index, one in enumerate(wanted):
            yield self._one(index, one)

    @torch.inference_mode()
    def _one(self, index: int, one: Wanted) -> Answered:
        generator = torch.Generator().manual_seed(one.seed)
        ids: list[int] = []
        told: list[Logprobs] = []
        cache = None
        given = torch.tensor([list(one.prompt_ids)], device=self.device)  # [1, L]
        while len(ids) < one.max_tokens and not (ids and ids[-1] in self.eos_ids):
            out = self.model(input_ids=given, past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[0, -1].float().cpu()  # [V]
            logprobs = (logits / self.temperature if self.temperature else logits).log_softmax(-1)
            told.append({token: float(logprobs[token]) for token in one.watched})
            drawn = torch.multinomial(logprobs.exp(), 1, generator=generator) if self.temperature else None
            ids.append(int(logprobs.argmax() if drawn is None else drawn))
            given = torch.tensor([[ids[-1]]], device=self.device)
        return Answered(index, ids, told, bool(ids) and ids[-1] in self.eos_ids)

    def close(self) -> None:
        """See Answerer."""
        del self.model
