"""An answer and a rubric or a principle -> what another model says of it, as a verdict.

The judge is an OpenAI-compatible endpoint (option `url`), or a model that vLLM serves for all workers in a
process of its own (option `model`, see services.py). docs/judges.md.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from verigrad.verifiers import judge_prompts, judge_reading, rubric_criteria, services
from verigrad.verifiers.base import POLICY_ATTRIBUTE, Attempt, Message, Policy, Problem, Verdict
from verigrad.verifiers.judge_base import Question, Reply
from verigrad.verifiers.judge_reading import Choice
from verigrad.verifiers.options import Rule, flag, number, one_of, shown, whole
from verigrad.verifiers.rubric_criteria import Criterion
from verigrad.verifiers.services import Service, ServiceLost

MODULE = "verigrad.engine.judge_service"
SERVED = "judge"  # the model's name at a server of ours
SPECIAL_TOKENS = "special_tokens.json"  # its special tokens, beside its socket
ALLOWANCE_S = 5.0  # of a check, beyond the time that the judge may take


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "text"


RULES: Mapping[str, Rule] = {
    "url": _text,
    "model": _text,
    "api": one_of("chat", "completions"),
    "api_key_env": _text,
    "reason": flag,
    "temperature": number(0, 2),
    "max_tokens": whole(1, 100_000),
    "timeout_s": number(0.1, 3600),
    "retries": whole(0, 100),
    "concurrency": whole(1, 256),
    "requests_per_minute": number(0),
    "memory_gb": number(0.01, 1000),
}


class Judged:
    """What both verifiers share: the judge, its manner, and how a failure is told."""

    name = "judged"
    kind = "score"

    def __init__(self, options: Mapping[str, Any]) -> None:
        """ValueError in one line for a value that will not do."""
        for option, rule in RULES.items():
            if expected := rule(options[option]):
                raise ValueError(f"{self.name}: {option} = {shown(options[option])}; expected {expected}")
        if not options["model"]:
            raise ValueError(
                f"{self.name}: model is empty; name the judge: with url the model's name there, without a "
                "folder, hub id or maker that vLLM serves here"
            )
        self.options, self.reason = dict(options), options["reason"]
        self.timeout_s = float(options["timeout_s"])
        self._client: Any = None
        self.service: Service | None = None
        if not options["url"]:
            own = {name: options[name] for name in ("model", "memory_gb")}
            own["model_options"] = dict(options["model_options"] or {})
            self.service = Service(MODULE, own)
        wording = judge_prompts.template_hash(self.kind, reasons=self.reason)
        policy = Policy(
            name=self.name,
            version=f"1 {wording} {options['model']}",
            deadline_s=self.timeout_s + ALLOWANCE_S,
            services=(self.service,) if self.service else (),
            learned=True,
            cache=None if options["temperature"] == 0 else False,
        )
        setattr(self, POLICY_ATTRIBUTE, policy)
        if options["url"]:
            self._endpoint()  # refuse a bad address now

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Replies, all by the end of the check's time."""
        deadline = time.monotonic() + services.seconds_left(self.timeout_s)
        if self._client is None:
            from verigrad.verifiers.judge_client import JudgeClient

            self._client = JudgeClient(self._endpoint())
        replies: list[Reply] = self._client.ask(questions, deadline=deadline)
        return replies

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """Of a model served here, broken up in what it judges; an endpoint does not tell its own."""
        if self.service is None:
            return ()
        beside = Path(services.address_of(self.service)).with_name(SPECIAL_TOKENS)
        try:
            return tuple(json.loads(beside.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ServiceLost(f"the judge's special tokens cannot be read ({error})") from error

    def _endpoint(self) -> Any:
        from verigrad.verifiers.judge_client import Endpoint

        given = self.options
        url, model = given["url"], given["model"]
        if self.service is not None:
            url, model = f"unix://{services.address_of(self.service)}", SERVED
        names = ("api", "api_key_env", "temperature", "max_tokens", "timeout_s", "retries", "concurrency",
                 "requests_per_minute")  # fmt: skip
        return Endpoint(url=url, model=model, **{name: given[name] for name in names})

    def choices(self, ask_about: Callable[[Sequence[str]], Sequence[Question]]) -> list[Choice] | str:
        """The clear choice of every question, or why there is none of one.

        `ask_about` makes the questions, given the judge's special tokens.
        """
        try:
            questions = ask_about(self.special_tokens)
            replies = self.ask(questions)
        except ServiceLost as lost:
            return str(lost)
        read = [judge_reading.choice_of(q, reply) for q, reply in zip(questions, replies, strict=True)]
        failed = next((each for each in read if isinstance(each, str)), None)
        return failed if failed is not None else [each for each in read if isinstance(each, Choice)]


class Rubric(Judged):
    """Weighted criteria, each put to a judge by itself; the share of the weight that is met."""

    name = "rubric"
    kind = "criterion"

    def __init__(
        self, *, criteria: Any = None, model: str = "", url: str = "", model_options: Any = None,
        api: str = "chat", api_key_env: str = "OPENAI_API_KEY", reason: bool = False,
        temperature: float = 0.0, max_tokens: int = 256, timeout_s: float = 60.0, retries: int = 4,
        concurrency: int = 8, requests_per_minute: float = 0.0, memory_gb: float = 1.0,
    ) -> None:  # fmt: skip
        """`criteria`: a list of {criterion, weight} for all rows; without, each row's column `rubric`."""
        self.criteria = None if criteria is None else rubric_criteria.read(criteria, where="rubric: criteria")
        super().__init__(_given(locals()))

    def check_row(self, problem: Problem) -> None:
        """Raise ValueError when neither options nor row bring criteria that can be used."""
        self._criteria(problem)

    def verify(self, problem: Problem, attempt: Attempt) -> Verdict:
        """Met weights over the sum of positive weights, 0 to 1; undecided when one criterion is."""
        criteria, request = self._criteria(problem), request_of(problem.prompt)

        def questions(special_tokens: Sequence[str]) -> list[Question]:
            manner: Any = {"reasons": self.reason, "special_tokens": special_tokens}
            return [
                judge_prompts.criterion(request, attempt.final_text, criterion=one.text, **manner)
                for one in criteria
            ]

        told = self.choices(questions)
        if isinstance(told, str):
            return Verdict.undecided(f"a criterion is undecided: {told}"[:500])
        met = [choice.chosen == "yes" for choice in told]
        reward = rubric_criteria.reward_of(criteria, met)
        parts = {
            part_name(one, n): float(yes) for n, (one, yes) in enumerate(zip(criteria, met, strict=True))
        }
        failed = [one.text for one, yes in zip(criteria, met, strict=True) if yes != (one.weight > 0)]
        reason = f"not as wanted: {quoted(failed)}" if failed else "every criterion as wanted"
        outcome: Any = "right" if reward == 1 else "wrong" if reward == 0 else "partial"
        return Verdict(reward, outcome, parts, reason)

    def _criteria(self, problem: Problem) -> tuple[Criterion, ...]:
        if self.criteria is not None:
            return self.criteria
        if problem.meta.get("rubric") is None:
            raise ValueError(
                f"verifier 'rubric': problem {problem.id!r} has no column 'rubric' and the options no "
                "criteria; add the column, or set verifier.options.criteria"
            )
        return rubric_criteria.read(problem.meta["rubric"], where=f"problem {problem.id!r}: rubric")


class JudgeScore(Judged):
    """A judge's score of an answer from 1 to 10, likelihood-weighted, as a reward from -1 to 1."""

    name = "judge_score"
    kind = "score"

    def __init__(
        self, *, principle: str = judge_prompts.GENERAL, unit: bool = False, model: str = "",
        url: str = "", model_options: Any = None, api: str = "chat", api_key_env: str = "OPENAI_API_KEY",
        reason: bool = False, temperature: float = 0.0, max_tokens: int = 256, timeout_s: float = 60.0,
        retries: int = 4, concurrency: int = 8, requests_per_minute: float = 0.0, memory_gb: float = 1.0,
    ) -> None:  # fmt: skip
        """`unit`: rewards from 0 to 1 instead (direct RLAIF, arXiv 2309.00267, has -1 to 1)."""
        if not isinstance(principle, str) or not principle.strip():
            raise ValueError(f"judge_score: principle = {shown(principle)}; expected text")
        if expected := flag(unit):
            raise ValueError(f"judge_score: unit = {shown(unit)}; expected {expected}")
        self.principle, self.unit = principle, unit
        super().__init__(_given(locals()))

    def verify(self, problem: Problem, attempt: Attempt) -> Verdict:
        """The expected score as a reward; undecided without a clear judgement."""
        request, manner = request_of(problem.prompt), {"principle": self.principle, "reasons": self.reason}

        def question(special_tokens: Sequence[str]) -> list[Question]:
            given: Any = {**manner, "special_tokens": special_tokens}
            return [judge_prompts.score(request, attempt.final_text, **given)]

        told = self.choices(question)
        if isinstance(told, str):
            return Verdict.undecided(told[:500])
        score = judge_reading.expected_score(told[0].probs)
        reward = judge_reading.reward_of_score(score)
        reward = round((reward + 1) / 2 if self.unit else reward, 6)
        return Verdict(reward, "partial", {"score": reward}, f"score {score:.2f} of 10")


def request_of(prompt: str | Sequence[Message]) -> str:
    """A prompt as the judge reads it."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0].get("content", ""))
    return "\n\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)


def quoted(texts: Sequence[str], *, most: int = 4, length: int = 60) -> str:
    """The first of these texts in quotes, cut short: they are the rubric's words and accuse nobody."""
    short = [" ".join(text.replace('"', "'").split()) for text in texts[:most]]
    shown = "; ".join(f'"{text if len(text) <= length else text[: length - 3] + "..."}"' for text in short)
    return f"{shown} and {len(texts) - most} more" if len(texts) > most else shown


def part_name(criterion: Criterion, number: int) -> str:
    """A short name of a criterion, told from the others by its place."""
    return f"{number + 1} {' '.join(criterion.text.split())[:40]}".rstrip(" .")


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: arguments[name] for name in (*RULES, "model_options")}
