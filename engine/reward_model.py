"""A trained reward model's folder -> rewards of answers, steps' scores, an ensemble's careful mean.

    model = reward_model.load("runs/my_rewards")
    model.score(["tell: cat"], ["the cat is soft ."])    -> [0.7]
    model.judge(prompts, responses)                      -> [Scored(reward, members, disagreement, steps)]

The three kinds share `judge` and `score`; none of them needs the trainer.
"""

import dataclasses
import hashlib
import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoTokenizer

from verigrad.engine import makers, model_files, reward_card
from verigrad.engine.config import ConfigError
from verigrad.engine.failures import WorkError
from verigrad.engine.reward_card import Card
from verigrad.engine.reward_head import longest_text, open_model, outputs
from verigrad.engine.reward_text import Prompt, Text, TextEncoder, lay_out, split_steps
from verigrad.engine.rows import BadRow

BATCH_TEXTS = 256  # texts encoded and laid out at once


@dataclass(frozen=True, slots=True)
class Scored:
    """What is said of one answer."""

    reward: float | None  # None: no reward, for `reason`
    members: Sequence[float] = ()  # ensemble: each member's standardised reward
    disagreement: float = 0.0  # ensemble: standard deviation over members, in their own standard deviations
    steps: Sequence[float] = ()  # process rewards: probability that each step is right
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reader:
    """How a model is held: where, in which number type, how many tokens at once."""

    device: torch.device
    dtype: torch.dtype
    tokens_per_batch: int

    @classmethod
    def of(cls, device: str, dtype: str, tokens_per_batch: int) -> "Reader":
        """From the words of a recipe; ConfigError for a device that is not there."""
        there = torch.cuda.is_available()
        if device not in ("auto", "cpu", "cuda") or dtype not in ("float32", "bfloat16"):
            raise ConfigError(
                f"a reward model on {device!r} in {dtype!r}: expected auto, cpu or cuda, float32 or bfloat16"
            )
        if device == "cuda" and not there:
            raise ConfigError("a reward model on 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'")
        if tokens_per_batch < 1:
            raise ConfigError(f"tokens_per_batch = {tokens_per_batch}: expected at least 1")
        where = torch.device("cuda" if there and device != "cpu" else "cpu")
        return cls(where, getattr(torch, dtype), tokens_per_batch)


class _Model(ABC):
    """What both kinds of single model share."""

    def __init__(self, model: Any, tokenizer: Any, card: Card, reader: Reader) -> None:
        self.model, self.tokenizer, self.reader = model, tokenizer, reader
        self.card = dataclasses.replace(card, max_length=longest_text(model, card))
        self.encoder = TextEncoder(tokenizer, self.card, pad_id=model.config.get_text_config().pad_token_id)
        self.fingerprint = ""

    @property
    def mean(self) -> float | None:
        """Mean reward of held-out answers, measured when it was trained."""
        return self.card.mean

    @property
    def std(self) -> float | None:
        """Standard deviation of the same."""
        return self.card.std

    @torch.no_grad()
    def read(self, texts: Sequence[Text]) -> list[torch.Tensor]:
        """What the head says of each text: [N, C] on the CPU, in the order given."""
        autocast = self.reader.dtype == torch.bfloat16 and self.model.dtype == torch.float32
        done: list[torch.Tensor] = [torch.zeros(0)] * len(texts)
        longest = max((len(text.token_ids) for text in texts), default=1)
        budget = max(self.reader.tokens_per_batch, longest)  # one long text is a batch of its own
        for start in range(0, len(texts), BATCH_TEXTS):
            part = texts[start : start + BATCH_TEXTS]
            for batch in lay_out([[text] for text in part], max_tokens=budget):
                seen = outputs(self.model, batch, autocast=autocast).cpu()
                for index, values in zip(batch.groups, torch.split(seen, list(batch.counts)), strict=True):
                    done[start + index] = values
        return done

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Scored]:
        """What is said of each answer; one that cannot be read has reward None and a reason."""
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts for {len(responses)} responses; give one for each")
        texts: list[Text | Scored] = []
        for prompt, response in zip(prompts, responses, strict=True):
            try:
                texts.append(self._encode(prompt, response))
            except BadRow as error:
                texts.append(Scored(None, reason=f"the answer {error}"))
            except ConfigError as error:
                texts.append(Scored(None, reason=str(error)))
        read = iter(self.read([text for text in texts if isinstance(text, Text)]))
        return [self._scored(next(read)) if isinstance(text, Text) else text for text in texts]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """The reward of each answer; WorkError for one that cannot be read."""
        return _rewards(self.judge(prompts, responses))

    @abstractmethod
    def _encode(self, prompt: Prompt, response: str) -> Text:
        """The ids to read, and where the head is asked; BadRow for what cannot be read."""

    @abstractmethod
    def _scored(self, values: torch.Tensor) -> Scored:
        """What the head said [N, C] -> the answer's reward."""


