"""The settings of a recipe: one class per TOML section, and what each algorithm chooses by itself."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Share = Annotated[float, Field(ge=0, lt=1)]
Verb = Literal["train", "sft", "sample", "prefer", "reward", "label"]
OWN_SECTIONS: tuple[Verb, ...] = ("sft", "sample", "prefer", "reward", "label")
"""Sections of one command alone, named as it."""


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
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Where metrics are shown besides metrics.jsonl; each needs `pip install verigrad[trackers]`."""
    project: str = Field(default="verigrad", min_length=1, max_length=128, pattern=r"^[^/\\#?%:\n]+$")
    """Project the run is listed under, in wandb and trackio."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f'expected a list, as in ["{value}"]')
        if isinstance(value, list) and any(value.count(name) > 1 for name in value):
            raise ValueError("names a tracker twice; name it once")
        return value

    @field_validator("project")
    @classmethod
    def _has_effect(cls, value: str, info: ValidationInfo) -> str:
        listed = set(info.data.get("trackers", [])) & {"wandb", "trackio"}
        if value != "verigrad" and not listed:
            raise ValueError("has no effect without 'wandb' or 'trackio' in run.trackers; remove it")
        return value


EVAL_NAME = re.compile(r"[A-Za-z0-9_-]+")


class EvalSet(Section):
    """One more set of held-out problems, a table [data.evals.NAME] of a recipe; engine/data.py."""

    path: str = Field(min_length=1)
    """A .jsonl, .parquet or .csv file, a hub id, or a maker."""
    split: str = "test"
    """Split to read of a hub data set."""
    options: dict[str, Any] = {}
    """Keyword arguments for a maker."""
    columns: dict[str, str] = {}
    """Our column name -> the file's."""
    num: int = Field(default=0, ge=0)
    """At most this many problems of it, the same ones for the same seed; 0 is all."""
    verifier: str = ""
    """Judge of this set; empty is that of [eval]."""
    verifier_options: dict[str, Any] = {}
    """Keyword arguments for the judge."""
    num_samples: int | None = Field(default=None, ge=1)
    """Samples per problem; empty is eval.num_samples."""
    temperature: float | None = Field(default=None, ge=0)
    """Sampling temperature; empty is eval.temperature."""


class MixSet(Section):
    """One more set of data to learn from, a table [data.mix.NAME] of a recipe; engine/mixture.py."""

    path: str = Field(min_length=1)
    """A .jsonl, .parquet or .csv file, a hub id, or a maker."""
    split: str = "train"
    """Split to read of a hub data set."""
    options: dict[str, Any] = {}
    """Keyword arguments for a maker."""
    columns: dict[str, str] = {}
    """Our column name -> the file's."""
    num_eval: int = Field(default=500, ge=0)
    """Prompts held out of it, whose evaluation is recorded under this set's name; 0 holds out none."""
    weight: float = Field(default=1.0, gt=0)
    """Examples drawn of it, relative to the weights of the others and of data.path (data.weight)."""


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
    evals: dict[str, EvalSet] = {}
    """More held-out sets, each a table [data.evals.NAME] with at least a path; see docs/evaluation.md."""
    mix: dict[str, MixSet] = {}
    """More data to learn from, each a table [data.mix.NAME] with at least a path; see docs/sft.md."""
    weight: float = Field(default=1.0, gt=0)
    """Examples drawn of `path`, relative to the weights of data.mix."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What a malformed row does: stop with its file and line, or be skipped and counted."""
    shuffle: bool = True
    """Draw problems in a seeded order, a new one each epoch; false keeps the file's order."""

    @field_validator("evals", "mix")
    @classmethod
    def _names_of_files(cls, sets: dict[str, Any]) -> dict[str, Any]:
        for name in sets:
            if not EVAL_NAME.fullmatch(name):
                raise ValueError(f"the name {name!r} may hold only letters, digits, _ and -")
        return sets


class CurriculumConfig(Section):
    """engine/curriculum.py."""

    by: Literal["", "category", "problem"] = ""
    """What is drawn by how much it teaches now, p(1-p) of its solve rate: categories, or each problem. Empty
    draws all problems alike."""
    column: str = ""
    """by category: the column naming each problem's category (a level, a topic)."""
    floor: float = Field(default=0.04, gt=0, le=1)
    """Added to p(1-p), so that what is solved or hopeless is still looked at now and then."""
    rate_column: str = ""
    """by problem: the column with each problem's first solve rate, 0 to 1, such as another model's. Empty
    starts all at 0.5."""
    memory: Share = 0.5
    """by problem: weight of what was seen of a problem before, at each new visit."""
    retire_after: int = Field(default=2, ge=0)
    """by problem: visits in a row, all of their rollouts right, after which a problem is drawn no more but to
    be checked again. 0 retires none."""
    recheck_frac: Share = 0.05
    """by problem: share of the draws that check retired problems again; one wrong answer brings one back."""

    @model_validator(mode="after")
    def _every_setting_counts(self) -> "CurriculumConfig":
        belongs = {
            "category": {"column", "floor"},
            "problem": {"floor", "rate_column", "memory", "retire_after", "recheck_frac"},
        }
        fields = type(self).model_fields
        chosen = {name for name in fields if getattr(self, name) != fields[name].default} - {"by"}
        if unused := sorted(chosen - belongs.get(self.by, set())):
            name = unused[0]
            others = " or ".join(repr(by) for by, names in belongs.items() if name in names)
            raise ValueError(
                f"{name} has no effect with by = {self.by!r}; remove it or set curriculum.by = {others}"
            )
        if self.by == "category" and not self.column:
            raise ValueError("by = 'category' needs the name of a column; set curriculum.column")
        if not self.retire_after and "recheck_frac" in chosen:
            raise ValueError("recheck_frac has no effect with retire_after = 0; remove it")
        return self


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
    """Sampling temperature, 0.01 to 2; the trainer divides its logits by the same number."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Must stay 1: the trainer cannot reproduce a truncated distribution."""
    top_k: int = Field(default=0, ge=0)
    """Must stay 0 (off), as top_p."""
    stop: list[str] = []
    """Strings that end a completion, besides the end-of-sequence token."""
    max_seqs: int = Field(default=256, ge=1)
    """Sequences decoded at once."""
    kv_cache_gb: float = Field(default=1.0, gt=0)
    """vLLM on a CPU: most memory for each engine's KV cache; less where max_seqs cannot fill it."""
    gpu_memory_frac: float = Field(default=0.5, gt=0, lt=1)
    """vLLM on a GPU: share of the device's memory for the engine (trainer and engine share one device)."""
    sleep: bool = True
    """vLLM on a GPU: give the engine's memory to the trainer between rollouts."""
    enforce_eager: bool = False
    """vLLM on a GPU: do not capture CUDA graphs (a CPU engine is always eager)."""
    num_engines: int | None = Field(default=None, ge=1, le=16)
    """On a CPU: engines that sample at once, each with its own cores and copy of the weights; empty takes one
    per core, up to 4, to train a small model, else 1."""
    max_staleness: int = Field(default=0, ge=0)
    """Rollout batches by which the weights that begin a group may be behind those that train on it. Above 0,
    sampling and training overlap: see docs/async.md."""
    engine_process: bool | None = None
    """Asynchronous: sample in a process of its own; empty does where there is more than one core, or GPU."""


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
    steady_undecided_frac: float = Field(default=0.05, ge=0, le=1)
    """Pause the run when the undecided share stays above this for steady_undecided_steps steps in a row."""
    steady_undecided_steps: int = Field(default=5, ge=1)
    """Steps in a row for steady_undecided_frac."""
    cache: bool = True
    """Take a verdict on the same problem and response from memory; never undecided ones, agent tasks or
    controls."""
    audit: Literal["quick", "off"] = "quick"
    """Before training, attack the verifier on a few rows and refuse one that is fooled: see docs/audit.md."""
    audit_rows: int = Field(default=8, ge=1)
    """Rows of the data that the audit before training looks at."""


class SandboxConfig(Section):
    """engine/sandboxing.py, sandboxes/registry.py and sandboxes/pool.py; see docs/sandboxes.md."""

    backend: str = "auto"
    """container, bubblewrap, local_process, a registered name or `path/to/file.py:name`; auto takes the
    strongest that works here and says which."""
    trusted: bool = False
    """Allow local_process, which holds nothing back but runaways: only for code you would run yourself."""
    image: str = ""
    """container: image to run in; empty is the one that `verigrad sandboxes --build` makes."""
    runtime: str = ""
    """container: another runtime of the engine, such as runsc (gVisor); empty is the engine's own."""
    docker_host: str = ""
    """container: the engine's address, e.g. that of a rootless Docker or a Podman socket; empty is the
    environment's."""
    memory_mb: int = Field(default=1024, ge=64)
    """Memory of one whole sandbox."""
    disk_mb: int = Field(default=64, ge=1)
    """Files that one sandbox can hold."""
    pids: int = Field(default=128, ge=8)
    """Processes of one whole sandbox."""
    cpus: float = Field(default=1.0, gt=0)
    """Processors one sandbox can use."""
    options: dict[str, Any] = {}
    """Keyword arguments for a sandbox other than container, bubblewrap and local_process."""
    retries: int = Field(default=2, ge=0)
    """More sandboxes tried for one check after one was lost under it."""
    patience_s: float = Field(default=60.0, ge=0)
    """How long an engine that does not answer is waited for before a check is undecided."""


