"""The settings of a recipe: one class per TOML section, and what each algorithm chooses by itself."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Share = Annotated[float, Field(ge=0, lt=1)]


class ConfigError(ValueError):
    """A recipe, an override or a data file asks for something that does not exist or cannot be."""


class Section(BaseModel):
    """Frozen, strict about names, finite numbers only."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and wanted not in (bool, bool | None):
            raise ValueError("true and false fit no setting of this kind")
        return value


class TrainConfig(Section):
    """engine/train.py."""

    num_steps: int = Field(default=100, ge=1)
    """Rollout batches to train on."""
    seed: int = Field(default=0, ge=0)
    """Seeds data order, sampling and everything made for the run."""
    num_minibatches: int = Field(default=1, ge=1)
    """Optimizer steps taken on each batch of rollouts."""
    max_nonfinite_steps: int = Field(default=3, ge=1)
    """Stop after this many skipped (non-finite) steps in a row."""


class RunConfig(Section):
    """engine/run.py."""

    folder: str = ""
    """Run folder; empty means runs/RECIPE."""
    save_every: int = Field(default=50, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept on disk; at least 2 survive a corrupt newest one."""


class DataConfig(Section):
    """engine/data.py."""

    path: str = ""
    """A .jsonl, .parquet or .csv file, a hub id, or a maker `package.module:function`, `file.py:function`."""
    split: str = "train"
    """Split to read of a hub data set."""
    options: dict[str, Any] = {}
    """Keyword arguments for a maker."""
    columns: dict[str, str] = {}
    """Our column name -> the file's, e.g. {prompt = "question", answer = "solution"}."""
    eval_path: str = ""
    """Held-out problems from elsewhere; empty holds out `num_eval` problems of `path`."""
    eval_split: str = "test"
    """Split to read of `eval_path` when it is a hub data set."""
    num_eval: int = Field(default=500, ge=0)
    """Problems held out of `path`; with `eval_path`, at most this many of it (0 = all of it)."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What a malformed row does: stop with its file and line, or be skipped and counted."""
    shuffle: bool = True
    """Draw problems in a seeded order, a new one each epoch; false keeps the file's order."""
    curriculum: str = ""
    """Column naming each problem's category (a level, a topic): categories are drawn by how much they teach
    now, p(1-p) of their running solve rate. Empty draws all problems alike."""


class PromptsConfig(Section):
    """engine/prompts.py."""

    system: str = ""
    """System message; needs a chat template."""
    template: Literal["plain", "boxed", "think_answer"] = "plain"
    """Instruction added to the problem: none, answer in \\boxed{}, or <think>/<answer> tags."""
    chat: Literal["auto", "always", "never"] = "auto"
    """Use the tokenizer's chat template: when it has one, always (an error if it has none), or never."""
    prefill: str = ""
    """Text the completion is forced to begin with, e.g. "<think>"; not trained on, seen by the verifier."""


class RolloutConfig(Section):
    """engine/rollout.py and its two samplers."""

    backend: Literal["auto", "vllm", "transformers"] = "auto"
    """Sampler: vLLM in this process, plain transformers, or vLLM where it is installed."""
    group_size: int = Field(default=8, ge=1)
    """Rollouts sampled per problem (G)."""
    groups_per_step: int = Field(default=32, ge=1)
    """Groups trained on per step, after dynamic sampling (P)."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest completion, in tokens."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Longest prompt, in tokens; a longer one is a malformed row."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the trainer divides its logits by the same number."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Must stay 1: the trainer cannot reproduce a truncated distribution."""
    top_k: int = Field(default=0, ge=0)
    """Must stay 0 (off), as top_p."""
    stop: list[str] = []
    """Strings that end a completion, besides the end-of-sequence token."""
    max_seqs: int = Field(default=256, ge=1)
    """Sequences decoded at once."""
    kv_cache_gb: float = Field(default=1.0, gt=0)
    """vLLM on a CPU: memory for the KV cache."""
    gpu_memory_frac: float = Field(default=0.5, gt=0, lt=1)
    """vLLM on a GPU: share of the device's memory for the engine (trainer and engine share one device)."""
    sleep: bool = True
    """vLLM on a GPU: give the engine's memory to the trainer between rollouts."""
    enforce_eager: bool = False
    """vLLM on a GPU: do not capture CUDA graphs (a CPU engine is always eager)."""


class DynamicSamplingConfig(Section):
    """engine/dynamic_sampling.py."""

    enabled: bool | None = None
    """Drop groups whose rewards are all equal and sample others; empty takes the algorithm's own choice."""
    oversample: float = Field(default=3.0, ge=1)
    """Cap on groups sampled per step, as a multiple of groups_per_step."""


class VerifierConfig(Section):
    """verifiers/registry.py and verifiers/isolation.py."""

    name: str = "math_answer"
    """A registered name, `path/to/file.py:function`, or `package.module:function`."""
    options: dict[str, Any] = {}
    """Keyword arguments for the verifier."""
    num_workers: int = Field(default=2, ge=1)
    """Killable worker processes."""
    deadline_s: float | None = Field(default=None, gt=0)
    """Wall time for one check; empty takes the verifier's own."""
    memory_mb: int = Field(default=2048, ge=256)
    """Memory limit of one worker."""
    max_undecided_frac: float = Field(default=0.5, ge=0, le=1)
    """Stop the run when more than this share of one step's verdicts is undecided."""


class AlgorithmConfig(Section):
    """engine/algorithms.py, engine/loss.py, engine/advantage.py. Empty settings take the algorithm's row."""

    name: str = "dapo"
    """A row of the table: see ALGORITHMS below and docs/algorithms.md."""
    clip_low: float | None = Field(default=None, ge=0, le=1)
    """The ratio is clamped to at least 1 - clip_low."""
    clip_high: float | None = Field(default=None, ge=0)
    """The ratio is clamped to at most 1 + clip_high."""
    std_eps: float | None = Field(default=None, gt=0)
    """Added to the standard deviation where the algorithm divides by it."""
    overlong_filter: bool = False
    """Leave truncated rollouts out of the loss (their reward still counts in the baseline)."""
    overlong_buffer_tokens: int = Field(default=0, ge=0)
    """DAPO's soft overlong punishment over the last tokens before max_tokens; 0 is off."""
    correction: Literal["icepop", "tis", "none"] = "icepop"
    """Token importance weight trainer/sampler: masked outside [low, high], truncated at high, or none."""
    correction_low: float = Field(default=0.5, ge=0)
    """Lower bound of icepop."""
    correction_high: float | None = Field(default=None, gt=0)
    """Upper bound; empty is 5 for icepop and 2 for tis."""
    old_logprobs: Literal["trainer", "rollout"] = "trainer"
    """The policy the ratio is taken against: the trainer at the step's start, or the sampler's (bypass)."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL term against the frozen starting model; 0 keeps no reference."""
    kl_estimator: Literal["k3_ratio", "k2"] = "k3_ratio"
    """KL term in the loss; both have the gradient of KL(policy || reference)."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus."""


class PolicyConfig(Section):
    """engine/policy.py."""

    model: str = ""
    """A Hugging Face folder or hub id, or a maker `package.module:function` / `file.py:function`."""
    options: dict[str, Any] = {}
    """Keyword arguments for a maker."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of trainer and sampler; the trained weights themselves are kept in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the trainer computes."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    tokens_per_batch: int = Field(default=8192, ge=1)
    """Token budget of one packed forward and backward pass."""
    head_chunk_tokens: int = Field(default=1024, ge=1)
    """Tokens whose logits are held at once."""
    trust_remote_code: bool = False
    """Run model code from the hub."""


class OptimConfig(Section):
    """engine/optim.py."""

    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """AdamW's averaging constants."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay, on matrices only."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up; linear and cosine end at zero after train.num_steps."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""


class SyncConfig(Section):
    """engine/sync.py."""

    max_canary_gap: float | None = Field(default=None, gt=0)
    """Largest |log-probability| gap allowed between trainer and sampler after a weight sync; empty is
    1e-3 for float32 and 0.25 for bfloat16."""
    max_mismatch_kl: float | None = Field(default=None, gt=0)
    """Largest mismatch_kl of a step, sampler against trainer, before the run stops; empty is 1e-3 for float32
    and 0.05 for bfloat16."""


class EvalConfig(Section):
    """engine/eval.py."""

    every: int = Field(default=25, ge=0)
    """Steps between evaluations on held-out problems; step 0 and the last always; 0 never evaluates."""
    num_samples: int = Field(default=1, ge=1)
    """Samples per problem (n)."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    verifier: str = ""
    """Judge of held-out answers; empty is verifier.name. Another one shows a reward that is being gamed, or
    what training on a random reward did."""
    verifier_options: dict[str, Any] = {}
    """Keyword arguments for eval.verifier."""
    pass_k: list[int] = []
    """k of pass@k and maj@k to report, each at most num_samples."""


class Config(Section):
    """A whole recipe."""

    train: TrainConfig = TrainConfig()
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    prompts: PromptsConfig = PromptsConfig()
    rollout: RolloutConfig = RolloutConfig()
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    verifier: VerifierConfig = VerifierConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    policy: PolicyConfig = PolicyConfig()
    optim: OptimConfig = OptimConfig()
    sync: SyncConfig = SyncConfig()
    eval: EvalConfig = EvalConfig()


class Defaults(BaseModel):
    """What an algorithm's row chooses where the recipe is silent."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    std_eps: float | None = None
    """None where the algorithm does not divide by a standard deviation."""
    dynamic_sampling: bool = False
    group_baseline: bool = True


ALGORITHMS: Mapping[str, Defaults] = {
    "grpo": Defaults(std_eps=1e-6),
    "dr_grpo": Defaults(),
    "dapo": Defaults(clip_high=0.28, std_eps=1e-6, dynamic_sampling=True),
    "rloo": Defaults(),
    "ppo": Defaults(std_eps=1e-6, group_baseline=False),
}
"""Rows of the table of algorithms; engine/algorithms.py holds each row's functions."""

SYNC_LIMITS = {
    "float32": {"max_canary_gap": 1e-3, "max_mismatch_kl": 1e-3},
    "bfloat16": {"max_canary_gap": 0.25, "max_mismatch_kl": 0.05},
}
"""Gaps between trainer and sampler that the number type alone explains, with room."""