class RewardModel(_Model):
    """Rewards of whole answers."""

    @classmethod
    def load(cls, folder: str | Path, **reading: Any) -> "RewardModel":
        """See `load`; ConfigError where the folder holds another kind."""
        return _of_kind(cls, load(folder, **reading), folder)

    def _encode(self, prompt: Prompt, response: str) -> Text:
        return self.encoder.answer(prompt, response)

    def _scored(self, values: torch.Tensor) -> Scored:
        reward = float(values[0, 0])
        if not math.isfinite(reward):
            return Scored(None, reason="the reward model's output is not finite")
        return Scored(reward)


class ProcessRewardModel(_Model):
    """Probabilities that the steps of an answer are right."""

    solution: reward_card.Solution

    def __init__(self, model: Any, tokenizer: Any, card: Card, reader: Reader) -> None:
        super().__init__(model, tokenizer, card, reader)
        self.solution = card.solution

    @classmethod
    def load(cls, folder: str | Path, **reading: Any) -> "ProcessRewardModel":
        """See `load`; ConfigError where the folder holds another kind."""
        return _of_kind(cls, load(folder, **reading), folder)

    def steps(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[list[float]]:
        """The score of each step of each answer; WorkError for an answer that cannot be read."""
        judged = self.judge(prompts, responses)
        _rewards(judged)
        return [list(scored.steps) for scored in judged]

    def _encode(self, prompt: Prompt, response: str) -> Text:
        return self.encoder.steps(prompt, split_steps(response, self.card.separator))

    def _scored(self, values: torch.Tensor) -> Scored:
        steps = values.softmax(-1)[:, 1].tolist() if len(values) else []
        if not all(math.isfinite(step) for step in steps):
            return Scored(None, reason="the reward model's output is not finite")
        return Scored(of_steps(steps, self.solution), steps=steps)


class Ensemble:
    """Several reward models of whole answers, whose rewards become one, careful where they disagree.

    Members are standardised by the mean and standard deviation of their own rewards on the same held-out
    answers, since preferences tell neither the offset nor the scale of a reward.
    """

    def __init__(self, members: Sequence[RewardModel], card: Card) -> None:
        self.members, self.card = list(members), card
        self.aggregate: reward_card.Aggregate = card.aggregate
        self.std_coef = card.std_coef
        self.fingerprint = ""

    @classmethod
    def load(cls, folder: str | Path, **reading: Any) -> "Ensemble":
        """See `load`; ConfigError where the folder holds another kind."""
        return _of_kind(cls, load(folder, **reading), folder)

    @property
    def mean(self) -> float | None:
        """Mean aggregate of held-out answers, measured when it was trained."""
        return self.card.mean

    @property
    def std(self) -> float | None:
        """Standard deviation of the same."""
        return self.card.std

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Scored]:
        """The aggregate, each member's reward and their disagreement for each answer."""
        seen = [member.judge(prompts, responses) for member in self.members]
        done = []
        for each in zip(*seen, strict=True):
            if bad := [scored for scored in each if scored.reward is None]:
                done.append(bad[0])
                continue
            rewards = [
                standardised(float(scored.reward or 0.0), member.card)
                for member, scored in zip(self.members, each, strict=True)
            ]
            together = aggregated(rewards, self.aggregate, std_coef=self.std_coef)
            done.append(Scored(together, members=rewards, disagreement=spread(rewards)))
        return done

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """The aggregate for each answer; WorkError for one that cannot be read."""
        return _rewards(self.judge(prompts, responses))


AnyRewardModel = RewardModel | ProcessRewardModel | Ensemble
Kind = TypeVar("Kind", RewardModel, ProcessRewardModel, Ensemble)