class AgentConfig(Section):
    """engine/episode.py; see docs/agents.md."""

    tools: list[str] = []
    """Tools the model may call, in a sandbox of its own: shell, python, edit_file, or `path/to/file.py:name`.
    Empty samples one completion per rollout."""
    protocol: Literal["auto", "chat", "text"] = "auto"
    """How tools are called: in the chat template's own format, or plain <tool>...</tool> text; auto takes the
    template's where there is one."""
    explain: bool = True
    """Tell of the tools in the prompt; false where the model knows them from its training."""
    max_turns: int = Field(default=8, ge=1)
    """Most turns of the model in one episode; a row's meta.max_turns may set fewer."""
    max_turn_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of one turn; empty is rollout.max_tokens, which bounds all that follows the prompt."""
    max_seconds: float = Field(default=120.0, gt=0)
    """Wall time of one episode, the model's own turns included."""
    tool_seconds: float = Field(default=10.0, gt=0)
    """Wall time of one tool call."""
    observation_chars: int = Field(default=2000, ge=1)
    """Most characters of a tool's output that the model is shown; the middle is left out."""
    max_sandboxes: int = Field(default=16, ge=1)
    """Sandboxes open at once; an episode takes one at its first tool call and keeps it to its end."""
    artifacts: list[str] = ["."]
    """Files and folders of the final state that are kept and judged."""
    artifact_mb: int = Field(default=4, ge=1)
    """Most that agent.artifacts may hold together, in MiB; an attempt that leaves more is wrong."""


