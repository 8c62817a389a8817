"""Sampling by plain transformers, for machines without vLLM: slower, and the same in every other respect."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from verigrad.engine import lora
from verigrad.engine.config import Config
from verigrad.engine.rollout import SamplerError, SamplingParams, TokenOutput, TokenRequest
from verigrad.engine.schema import FinishReason

Wanted = tuple[int, TokenRequest, SamplingParams]  # one sample, and the index it is called by


class TransformersEngine:
    """A copy of the model with a key-value cache; `rollout.max_seqs` samples are decoded at once."""

    def __init__(self, cfg: Config, model_folder: str, *, eos_ids: Sequence[int]) -> None:
        dtype = torch.float32 if cfg.policy.dtype == "float32" else torch.bfloat16
        on_gpu = torch.cuda.is_available() and cfg.policy.device != "cpu"
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            model_folder, dtype=dtype, trust_remote_code=cfg.policy.trust_remote_code
        )
        self.model.requires_grad_(False).to(self.device).eval()
        self.adapted = False
        self.eos_ids = frozenset(eos_ids)
        self.max_seqs = cfg.rollout.max_seqs
        self.version = -1
        self.tokenizer = (
            AutoTokenizer.from_pretrained(model_folder, trust_remote_code=cfg.policy.trust_remote_code)
            if cfg.rollout.stop or cfg.agent.tools
            else None
        )

    def generate(self, requests: Sequence[TokenRequest], params: SamplingParams) -> Iterator[TokenOutput]:
        """See Engine.generate."""
        for start in range(0, len(requests), self.max_seqs):
            part = [(start + i, r, params) for i, r in enumerate(requests[start : start + self.max_seqs])]
            yield from self.decode(part)

    @contextmanager
    def stream(self, *, lasting: bool = False) -> Iterator["TransformersStream"]:
        """See Engine.stream. A batch is decoded to its end within a step, so it is all of one version."""
        yield TransformersStream(self)

    @torch.no_grad()
    def decode(self, wanted: Sequence[Wanted]) -> Iterator[TokenOutput]:
        """Decode one batch to its end; rows that have ended are dropped from it when half of them have."""
        requests, params = [request for _, request, _ in wanted], [own for _, _, own in wanted]
        longest = max(own.max_tokens for own in params)
        noise = torch.zeros(len(wanted), longest, dtype=torch.float64)  # [B, L]
        for row, (_, request, own) in enumerate(wanted):
            noise[row, : own.max_tokens] = _uniforms(request.seed, own.max_tokens)
        ids, mask = _left_padded([request.prompt_ids for request in requests])
        ids, mask = ids.to(self.device), mask.to(self.device)
        rows = list(range(len(requests)))  # which request each row of the batch is
        tokens: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        ended: set[int] = set()
        cache = DynamicCache()
        for position in range(longest):
            logits = self._next_logits(ids, mask, cache)
            chosen, values = _sample(logits, noise[rows, position].to(self.device), params[0].temperature)
            for row, token, value in zip(rows, chosen.tolist(), values.tolist(), strict=True):
                if row in ended:
                    continue
                tokens[row].append(token)
                logprobs[row].append(value)
                reason = self._ended(tokens[row], params[row])
                if reason is not None:
                    ended.add(row)
                    versions = [self.version] * len(tokens[row])
                    yield TokenOutput(wanted[row][0], tokens[row], logprobs[row], reason, versions)
            alive = [place for place, row in enumerate(rows) if row not in ended]
            if not alive:
                return
            ids, mask = chosen[:, None], torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            if len(alive) <= len(rows) // 2:
                kept = torch.tensor(alive, device=self.device)
                cache.batch_select_indices(kept)
                ids, mask, rows = ids[kept], mask[kept], [rows[place] for place in alive]

    def _next_logits(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _ended(self, tokens: Sequence[int], params: SamplingParams) -> FinishReason | None:
        if tokens[-1] in self.eos_ids:
            return "stop"
        if params.stop and self.tokenizer is not None:
            text = self.tokenizer.decode(tokens, skip_special_tokens=False)
            if any(stop in text for stop in params.stop):
                return "stop"
        return "length" if len(tokens) >= params.max_tokens else None

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See Engine.load_weights. Nothing is cached between calls."""
        ours = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in weights:
                if name not in ours:
                    raise SamplerError(f"the trainer sent a weight {name!r} that the sampler does not have")
                ours.pop(name).copy_(weight)
        if ours:
            raise SamplerError(
                f"the trainer did not send {len(ours)} weights, {next(iter(ours))!r} among them"
            )

    def load_adapter(self, folder: Path) -> None:
        """See Engine.load_adapter."""
        if not self.adapted:
            self.model.load_adapter(str(folder))
            self.model.requires_grad_(False).to(self.device).eval()
            self.adapted = True
        else:
            lora.load(self.model, folder)

    def release(self) -> None:
        """See Engine.release. The weights stay: this engine is for small models."""

    def reclaim(self) -> None:
        """See Engine.reclaim."""

    def close(self) -> None:
        """See Engine.close."""
        del self.model


class TransformersStream:
    """See Stream. A batch is decoded to its end before what was added meanwhile is begun."""

    in_batches = True

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine = engine
        self._wanted: list[Wanted] = []

    @property
    def busy(self) -> bool:
        """See Stream."""
        return bool(self._wanted)

    def add(self, index: int, request: TokenRequest, params: SamplingParams) -> None:
        """See Stream."""
        self._wanted.append((index, request, params))

    def step(self) -> list[TokenOutput]:
        """See Stream: everything that was added, as far as it fits into one batch."""
        batch, self._wanted = self._wanted[: self.engine.max_seqs], self._wanted[self.engine.max_seqs :]
        return list(self.engine.decode(batch))


def _uniforms(seed: int, num: int) -> Tensor:
    """One uniform number per token, all of the request's own seed: its sample depends on no neighbour."""
    return torch.rand(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _sample(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits [B, V], uniforms [B] -> tokens [B] and their log-probabilities [B] under the tempered softmax.

    Greedy at temperature 0, with the untempered log-probabilities.
    """
    logprobs = torch.log_softmax(logits / temperature if temperature > 0 else logits, dim=-1)
    if temperature == 0:
        tokens = logprobs.argmax(-1)
    else:
        cumulative = logprobs.double().exp().cumsum(-1)
        # Scaled by the true total, so that rounding can never lead past the last token.
        tokens = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True)[:, 0]
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask [B, longest], prompts flush right."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask
