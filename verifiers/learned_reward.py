"""A prompt and a completion -> what a trained reward model says of it, bounded and on a known scale.

The model lives in a process of its own that all workers share (engine/reward_service.py, by way of
services.py); in a worker there is only this client. docs/verifiers/reward_model.md and process_reward.md.
"""

import hashlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from verigrad.verifiers import services
from verigrad.verifiers.base import POLICY_ATTRIBUTE, Attempt, Message, Policy, Problem, Verdict
from verigrad.verifiers.options import Rule, flag, number, one_of, shown, whole
from verigrad.verifiers.services import Service, ServiceLost

MODULE = "verigrad.engine.reward_service"
DIGITS = 4  # of a reward: what is behind them changes with a text's neighbours in its batch
OF_A_MODEL = ("config.json", "reward.json")  # a folder with one of them is a model, not a run
MAX_STEPS_SHOWN = 32
ALLOWANCE_S = 5.0  # of a check, beyond the time that its request may take
SAMPLED_BYTES = 2**16  # of each end of a file of weights, for the verifier's version


class LearnedReward(ABC):
    """What both kinds share: the service, the reading of options, and verdicts of what it answers."""

    kind = "pairs"
    name = "reward_model"
    solution = ""

    def __init__(self, own: Mapping[str, Any], service: Mapping[str, Any], **common: Any) -> None:
        """`own`: what the service need not know; ValueError in one line for a value that will not do."""
        for key, value in {**common, **service, **own}.items():
            if (rule := RULES.get(key)) and value is not None and (expected := rule(value)):
                raise ValueError(f"{self.name}: {key} = {shown(value)}; expected {expected}")
        self.whole, self.threshold = common["whole"], common["threshold"]
        self.truncated_reward, self.timeout_s = common["truncated_reward"], common["timeout_s"]
        asked = {"kind": self.kind, **service}
        self.service = Service(MODULE, {**asked, "model_options": dict(service["model_options"] or {})})
        policy = Policy(
            name=self.name,
            version=f"1 {digest_of(str(service['model']))}".strip(),
            deadline_s=self.timeout_s + ALLOWANCE_S,
            services=(self.service,),
            learned=True,
        )
        setattr(self, POLICY_ATTRIBUTE, policy)

    def prefetch(self, problem: Problem, attempts: Sequence[Attempt]) -> None:
        """Have the service begin with a whole group, before workers ask for one after the other."""
        asked = {"prompt": plain(problem.prompt), "texts": [self._read(one) for one in attempts]}
        services.tell(self.service, "/prefetch", asked)

    def verify(self, prompt: str | Sequence[Message], attempt: Attempt) -> Verdict:
        """Ask for the score; undecided when the service has none to give."""
        if attempt.truncated and self.truncated_reward is not None:
            return Verdict(self.truncated_reward, "wrong", reason="cut off: verifier option truncated_reward")
        asked = {"prompt": plain(prompt), "texts": [self._read(attempt)], "solution": self.solution}
        try:
            said = services.ask(self.service, "/score", asked, timeout_s=self.timeout_s)
        except ServiceLost as lost:
            return Verdict.undecided(str(lost)[:500])
        (score,) = said["scores"]
        if "error" in score:
            return Verdict.undecided(f"the reward model failed: {score['error']}"[:500])
        if "unreadable" in score:
            return Verdict(self.least, "unparseable", reason=str(score["unreadable"])[:300])
        reward, parts, reason = self.reading(score, said)
        if not math.isfinite(reward):
            return Verdict.undecided(f"the reward model said {reward}")
        reward = round(reward, DIGITS)
        if self.threshold is None:
            return Verdict(reward, "partial", parts, reason)
        passed = reward >= self.threshold
        return Verdict(float(passed), "right" if passed else "wrong", parts, reason)

    def _read(self, attempt: Attempt) -> str:
        return attempt.text if self.whole else attempt.final_text.strip()

    @property
    def least(self) -> float:
        """What an answer earns that the model cannot read."""
        return 0.0

    @abstractmethod
    def reading(
        self, score: Mapping[str, Any], said: Mapping[str, Any]
    ) -> tuple[float, dict[str, float], str]:
        """A score and the model's own numbers -> the reward, its parts, and a line about it."""