class AlgorithmConfig(Section):
    """engine/algorithms.py and the files it joins. Empty settings take the row's, see engine/catalogue.py."""

    name: str = "dapo"
    """A row of the table: `verigrad algorithms` lists them, docs/algorithms/ explains them."""
    advantage: str = ""
    """Another advantage than the row's."""
    loss: str = ""
    """Another loss than the row's."""
    aggregation: str = ""
    """Another aggregation than the row's."""
    std_eps: float | None = Field(default=None, gt=0)
    """Added to the standard deviation where the advantage divides by one."""
    gamma: float | None = Field(default=None, gt=0, le=1)
    """Discount per sampled token, from the reward at the end back to each token."""
    lam: float | None = Field(default=None, ge=0, le=1)
    """gae: lambda of the policy's advantages."""
    critic_lam: float | None = Field(default=None, ge=0, le=1)
    """gae: lambda of the returns that the critic learns."""
    lam_alpha: float | None = Field(default=None, ge=0)
    """gae: lambda by length, 1 - 1 / (lam_alpha * tokens), in place of lam (VAPO); 0 is off."""
    whiten_rewards: bool = False
    """gae: scale the rewards of tokens, KL included, to a standard deviation of 1 over the step around their
    mean, which stays."""
    positive_nll_coef: float | None = Field(default=None, ge=0)
    """Weight of the negative log-likelihood of rollouts judged right, added to the loss; empty is 0.1 for
    vapo and 0 for all others."""
    pass_k: int | None = Field(default=None, ge=1)
    """k of pass@k training; at most rollout.group_size."""
    length_weight: float | None = Field(default=None, ge=0)
    """length_shaped: share of the group's mean reward that the longest rollout of a group loses."""
    part_weights: dict[str, float] = {}
    """gdpo: weight of each part of the reward by name; empty weighs all parts 1."""
    clip_low: float | None = Field(default=None, ge=0)
    """Lower bound: of the ratio, 1 - clip_low; some losses bound another quantity, see their page."""
    clip_high: float | None = Field(default=None, ge=0)
    """Upper bound: of the ratio, 1 + clip_high; some losses bound another quantity, see their page."""
    dual_clip: float | None = Field(default=None, gt=1)
    """dual_clip: most that a negative advantage is multiplied by."""
    ratio_cap: float | None = Field(default=None, gt=0)
    """Largest ratio itself (cispo, two_sided, dppo_tv, dppo_kl); never 1 + something."""
    ratio_floor: float | None = Field(default=None, ge=0)
    """cispo: smallest ratio itself."""
    tau_pos: float | None = Field(default=None, gt=0)
    """sapo: steepness of the gate where the advantage is positive."""
    tau_neg: float | None = Field(default=None, gt=0)
    """sapo: steepness of the gate where it is not."""
    vespo_k_pos: float | None = Field(default=None, ge=0)
    """vespo: exponent of the ratio where the advantage is not negative."""
    vespo_lam_pos: float | None = Field(default=None, ge=0)
    """vespo: decay with the ratio where the advantage is not negative."""
    vespo_k_neg: float | None = Field(default=None, ge=0)
    """vespo: exponent of the ratio where the advantage is negative."""
    vespo_lam_neg: float | None = Field(default=None, ge=0)
    """vespo: decay with the ratio where the advantage is negative."""
    pull: float | None = Field(default=None, ge=0)
    """prime, dro: weight of the squared log-ratio, which pulls back to the policy it is taken against."""
    beta: float | None = Field(default=None, gt=0)
    """Losses of pairs: how firmly the policy is held to the reference."""
    label_smoothing: float | None = Field(default=None, ge=0, lt=0.5)
    """dpo: share of the pairs taken to be the wrong way round."""
    margin: float | None = Field(default=None, ge=0)
    """simpo: margin (gamma) that the chosen rollout is to win by."""
    nll_coef: float | None = Field(default=None, ge=0)
    """Losses of pairs: weight of the chosen rollout's negative log-likelihood per token."""
    overlong_filter: bool = False
    """Leave truncated rollouts out of the loss (their reward still counts in the baseline)."""
    overlong_buffer_tokens: int = Field(default=0, ge=0)
    """DAPO's soft overlong punishment over the last tokens before max_tokens; 0 is off."""
    off_policy_delta: float | None = Field(default=None, ge=0)
    """Off-policy sequence mask: a rollout of negative advantage whose mean log(old / policy) is larger gives
    no loss; empty is off."""
    top_entropy_frac: float | None = Field(default=None, gt=0, le=1)
    """Train only this share of the step's tokens, those of highest entropy; empty trains all."""
    correction: Literal["icepop", "tis", "sequence_tis", "sequence_mask", "geometric_mask", "none"] = "icepop"
    """Importance weight trainer / sampler, of each token or the whole rollout: truncated, masked, or none.
    Left out with rollout.max_staleness > 0 it is tis."""
    correction_low: float | None = Field(default=None, ge=0)
    """Lower bound; empty is 0.5 for icepop and 0.999 for geometric_mask."""
    correction_high: float | None = Field(default=None, gt=0)
    """Upper bound; empty is 5 for icepop, 2 for tis and sequence_tis, 3 for sequence_mask, 1.002 for
    geometric_mask."""
    correction_norm: bool = False
    """Divide the importance weights by their mean over the step's tokens."""
    reject: Literal["none", "token", "sequence_sum", "sequence_mean", "sequence_max"] = "none"
    """Leave tokens or whole rollouts out, loss and denominator, when trainer and sampler disagree on them."""
    reject_measure: Literal["k1", "k2", "k3"] = "k1"
    """What the disagreement is measured by: k1 keeps the ratio trainer / sampler within [reject_low,
    reject_high]; k2 and k3 keep that KL estimate at most reject_high."""
    reject_low: float | None = Field(default=None, ge=0)
    """Lower bound of k1's ratio; empty is 0.5."""
    reject_high: float | None = Field(default=None, gt=0)
    """Upper bound; empty is 2 for k1 and 0.1 for k2 and k3."""
    old_logprobs: Literal["trainer", "rollout"] = "trainer"
    """The policy the ratio is taken against: the trainer at the step's start, or the sampler's (bypass)."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL term against the frozen starting model; 0 keeps no reference."""
    kl_place: Literal["loss", "reward"] = "loss"
    """Where the KL term enters: the loss, with its gradient; or each token's reward, where it has none."""
    kl_estimator: Literal["k1", "k2", "k3", "k3_plus", "k3_ratio", "abs"] | None = None
    """Estimator of the KL; empty is k3_ratio in the loss and k1 in the reward."""
    kl_target: float | None = Field(default=None, gt=0)
    """Adapt kl_coef so that the KL per token stays near this; empty keeps it fixed."""
    kl_horizon: float | None = Field(default=None, gt=0)
    """Rollouts over which kl_coef adapts; empty is 10000."""
    ref_sync_every: int = Field(default=0, ge=0)
    """Steps between moves of the reference towards the policy (TR-DPO); 0 keeps it frozen."""
    ref_sync_mix: float | None = Field(default=None, gt=0, le=1)
    """Share of the policy in the reference after a move; empty is 0.6."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus; where it adapts, the weight it starts from."""
    entropy_target: float | None = Field(default=None, gt=0)
    """Adapt entropy_coef so that the entropy stays near this, in nats; empty keeps it fixed."""
    entropy_delta: float | None = Field(default=None, gt=0)
    """Move of entropy_coef per step where it adapts; empty is 0.005."""


