"""Sampling by vLLM inside this process, through the engine's own step loop."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

if not torch.cuda.is_available():
    # vLLM compiles small helpers on first use; on a CPU that costs 20 s and saves nothing.
    torch._dynamo.config.disable = True

from transformers import AutoConfig
from vllm import LLM
from vllm import SamplingParams as VllmParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from verigrad.engine.config import Config, ConfigError
from verigrad.engine.rollout import SamplerError, SamplingParams, TokenOutput, TokenRequest
from verigrad.engine.trace_file import watch_engine
from verigrad.engine.vllm_cpu_kernels import kernel_settings
from verigrad.engine.weight_sharing import Layout, NoLayout, unpacked

CACHE_BLOCK = 128  # tokens, of vLLM's CPU build
SPARE_BLOCKS = 16
KEPT_FREE = 16  # of rollout.max_seqs, an eighth at most: for canaries while rollouts last
MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values vLLM takes


class VllmEngine:
    """One request per sample: results stream back while others are still being decoded."""

    def __init__(self, cfg: Config, model_folder: str, *, eos_ids: Sequence[int], seed: int) -> None:
        self.eos_ids = list(eos_ids)
        self.on_gpu = torch.cuda.is_available() and cfg.policy.device != "cpu"
        self.sleeps = self.on_gpu and cfg.rollout.sleep
        threads = torch.get_num_threads()
        set_num_threads = torch.set_num_threads
        with unpacked(cfg.sync.route == "shared" and not self.on_gpu):
            self.llm = LLM(
                model=model_folder,
                dtype=cfg.policy.dtype,
                seed=seed % 2**31,
                max_model_len=cfg.rollout.max_prompt_tokens + cfg.rollout.max_tokens,
                max_num_seqs=cfg.rollout.max_seqs,
                # Ratios need the distribution that was sampled from, not the raw one (the engine's default).
                logprobs_mode="processed_logprobs",
                skip_tokenizer_init=not (cfg.rollout.stop or cfg.agent.tools),  # stop strings need it
                trust_remote_code=cfg.policy.trust_remote_code,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                generation_config="vllm",  # the model folder's own top_p or temperature must not sneak in
                # After an update in flight all that is half sampled is read again; canaries come before it.
                scheduling_policy="priority" if cfg.rollout.max_staleness else "fcfs",
                **self._device_settings(cfg, model_folder),
                **adapter_settings(cfg),
            )
        # The CPU worker replaces this function by a no-op for the whole process; the trainer needs it.
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        self.max_seqs = cfg.rollout.max_seqs
        self._num_calls = 0
        self._streams: dict[str, VllmStream] = {}  # by name, those that are open
        self.version = -1
        self.adapter: LoRARequest | None = None
        self.layout: Layout | None = None  # without one weights go through vLLM's own loader
        watch_engine(self)

    def _device_settings(self, cfg: Config, model_folder: str) -> dict[str, Any]:
        if not self.on_gpu:
            longest = cfg.rollout.max_prompt_tokens + cfg.rollout.max_tokens
            return {
                "enforce_eager": True,
                # Of less than a block nothing can be kept; but updates in flight are told through the cache.
                "enable_prefix_caching": longest > CACHE_BLOCK or cfg.rollout.max_staleness > 0,
                **kernel_settings(),
                # All of it is written at the start, so what could never be used is not asked for.
                "kv_cache_memory_bytes": min(
                    int(cfg.rollout.kv_cache_gb * 2**30), usable_cache_bytes(cfg, model_folder)
                ),
                # A prompt cut in two makes vLLM rewind the request's seed, which a CPU generator cannot.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(longest, 4096),
            }
        return {
            "enforce_eager": cfg.rollout.enforce_eager,
            "gpu_memory_utilization": cfg.rollout.gpu_memory_frac,
            "enable_sleep_mode": self.sleeps,
        }

    def generate(self, requests: Sequence[TokenRequest], params: SamplingParams) -> Iterator[TokenOutput]:
        """See Engine.generate."""
        with self.stream() as stream:
            for index, request in enumerate(requests):
                stream.add(index, request, params)
            while stream.busy:
                yield from stream.step()

    @contextmanager
    def stream(self, *, lasting: bool = False) -> Iterator["VllmStream"]:
        """See Engine.stream."""
        if any(not stream.lasting for stream in self._streams.values()):
            raise SamplerError(
                "the engine still holds requests of an earlier call; exhaust or close it first"
            )
        self._num_calls += 1
        if not self._streams:
            # What an earlier call left in the cache would change this one's last bits, and a resumed run has
            # no earlier call.
            self._reset_prefix_cache()
        stream = VllmStream(self, f"{self._num_calls}", lasting=lasting)
        self._streams[stream.name] = stream
        try:
            yield stream
        finally:
            stream.abort()
            del self._streams[stream.name]

    @property
    def version(self) -> int:
        """See Engine.version."""
        return int(self.llm.llm_engine.get_weight_version())

    @version.setter
    def version(self, version: int) -> None:
        self.llm.llm_engine.set_weight_version(str(version))

    @property
    def num_running(self) -> int:
        """Requests of all streams that vLLM holds."""
        return sum(stream.num_running for stream in self._streams.values())

    def drain(self) -> None:
        """Step until vLLM has let go of what was aborted, where nothing else is under way."""
        while self.num_running == 0 and self.llm.llm_engine.has_unfinished_requests():
            self.llm.llm_engine.step()

    def step(self) -> None:
        """Decode one token of each request, and hand what has finished to the stream it is of."""
        for stream in self._streams.values():
            stream.fill()
        for output in self.llm.llm_engine.step():
            if output.finished:
                name = output.request_id.split("/")[0]
                if (owner := self._streams.get(name.partition("-")[0])) is not None:
                    owner.finish(name, output.outputs[0])

    def vllm_params(self, params: SamplingParams, *, seed: int) -> VllmParams:
        """Our parameters as vLLM takes them."""
        return VllmParams(
            temperature=params.temperature,
            max_tokens=params.max_tokens,
            seed=seed,
            logprobs=0,  # of the sampled token only
            flat_logprobs=True,
            stop=list(params.stop) or None,
            stop_token_ids=self.eos_ids,
            include_stop_str_in_output=bool(params.stop),
            detokenize=bool(params.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def lay_out(self, shapes: Mapping[str, torch.Size] | None) -> Layout | None:
        """Find the places of weights with these names and shapes, and write them there from now on.

        None goes back to vLLM's loader. Raises weight_sharing.NoLayout for a model whose places are unknown.
        """
        model = self.llm.apply_model(lambda model: model)[0]  # the engine is in this process
        self.layout = None if shapes is None else Layout(model, shapes)
        return self.layout

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See Engine.load_weights. Without a layout they go through vLLM's own loader."""
        if self.layout is not None:
            try:
                self.layout.write(weights)
            except NoLayout as error:
                raise SamplerError(f"the sampler cannot take the trainer's weights: {error}") from error
        else:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
            if not self.on_gpu:
                self.llm.apply_model(_repack_head)
        self._reset_prefix_cache()

    def load_adapter(self, folder: Path) -> None:
        """See Engine.load_adapter. Every version is an adapter of its own: vLLM never reads one twice."""
        before = self.adapter
        number = before.lora_int_id + 1 if before else 1
        self.adapter = LoRARequest(f"version-{number}", number, str(folder))
        if not self.llm.llm_engine.add_lora(self.adapter):
            raise SamplerError(f"vLLM refused adapter {number}; see its log")
        if before is not None:
            self.llm.llm_engine.remove_lora(before.lora_int_id)
        self._reset_prefix_cache()

    def _reset_prefix_cache(self) -> None:
        """Forget activations; what lasting streams have begun has its own computed anew."""
        running = bool(self._streams) and all(stream.lasting for stream in self._streams.values())
        if not self.llm.llm_engine.reset_prefix_cache(reset_running_requests=running):
            raise SamplerError(
                "vLLM refused to reset its prefix cache, so cached activations of the old weights would be "
                "used with the new ones; no request may be running during a weight sync"
            )

    def release(self) -> None:
        """See Engine.release. On a CPU the engine holds no device memory that the trainer could use."""
        if self.sleeps and self._streams:
            self._reset_prefix_cache()  # what lasts begins again with its activations
        if self.sleeps and self.layout is not None and self.layout.shared:
            self.llm.sleep(level=0)  # its weights are the trainer's: only the cache is given away
            self.llm.release_kv_cache_memory()
        elif self.sleeps:
            self.llm.sleep(level=1)

    def reclaim(self) -> None:
        """See Engine.reclaim."""
        if self.sleeps:
            self.llm.wake_up()

    def close(self) -> None:
        """See Engine.close."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm


class VllmStream:
    """See Stream. vLLM takes new requests between any two steps of decoding.

    A lasting stream gives it no more than it decodes at once, and leaves a few places free: what others ask
    for in passing need not wait for all that is to be trained on.
    """

    in_batches = False

    def __init__(self, engine: VllmEngine, name: str, *, lasting: bool) -> None:
        self.engine, self.name, self.lasting = engine, name, lasting
        self._running: dict[str, int] = {}  # indices of what vLLM holds, by the name it knows them by
        self._waiting: deque[tuple[int, TokenRequest, SamplingParams]] = deque()
        self._done: list[TokenOutput] = []
        self._num_added = 0

    @property
    def busy(self) -> bool:
        """See Stream."""
        return bool(self._running or self._waiting or self._done)

    @property
    def num_running(self) -> int:
        """Requests that vLLM holds."""
        return len(self._running)

    def add(self, index: int, request: TokenRequest, params: SamplingParams) -> None:
        """See Stream."""
        if self.lasting:
            self._waiting.append((index, request, params))
        else:
            self._begin(index, request, params)

    def fill(self) -> None:
        """Begin what waits, as far as there is room."""
        room = self.engine.max_seqs - min(KEPT_FREE, self.engine.max_seqs // 8)
        while self._waiting and self.engine.num_running < room:
            self._begin(*self._waiting.popleft())

    def _begin(self, index: int, request: TokenRequest, params: SamplingParams) -> None:
        engine, name = self.engine, f"{self.name}-{self._num_added}"
        self._num_added += 1
        prompt = {"prompt_token_ids": list(request.prompt_ids)}
        own = engine.vllm_params(params, seed=request.seed)
        # Only an engine that schedules by priority looks at it; a lower one comes first.
        order = int(self.lasting)
        engine.llm.llm_engine.add_request(name, prompt, own, lora_request=engine.adapter, priority=order)
        self._running[name] = index

    def step(self) -> list[TokenOutput]:
        """See Stream: one token for each unfinished sample."""
        if not self._done:  # another stream's steps may have finished some
            self.engine.step()
        done, self._done = self._done, []
        return done

    def finish(self, name: str, completion: Any) -> None:
        """Take what vLLM made of one request."""
        if (index := self._running.pop(name, None)) is not None:
            self._done.append(_token_output(index, completion))

    def abort(self) -> None:
        """Drop what is unfinished."""
        self._waiting.clear()
        if self._running:  # the caller gave up half-way
            self.engine.llm.llm_engine.abort_request(list(self._running))
            self._running.clear()
            self.engine.drain()


def usable_cache_bytes(cfg: Config, model_folder: str) -> int:
    """Most that the KV cache of `rollout.max_seqs` sequences of full length can take, and a quarter more.

    For a model whose layers are not plain attention (a config without the usual numbers): no limit.
    """
    shape = AutoConfig.from_pretrained(
        model_folder, trust_remote_code=cfg.policy.trust_remote_code
    ).get_text_config()
    heads = getattr(shape, "num_attention_heads", None)
    layers = getattr(shape, "num_hidden_layers", None)
    if not heads or not layers or getattr(shape, "kv_lora_rank", None):
        return sys.maxsize
    kv_heads = getattr(shape, "num_key_value_heads", None) or heads
    width = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    token_bytes = 2 * layers * kv_heads * width * (4 if cfg.policy.dtype == "float32" else 2)
    longest = cfg.rollout.max_prompt_tokens + cfg.rollout.max_tokens
    blocks = cfg.rollout.max_seqs * -(-longest // CACHE_BLOCK) + SPARE_BLOCKS
    return int(blocks * CACHE_BLOCK * token_bytes * 5 // 4)


def adapter_settings(cfg: Config) -> dict[str, Any]:
    """vLLM's, for an engine that is given adapters: room for two, the last version and the next."""
    if cfg.lora.rank == 0 or cfg.lora.load == "merged":
        return {}
    if cfg.lora.rank > MAX_LORA_RANKS[-1]:
        raise ConfigError(
            f"lora.rank = {cfg.lora.rank} is more than the {MAX_LORA_RANKS[-1]} that vLLM loads; "
            "set lora.load = 'merged', or a lower rank"
        )
    room = next(rank for rank in MAX_LORA_RANKS if rank >= cfg.lora.rank)
    return {"enable_lora": True, "max_lora_rank": room, "max_loras": 2, "max_cpu_loras": 2}


def _token_output(index: int, completion: Any) -> TokenOutput:
    token_ids = list(completion.token_ids)
    logprobs = list(completion.logprobs.logprobs) if completion.logprobs is not None else []
    if len(logprobs) != len(token_ids):
        raise SamplerError(f"vLLM gave {len(logprobs)} log-probabilities for {len(token_ids)} tokens")
    versions = [
        int(span.version) for span in completion.weight_versions or () for _ in range(span.start, span.end)
    ]
    if len(versions) != len(token_ids):
        raise SamplerError(f"vLLM gave weight versions for {len(versions)} of {len(token_ids)} tokens")
    reason = completion.finish_reason
    return TokenOutput(
        index, token_ids, logprobs, reason if reason in ("stop", "length") else "abort", versions
    )


def _repack_head(model: Any) -> None:
    """Refresh the CPU build's packed copy of the output head.

    With tied embeddings `reload_weights` updates the embedding but leaves that copy as it was, and every
    later log-probability is silently wrong.
    """
    head = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "quant_method") and hasattr(head, "cpu_linear"):
        head.quant_method.process_weights_after_loading(head)