class RewardModel(LearnedReward):
    """A learned reward of whole answers, from a model or an ensemble that `verigrad reward` has trained."""

    def __init__(
        self,
        model: str = "",
        model_options: Mapping[str, Any] | None = None,
        model_seed: int = 0,
        standardise: bool = True,
        mean: float | None = None,
        std: float | None = None,
        bound: str = "clip",
        clip: float = 5.0,
        threshold: float | None = None,
        truncated_reward: float | None = None,
        aggregate: str = "",
        std_coef: float | None = None,
        whole: bool = False,
        allow_biased: bool = False,
        device: str = "auto",
        dtype: str = "float32",
        tokens_per_batch: int = 8192,
        trust_remote_code: bool = False,
        timeout_s: float = 60.0,
    ) -> None:
        """See docs/verifiers/reward_model.md for what each option means."""
        if (mean is None) != (std is None):
            raise ValueError("reward_model: mean and std belong together; give both or neither")
        if not standardise and mean is not None:
            raise ValueError("reward_model: mean and std have no effect with standardise = false")
        if std_coef is not None and aggregate != "mean_minus_std":
            raise ValueError("reward_model: std_coef has no effect without aggregate = 'mean_minus_std'")
        if bound == "sigmoid" and clip != 5.0:
            raise ValueError("reward_model: clip has no effect with bound = 'sigmoid'")
        service = {
            "model": model, "model_options": model_options, "model_seed": model_seed, "aggregate": aggregate,
            "std_coef": std_coef, "measured": standardise and mean is None, "allow_biased": allow_biased,
            "device": device, "dtype": dtype, "tokens_per_batch": tokens_per_batch,
            "trust_remote_code": trust_remote_code,
        }  # fmt: skip
        own = {"mean": mean, "std": std, "standardise": standardise, "bound": bound, "clip": clip}
        super().__init__(own, service, whole=whole, threshold=threshold, timeout_s=timeout_s,
                         truncated_reward=truncated_reward)  # fmt: skip
        self.mean, self.std, self.standardise = mean, std, standardise
        self.bound, self.clip = bound, clip

    @property
    def least(self) -> float:
        """What an answer earns that the model cannot read: no more than any other."""
        return -self.clip if self.bound == "clip" and self.threshold is None else 0.0

    def reading(
        self, score: Mapping[str, Any], said: Mapping[str, Any]
    ) -> tuple[float, dict[str, float], str]:
        """Standardised, bounded; parts hold the model's own number and its members'."""
        raw = float(score["reward"])
        value = raw
        if self.standardise:
            mean, std = (said["mean"], said["std"]) if self.mean is None else (self.mean, self.std)
            value = (raw - float(mean or 0.0)) / float(
                std or 1.0
            )  # the service refuses what was not measured
        parts = {"score": round(raw, DIGITS)}
        for number_, member in enumerate(score["members"], start=1):
            parts[f"member_{number_}"] = round(member, DIGITS)
        if score["members"]:
            parts["disagreement"] = round(score["disagreement"], DIGITS)
        if self.bound == "sigmoid":
            return 1 / (1 + math.exp(-max(-60.0, min(60.0, value)))), parts, ""
        held = max(-self.clip, min(self.clip, value))
        return held, parts, "" if held == value else f"{value:.3f} is clipped"


class ProcessReward(LearnedReward):
    """A learned reward of an answer's steps, from a model that `verigrad reward` has trained on steps."""

    kind = "steps"
    name = "process_reward"

    def __init__(
        self,
        model: str = "",
        model_options: Mapping[str, Any] | None = None,
        model_seed: int = 0,
        solution: str = "",
        threshold: float | None = None,
        truncated_reward: float | None = None,
        whole: bool = False,
        allow_biased: bool = False,
        device: str = "auto",
        dtype: str = "float32",
        tokens_per_batch: int = 8192,
        trust_remote_code: bool = False,
        timeout_s: float = 60.0,
    ) -> None:
        """See docs/verifiers/process_reward.md for what each option means."""
        service = {
            "model": model, "model_options": model_options, "model_seed": model_seed, "aggregate": "",
            "std_coef": None, "measured": False, "allow_biased": allow_biased, "device": device,
            "dtype": dtype, "tokens_per_batch": tokens_per_batch, "trust_remote_code": trust_remote_code,
        }  # fmt: skip
        super().__init__({"solution": solution}, service, whole=whole, threshold=threshold,
                         timeout_s=timeout_s, truncated_reward=truncated_reward)  # fmt: skip
        self.solution = solution

    def reading(
        self, score: Mapping[str, Any], said: Mapping[str, Any]
    ) -> tuple[float, dict[str, float], str]:
        """The solution's score; parts hold each step's."""
        steps = [float(step) for step in score["steps"]]
        parts = {f"step_{n}": round(step, DIGITS) for n, step in enumerate(steps[:MAX_STEPS_SHOWN], start=1)}
        if not steps:
            return 0.0, parts, "no step to score"
        weakest = min(range(len(steps)), key=lambda at: steps[at])
        return float(score["reward"]), parts, f"step {weakest + 1} of {len(steps)} is the weakest"


def text(value: Any) -> str:
    """A model's name."""
    return "" if isinstance(value, str) and value.strip() else "a folder, a run folder, a hub id or a maker"


def table(value: Any) -> str:
    """Keyword arguments."""
    return "" if isinstance(value, Mapping) else "a table of names and values"


def any_of(*words: str) -> Callable[[Any], str]:
    """One of these words, or nothing."""
    rule = one_of(*words)
    return lambda value: "" if value == "" else rule(value)


RULES: Mapping[str, Rule] = {
    "model": text,
    "model_options": table,
    "model_seed": whole(0, 2**63 - 1),
    "standardise": flag,
    "mean": number(-math.inf),
    "std": number(1e-9),
    "bound": one_of("clip", "sigmoid"),
    "clip": number(1e-6),
    "threshold": number(-math.inf),
    "truncated_reward": number(-math.inf),
    "aggregate": any_of("mean", "mean_minus_std", "min"),
    "std_coef": number(0),
    "solution": any_of("min", "product", "last", "mean"),
    "whole": flag,
    "allow_biased": flag,
    "device": one_of("auto", "cpu", "cuda"),
    "dtype": one_of("float32", "bfloat16"),
    "tokens_per_batch": whole(1, 2**31),
    "trust_remote_code": flag,
    "timeout_s": number(0.1),
}


def plain(prompt: str | Sequence[Message]) -> Any:
    """The prompt as it travels."""
    return prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt]


def digest_of(model: str) -> str:
    """What tells these weights from others, of a local folder: names, sizes, and both ends of each file."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return ""
    if (folder / "checkpoints").is_dir() and not any((folder / name).is_file() for name in OF_A_MODEL):
        found = sorted(folder.glob("checkpoints/step_*"), key=lambda path: (len(path.name), path.name))
        whole = (path for path in reversed(found) if _is_whole(path))
        if (newest := next(whole, None)) is None:
            return ""
        folder = newest
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("reward.json")]):
        with open(path, "rb") as file:
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode())
            digest.update(file.read(SAMPLED_BYTES))
            if path.stat().st_size > SAMPLED_BYTES:
                file.seek(-SAMPLED_BYTES, 2)
                digest.update(file.read())
    return digest.hexdigest()[:12]


def _is_whole(checkpoint: Path) -> bool:
    """Whether a run's checkpoint is finished, and every file of its manifest there in its size.

    Less than engine/checkpoint.py asks, which this room does not know: reading all weights of a large
    model in every worker, for what is only a name, would take minutes.
    """
    if not re.fullmatch(r"step_\d{6,}", checkpoint.name):  # .half, .damaged, .tripped
        return False
    try:
        files = dict(json.loads((checkpoint / "manifest.json").read_text())["files"])
        return bool(files) and all(
            (checkpoint / name).stat().st_size == said["bytes"] for name, said in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