class PolicyConfig(Section):
    """engine/policy.py."""

    model: str = ""
    """A Hugging Face folder or hub id, or a maker `package.module:function` / `file.py:function`."""
    options: dict[str, Any] = {}
    """Keyword arguments for a maker."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of trainer and sampler; the trained weights themselves are kept in float32."""
    update_dtype: Literal["auto", "same", "float32", "bfloat16"] = "auto"
    """Compute type of the update alone; same is policy.dtype, and auto is too but for bfloat16 on a CPU with
    instructions for it, where old log-probabilities are the trainer's. See docs/packing.md."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the trainer computes."""
    attention: Literal["auto", "sdpa", "flex", "varlen"] = "auto"
    """How attention over packed sequences is computed; auto is sdpa on a CPU, and on a GPU flex where
    beginnings are shared and varlen where none are. See docs/packing.md."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    offload_activations: bool = False
    """Keep what the backward pass needs of a GPU's activations in the host's pinned memory."""
    skip_zero_advantage: bool = True
    """No backward pass of rollouts of advantage 0, where their gradient is exactly 0."""
    tokens_per_batch: int = Field(default=8192, ge=1)
    """Token budget of one packed forward and backward pass; a prefix shared by share_prefixes counts once."""
    share_prefixes: bool = True
    """Compute what sequences of a pass begin with alike, such as a group's prompt, once for all of them. Last
    digits differ from those without it: switch it off to go on as a run did that had none."""
    head_chunk_tokens: int | None = Field(default=None, ge=1)
    """Tokens whose logits are held at once; empty is as many as 128 MiB hold, on a GPU 0.94 GiB."""
    trust_remote_code: bool = False
    """Run model code from the hub."""


class LoraConfig(Section):
    """engine/lora.py."""

    rank: int = Field(default=0, ge=0)
    """Rank of the adapters (LoRA); 0 trains all weights."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapters' product is added times alpha / rank."""
    targets: list[str] = []
    """Linear layers that get one, by name, e.g. ["q_proj", "v_proj"]; empty is all but the output head."""
    load: Literal["merged", "adapter"] = "merged"
    """What the sampler is given after each step: whole weights with the adapters merged in, or the adapters
    alone, hot-loaded (less to copy, slower sampling)."""


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
    """engine/sync.py and engine/weight_sharing.py; see docs/weights.md."""

    route: Literal["auto", "shared", "copy", "reload"] = "auto"
    """How weights reach a vLLM engine in this process: one memory for both (shared), written in place (copy),
    or vLLM's own loader (reload); auto takes the cheapest that the model and the machine allow."""
    max_canary_gap: float | None = Field(default=None, gt=0)
    """Largest |log-probability| gap allowed between trainer and sampler after a weight sync; empty is
    1e-3 for float32 and 0.25 for bfloat16."""
    max_mismatch_kl: float | None = Field(default=None, gt=0)
    """Largest mismatch_kl of a step, sampler against trainer, before the run stops; empty is 1e-3 for float32
    and 0.05 for bfloat16, or 0.5 with rollout.max_staleness > 0, whose rollouts are of older weights."""


class EvalConfig(Section):
    """engine/evaluation.py."""

    every: int = Field(default=25, ge=0)
    """Steps between evaluations on held-out problems; step 0 and the last always; 0 never evaluates."""
    num_samples: int = Field(default=1, ge=1)
    """Samples per problem (n)."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy; else from 0.01 to 2."""
    verifier: str = ""
    """Judge of held-out answers; empty is verifier.name. Another one shows a reward that is being gamed, or
    what training on a random reward did."""
    verifier_options: dict[str, Any] = {}
    """Keyword arguments for eval.verifier."""
    pass_k: list[int] = []
    """k of pass@k and maj@k to report, each at most num_samples."""
    by: str = ""
    """Column that sorts problems into categories (a level, a topic): scores are given for each, too."""