def find(reference: str, *, seed: int = 0, options: Mapping[str, Any] | None = None) -> Path:
    """A folder, run folder, hub id or maker -> the local folder `load` takes; ConfigError without one."""
    if makers.is_maker(reference):
        return makers.make_model(reference, seed=seed, options=options or {})
    if options:
        raise ConfigError(f"options are for makers, and the reward model {reference!r} is none; remove them")
    path = Path(reference).expanduser()
    is_path = reference.startswith((".", "/", "~")) or reference.count("/") > 1  # ids of the hub have one
    if is_path or path.is_dir() or (len(path.parts) > 1 and path.parent.is_dir()):
        return reward_card.folder_of(reference)
    return _download(reference)


def _download(reference: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(reference))
    except Exception as error:  # the hub's client raises anything from ValueError to its own network errors
        raise ConfigError(
            f"the reward model {reference!r} is no folder (looked from {Path.cwd()}), and the hub did not "
            f"give it ({type(error).__name__}: {str(error).splitlines()[0]:.200}); give a local folder"
        ) from error


def load(
    folder: str | Path,
    *,
    device: str = "auto",
    dtype: str = "float32",
    tokens_per_batch: int = 8192,
    allow_biased: bool = False,
    trust_remote_code: bool = False,
) -> AnyRewardModel:
    """The reward model in a folder, of whichever kind; of a run folder its newest checkpoint.

    Raises ConfigError, in one line, where there is none, where it cannot be read, and where its audit refused
    it (audit.json beside the weights) unless `allow_biased`.
    """
    found = reward_card.folder_of(folder)
    reward_card.require_unbiased(found, allow_biased=allow_biased)
    reader = Reader.of(device, dtype, tokens_per_batch)
    card = reward_card.read(found)
    if card.kind != "ensemble":
        return _load_single(found, card, reader, trust_remote_code=trust_remote_code)
    members = []
    for number in range(1, card.members + 1):
        part = found / f"member_{number}"
        if not part.is_dir():
            raise ConfigError(f"{found} lacks {part.name} of its {card.members} members; train it again")
        one = _load_single(part, reward_card.read(part), reader, trust_remote_code=trust_remote_code)
        members.append(_of_kind(RewardModel, one, part))
    ensemble = Ensemble(members, card)
    joined = " ".join(member.fingerprint for member in members) + f" {card}"
    ensemble.fingerprint = hashlib.sha256(joined.encode()).hexdigest()[:16]
    return ensemble


def _load_single(
    folder: Path, card: Card, reader: Reader, *, trust_remote_code: bool
) -> RewardModel | ProcessRewardModel:
    steps = card.kind == "steps"
    model = open_model(
        folder, steps=steps, seed=None, dtype=reader.dtype, trust_remote_code=trust_remote_code
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{folder}: no tokenizer could be loaded: {reason}") from error
    model = model.to(reader.device).eval().requires_grad_(False)
    kind = ProcessRewardModel if steps else RewardModel
    single = kind(model, tokenizer, card, reader)
    single.fingerprint = model_files.fingerprint(folder)
    return single


def _of_kind(kind: type[Kind], model: AnyRewardModel, folder: str | Path) -> Kind:
    if not isinstance(model, kind):
        raise ConfigError(f"{folder} holds a {type(model).__name__}, expected a {kind.__name__}")
    return model


def _rewards(judged: Sequence[Scored]) -> list[float]:
    rewards = []
    for index, scored in enumerate(judged):
        if scored.reward is None:
            raise WorkError(f"answer {index} has no reward: {scored.reason}")
        rewards.append(scored.reward)
    return rewards


# Numbers ---------------------------------------------------------------------------------------------------


def of_steps(steps: Sequence[float], solution: reward_card.Solution) -> float:
    """Scores of steps to that of the answer (arXiv 2305.20050, 2312.08935); without a step it is 0."""
    if not steps:
        return 0.0
    if solution == "min":
        return min(steps)
    if solution == "product":
        return math.prod(steps)
    return steps[-1] if solution == "last" else statistics.fmean(steps)


def standardised(reward: float, card: Card) -> float:
    """A member's reward in standard deviations from its mean, where these were measured."""
    if card.mean is None or not card.std:
        return reward
    return (reward - card.mean) / card.std


def spread(rewards: Sequence[float]) -> float:
    """Standard deviation over members (population)."""
    return statistics.pstdev(rewards)


def aggregated(rewards: Sequence[float], how: reward_card.Aggregate, *, std_coef: float) -> float:
    """Members' rewards to one (arXiv 2310.02743): mean, mean less standard deviations, or the least."""
    if how == "min":
        return min(rewards)
    mean = statistics.fmean(rewards)
    return mean if how == "mean" else mean - std_coef * spread(rewards)