class CriticConfig(Section):
    """engine/critic.py; read where the algorithm has a critic, as ppo and vapo have."""

    trunk: Literal["own", "shared"] = "own"
    """A model of its own, all of it trained, or one linear head on the policy's hidden states."""
    model: str = ""
    """own: a folder, hub id or maker to start from, such as a reward model; empty is policy.model."""
    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate of the critic (shared: of its head), on the schedule of [optim]."""
    value_clip: float = Field(default=0.5, ge=0)
    """Values may leave those at the step's start by this much before their loss is clipped; 0 is off."""
    coef: float = Field(default=1.0, gt=0)
    """shared: weight of the value loss beside the policy's."""
    warmup_steps: int = Field(default=0, ge=0)
    """First steps in which only the critic learns."""


class MonitorConfig(Section):
    """engine/monitor.py; see docs/monitor.md. A limit that is empty is measured and never trips."""

    enabled: bool = True
    """Measure each step's signs of reward hacking, as monitor/... in metrics.jsonl."""
    verifier: str = ""
    """A second reward that is not trained on, to hold the first against; empty is none."""
    verifier_options: dict[str, Any] = {}
    """Keyword arguments for monitor.verifier."""
    every: int = Field(default=1, ge=1)
    """Steps between looks by monitor.verifier."""
    num_rollouts: int = Field(default=64, ge=8)
    """Rollouts that monitor.verifier judges at a look, drawn with the seed."""
    max_proxy_gap: float = Field(default=0.3, gt=0)
    """Most by which the gain in reward since the first three looks may exceed that of monitor.verifier, in
    units of reward; 1000 never trips."""
    max_second_drop: float | None = Field(default=None, gt=0)
    """Largest fall of monitor.verifier's mean from its best, while the reward itself has not fallen."""
    max_length_corr: float | None = Field(default=None, gt=0, le=1)
    """Largest correlation of reward with length within groups."""
    max_repetition: float = Field(default=0.7, gt=0, le=1)
    """Largest share of 4-grams of tokens that repeat within a rollout, as a mean; 1 never trips."""
    max_answer_share: float = Field(default=0.9, gt=0, le=1)
    """Largest share of one answer among the paid rollouts of different problems; 1 never trips."""
    max_kl: float | None = Field(default=None, gt=0)
    """Largest distance from the reference, in nats per token; needs an algorithm that keeps a reference."""
    min_entropy_frac: float | None = Field(default=None, gt=0, lt=1)
    """Smallest entropy, as a share of that of the first three steps."""
    max_tamper_frac: float = Field(default=0.25, ge=0, le=1)
    """Largest share of rollouts that touch the test machinery; 1 never trips."""
    max_disagreement_ratio: float | None = Field(default=None, gt=1)
    """Largest disagreement of a reward ensemble's members, as a multiple of that of the first three steps."""
    patience: int = Field(default=2, ge=1)
    """Steps in a row (of monitor.verifier: looks) beyond a limit before it trips."""
    action: Literal["warn", "pause", "rollback"] = "pause"
    """What a tripped limit does: a note; a checkpoint and an end with status 1; or an end with status 1 and
    only the checkpoints from before the first step beyond the limit, later ones put aside."""


class SftConfig(Section):
    """engine/sft.py and engine/sft_data.py."""

    batch_size: int = Field(default=32, ge=1)
    """Examples of one optimizer step."""
    loss: Literal["nll", "dft"] = "nll"
    """Negative log-likelihood, or the same weighted by each token's probability (DFT, arXiv 2508.05629)."""
    max_length: int = Field(default=4096, ge=2)
    """Longest example, prompt and completion, in tokens; a longer one is a malformed row, never cut."""


class SampleConfig(Section):
    """engine/sample.py."""

    num_problems: int = Field(default=0, ge=0)
    """Problems to sample; 0 is all that are not held out."""
    num_samples: int = Field(default=8, ge=1)
    """Completions sampled of each problem."""
    keep: Literal["accepted", "all"] = "accepted"
    """What the verifier accepts and can be learned from; or all different answers, cut off ones included, for
    somebody to label."""
    keep_per_problem: int = Field(default=1, ge=1)
    """Most accepted completions kept of each problem: different ones, in the order of `sample.pick`."""
    pick: Literal["first", "best"] = "first"
    """Which accepted ones: the first by their seeds, or those of the highest reward (best of n)."""
    min_reward: float = 1.0
    """Smallest reward that is accepted; an undecided verdict never is."""


class PreferConfig(Section):
    """engine/prefer.py; the losses are in engine/preference_loss.py, see docs/preferences.md."""

    loss: Literal["dpo", "dpo_robust", "dpo_hinge", "ipo", "kto", "orpo", "simpo", "cpo"] = "dpo"
    """What is learned from pairs, or (kto) from single answers labelled good or bad."""
    beta: float | None = Field(default=None, gt=0)
    """How firmly the policy is held to the reference; empty is the loss's own: see docs/preferences.md."""
    label_smoothing: float | None = Field(default=None, ge=0, lt=0.5)
    """dpo, dpo_robust: share of the pairs taken to be the wrong way round."""
    length_norm: bool = False
    """dpo, ipo: mean log-probability of an answer's tokens instead of their sum."""
    margin: float | None = Field(default=None, ge=0)
    """simpo: margin (gamma) that the chosen answer is to win by; empty is 0.55 * beta."""
    nll_coef: float | None = Field(default=None, ge=0)
    """Losses of pairs: weight of the chosen answer's negative log-likelihood per token; empty is 1 for orpo
    and cpo, else 0."""
    odds_coef: float | None = Field(default=None, gt=0)
    """orpo: weight of the odds ratio (lambda); empty is 0.1."""
    good_weight: float | None = Field(default=None, gt=0)
    """kto: weight of good answers; empty is 1."""
    bad_weight: float | None = Field(default=None, gt=0)
    """kto: weight of bad answers; empty is 1."""
    batch_size: int = Field(default=32, ge=1)
    """Pairs (kto: answers) of one optimizer step."""
    max_length: int = Field(default=4096, ge=2)
    """Longest prompt and answer, in tokens; a longer one is a malformed row, never cut."""
    pairs_per_problem: int = Field(default=1, ge=1)
    """Where data.path is a run folder: most pairs made of one problem's rollouts, right against wrong."""


class RewardConfig(Section):
    """engine/reward.py; see docs/reward-models.md."""

    kind: Literal["pairs", "steps"] = "pairs"
    """A reward of whole answers, from preferences (Bradley-Terry); or of each step of an answer (PRM)."""
    batch_size: int = Field(default=32, ge=1)
    """Rows of one optimizer step."""
    max_length: int = Field(default=4096, ge=2)
    """Longest prompt and answer, in tokens; a longer one is a malformed row, never cut."""
    ranking: Literal["pairs", "plackett_luce"] = "pairs"
    """Rows with more than two ranked answers: as all their pairs, or as one ranking."""
    margin_column: str = ""
    """Column with the margin by which the chosen answer is better; empty is none."""
    center_coef: float = Field(default=0.01, ge=0)
    """Weight of the squared sum of a pair's rewards, which keeps rewards around 0 (arXiv 2312.09244)."""
    length_control: bool = False
    """Let a term of the difference in length explain what it can of the preferences, and drop it."""
    votes: Literal["each", "majority", "share"] = "each"
    """Several annotators of one pair: each a row by itself, their majority, or the share of each side."""
    members: int = Field(default=1, ge=1)
    """Reward models of the ensemble."""
    split: Literal["seeds", "folds"] = "seeds"
    """What tells members apart: their seeds, or also a fold of the data that each does not see."""
    aggregate: Literal["mean", "mean_minus_std", "min"] = "mean_minus_std"
    """How members' rewards become one; mean_minus_std and min are careful where they disagree."""
    std_coef: float = Field(default=1.0, ge=0)
    """mean_minus_std: standard deviations subtracted."""
    step_separator: str = "\n"
    """steps: what ends a step within an answer."""
    solution: Literal["min", "product", "last", "mean"] = "min"
    """steps: how the steps' scores become one of the answer."""
    max_length_corr: float = Field(default=0.5, gt=0, le=1)
    """Largest correlation of reward and length at equal preference with which it may be used."""
    pairs_per_problem: int = Field(default=1, ge=1)
    """Where data.path is a run folder: most pairs made of one problem's rollouts, right against wrong."""


class JudgeConfig(Section):
    """engine/judging.py and verifiers/judge_client.py; see docs/judges.md."""

    model: str = ""
    """A folder, hub id or maker served by vLLM in this process; at judge.url, the model's name there."""
    options: dict[str, Any] = {}
    """Keyword arguments for a maker."""
    seed: int = Field(default=0, ge=0)
    """Seed of a maker, and of a judge that samples: the judge stays the same whatever train.seed."""
    url: str = ""
    """An OpenAI-compatible endpoint, such as http://localhost:8000/v1 or unix:///run/judge.sock; empty serves
    judge.model here."""
    api: Literal["chat", "completions"] = "chat"
    """How an endpoint is asked: chat messages, or plain text."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key; the key itself is never written down."""
    logprobs: bool = True
    """Ask an endpoint for the probabilities of its choices; without them a judgement is all or nothing."""
    reason: bool = False
    """Ask for reasons before the judgement."""
    swap: bool = True
    """Judge every pair in both orders; what changes with the order is a tie."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of the judge."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest judgement, critique or revision, in tokens."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Longest question to a judge in this process, in tokens; a longer one is undecided."""
    concurrency: int = Field(default=8, ge=1)
    """Requests in flight at an endpoint."""
    requests_per_minute: float = Field(default=0.0, ge=0)
    """Most requests per minute at an endpoint; 0 is no limit."""
    retries: int = Field(default=4, ge=0)
    """Tries again after an endpoint failed or was busy."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Wall time of one request."""
    price_in: float = Field(default=0.0, ge=0)
    """Price of a million tokens asked, for the count of costs."""
    price_out: float = Field(default=0.0, ge=0)
    """Price of a million tokens answered."""
    max_cost: float = Field(default=0.0, ge=0)
    """Stop, resumably, when the costs reach this; 0 is no limit."""
    max_undecided_frac: float = Field(default=0.2, ge=0, le=1)
    """Stop when more than this share of the judgements failed or could not be read."""
    min_agreement: float = Field(default=0.25, ge=0, le=1)
    """Stop when the two orders of a pair agree less often: such a judge goes by the order."""


class LabelConfig(Section):
    """engine/label.py; see docs/labels.md."""

    task: Literal["prefer", "score", "rubric", "revise"] = "prefer"
    """What the judge does: choose between two answers, score one, score it by a rubric, or criticise and
    revise it (the supervised part of Constitutional AI)."""
    constitution: str = ""
    """A file of principles, one a paragraph; each judgement goes by one of them, drawn with the seed."""
    rubric: str = ""
    """rubric: a TOML file of weighted criteria; empty takes each row's column `rubric`."""
    num_samples: int = Field(default=2, ge=1)
    """Answers sampled of policy.model to each prompt that comes without."""
    num_rows: int = Field(default=0, ge=0)
    """Rows to label; 0 is all."""
    revisions: int = Field(default=1, ge=1)
    """revise: rounds of critique and revision."""
    keep_ties: bool = False
    """prefer: keep pairs without a winner too, with the mean of both orders as p_chosen."""
    few_shot: str = ""
    """A file of examples put before every question to the judge."""


class Config(Section):
    """A whole recipe."""

    train: TrainConfig = TrainConfig()
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    prompts: PromptsConfig = PromptsConfig()
    rollout: RolloutConfig = RolloutConfig()
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    verifier: VerifierConfig = VerifierConfig()
    sandbox: SandboxConfig = SandboxConfig()
    agent: AgentConfig = AgentConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    policy: PolicyConfig = PolicyConfig()
    lora: LoraConfig = LoraConfig()
    optim: OptimConfig = OptimConfig()
    sync: SyncConfig = SyncConfig()
    critic: CriticConfig = CriticConfig()
    monitor: MonitorConfig = MonitorConfig()
    eval: EvalConfig = EvalConfig()
    sft: SftConfig = SftConfig()
    sample: SampleConfig = SampleConfig()
    prefer: PreferConfig = PreferConfig()
    reward: RewardConfig = RewardConfig()
    judge: JudgeConfig = JudgeConfig()
    label: LabelConfig = LabelConfig()

    @property
    def verb(self) -> Verb:
        """The command this recipe is for: the one whose own section it brings, else train."""
        return next((verb for verb in OWN_SECTIONS if verb in self.model_fields_set), "train")


SYNC_LIMITS = {
    "float32": {"max_canary_gap": 1e-3, "max_mismatch_kl": 1e-3},
    "bfloat16": {"max_canary_gap": 0.25, "max_mismatch_kl": 0.05},
}
"""Gaps between trainer and sampler that the number type alone explains, with room."""

STALE_LIMITS = {"max_mismatch_kl": 0.5}
"""The same where the sampler is behind on purpose: far more than a step of training moves a policy."""
