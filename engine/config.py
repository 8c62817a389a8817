"""A recipe: one class per TOML section. Importing this must stay cheap (no torch)."""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

RECIPES = Path(__file__).parent / "recipes"


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
    betas: tuple[float, float] = (0.9, 0.95)
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


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe (a .toml path, or the name of a shipped one) and apply `section.key=value` overrides.

    Raises ConfigError with one line: what was found, what was expected, what to do.
    """
    path = find_recipe(recipe)
    try:
        tree = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: not a TOML file: {error}") from None
    for override in overrides:
        apply_override(tree, override)
    tree.setdefault("run", {})
    if isinstance(tree["run"], dict) and not tree["run"].get("folder"):
        tree["run"]["folder"] = f"runs/{path.stem}"
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path.name}: " + "; ".join(explain(e) for e in error.errors())) from None
    if problems := list(contradictions(config)):
        raise ConfigError(f"{path.name}: " + "; ".join(problems))
    return resolve(config)


def find_recipe(recipe: str) -> Path:
    """The file behind a recipe's path or name."""
    path = Path(recipe)
    if path.suffix != ".toml" and not path.is_file():
        path = RECIPES / f"{recipe}.toml"
    if path.is_file():
        return path
    names = sorted(p.stem for p in RECIPES.glob("*.toml"))
    close = difflib.get_close_matches(Path(recipe).stem, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"shipped recipes: {', '.join(names)}"
    raise ConfigError(f"no recipe {recipe!r}: neither a .toml file nor a shipped recipe; {hint}")


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Put one `section.key=value` into the tree; the value is TOML, or a bare word."""
    key, equals, value = override.partition("=")
    names = key.strip().split(".")
    if not equals or len(names) < 2 or not all(names):
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    node = tree
    for name in names[:-1]:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {name} is a value, not a section")
    try:
        node[names[-1]] = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        node[names[-1]] = value.strip()


def resolve(config: Config) -> Config:
    """Fill the settings left to the algorithm or the number type, so that a run's record is explicit."""
    row = ALGORITHMS[config.algorithm.name]
    bounds = {"icepop": 5.0, "tis": 2.0, "none": None}
    filled = {
        "clip_low": row.clip_low,
        "clip_high": row.clip_high,
        "std_eps": row.std_eps,
        "correction_high": bounds[config.algorithm.correction],
    }
    algorithm: dict[str, Any] = {k: v for k, v in filled.items() if getattr(config.algorithm, k) is None}
    if config.algorithm.old_logprobs == "rollout":
        algorithm |= {"correction": "none", "correction_high": None}
    limits = SYNC_LIMITS[config.policy.dtype]
    updates: dict[str, Section] = {"algorithm": config.algorithm.model_copy(update=algorithm)}
    if config.dynamic_sampling.enabled is None:
        enabled = {"enabled": row.dynamic_sampling}
        updates["dynamic_sampling"] = config.dynamic_sampling.model_copy(update=enabled)
    missing = {name: limit for name, limit in limits.items() if getattr(config.sync, name) is None}
    updates["sync"] = config.sync.model_copy(update=missing)
    return config.model_copy(update=updates)


def contradictions(c: Config) -> Iterator[str]:
    """What cannot be, or would silently have no effect: found, expected, what to do."""
    if c.algorithm.name not in ALGORITHMS:
        close = difflib.get_close_matches(c.algorithm.name, ALGORITHMS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(ALGORITHMS)}"
        yield f"algorithm.name = {c.algorithm.name!r} is not known; {hint}"
        return
    yield from _missing(c)
    yield from _sampling_contradictions(c)
    yield from _without_effect(c)


def _missing(c: Config) -> Iterator[str]:
    if not c.policy.model:
        yield "policy.model is empty; set a Hugging Face folder, a hub id or a maker"
    if not c.data.path:
        yield "data.path is empty; set a .jsonl, .parquet or .csv file, a hub id or a maker"
    if c.eval.every and not c.data.eval_path and not c.data.num_eval:
        yield (
            "eval.every > 0, but data.num_eval = 0 holds nothing out; "
            "set data.num_eval, data.eval_path, or eval.every = 0"
        )


def _sampling_contradictions(c: Config) -> Iterator[str]:
    row, rollout = ALGORITHMS[c.algorithm.name], c.rollout
    if rollout.group_size < 2 and row.group_baseline:
        yield (
            f"rollout.group_size = {rollout.group_size}: {c.algorithm.name} compares the rollouts of a group "
            "and needs at least 2; set rollout.group_size >= 2, or algorithm.name = 'ppo'"
        )
    dynamic = row.dynamic_sampling if c.dynamic_sampling.enabled is None else c.dynamic_sampling.enabled
    if rollout.group_size < 2 and dynamic and not row.group_baseline:
        yield (
            "dynamic_sampling.enabled = true with rollout.group_size = 1: a single reward never varies; "
            "set dynamic_sampling.enabled = false"
        )
    if rollout.top_p < 1 or rollout.top_k > 0:
        yield (
            f"rollout.top_p = {rollout.top_p}, rollout.top_k = {rollout.top_k}: a truncated sampling "
            "distribution cannot be reproduced by the trainer and biases every ratio; "
            "train with top_p = 1 and top_k = 0"
        )
    if rollout.groups_per_step % c.train.num_minibatches:
        yield (
            f"rollout.groups_per_step = {rollout.groups_per_step} does not divide into "
            f"train.num_minibatches = {c.train.num_minibatches}; make the first a multiple of the second"
        )
    longest = rollout.max_prompt_tokens + rollout.max_tokens
    if c.policy.tokens_per_batch < longest:
        yield (
            f"policy.tokens_per_batch = {c.policy.tokens_per_batch} cannot hold one rollout of up to "
            f"rollout.max_prompt_tokens + rollout.max_tokens = {longest}; raise it or lower those"
        )
    if c.algorithm.overlong_buffer_tokens >= rollout.max_tokens:
        yield (
            f"algorithm.overlong_buffer_tokens = {c.algorithm.overlong_buffer_tokens} must be less than "
            f"rollout.max_tokens = {rollout.max_tokens}"
        )
    if bad := [k for k in c.eval.pass_k if not 1 <= k <= c.eval.num_samples]:
        yield (
            f"eval.pass_k = {bad} needs at least that many samples, but "
            f"eval.num_samples = {c.eval.num_samples}; raise it"
        )


def _without_effect(c: Config) -> Iterator[str]:
    """Settings the recipe chose, other than their default, that this combination would ignore."""
    row, a, was_set = ALGORITHMS[c.algorithm.name], c.algorithm, _chosen(c.algorithm)
    if row.std_eps is None and "std_eps" in was_set:
        yield f"algorithm.std_eps has no effect: {a.name} does not divide by a standard deviation; remove it"
    bypass = a.old_logprobs == "rollout"
    if bypass and was_set & {"correction", "correction_low", "correction_high"} and a.correction != "none":
        yield (
            "algorithm.correction has no effect with algorithm.old_logprobs = 'rollout': the ratio is "
            "already taken against the sampler; remove one of the two"
        )
    if a.correction != "icepop" and "correction_low" in was_set:
        yield f"algorithm.correction_low has no effect with correction = {a.correction!r}; remove it"
    if a.correction == "none" and "correction_high" in was_set:
        yield "algorithm.correction_high has no effect with correction = 'none'; remove it"
    high = 5.0 if a.correction_high is None else a.correction_high
    if not bypass and a.correction == "icepop" and not a.correction_low < 1 < high:
        yield (
            f"algorithm.correction_low = {a.correction_low} and correction_high = {high} must lie on both "
            "sides of 1, or every token of an exact sampler is dropped"
        )
    if a.kl_coef == 0 and "kl_estimator" in was_set:
        yield "algorithm.kl_estimator has no effect with kl_coef = 0; remove it or set kl_coef > 0"
    if a.overlong_filter and a.overlong_buffer_tokens:
        yield (
            "algorithm.overlong_filter leaves out the rollouts that algorithm.overlong_buffer_tokens "
            "punishes most; choose one"
        )
    dynamic = row.dynamic_sampling if c.dynamic_sampling.enabled is None else c.dynamic_sampling.enabled
    if not dynamic and "oversample" in _chosen(c.dynamic_sampling):
        yield "dynamic_sampling.oversample has no effect with dynamic_sampling.enabled = false; remove it"
    if c.data.eval_path == "" and "eval_split" in _chosen(c.data):
        yield "data.eval_split has no effect without data.eval_path; remove it"
    if c.prompts.system and c.prompts.chat == "never":
        yield "prompts.system has no effect with prompts.chat = 'never'; remove it"
    if c.optim.schedule != "constant" and c.optim.warmup_steps >= c.train.num_steps:
        yield (
            f"optim.warmup_steps = {c.optim.warmup_steps} leaves no step for optim.schedule = "
            f"{c.optim.schedule!r} within train.num_steps = {c.train.num_steps}; lower it"
        )


def _chosen(section: Section) -> set[str]:
    """Settings that differ from their default."""
    fields = type(section).model_fields
    return {name for name in fields if getattr(section, name) != fields[name].default}


def explain(error: Any) -> str:
    """One pydantic error as a sentence that names the fix."""
    path = [str(part) for part in error["loc"]]
    where = ".".join(path)
    if error["type"] != "extra_forbidden":
        shown = repr(error["input"])
        return f"{where} = {shown[:80]}: {error['msg'][0].lower()}{error['msg'][1:]}"
    known = settings()
    inside = [name for name in known if name.startswith(f"{path[0]}.")]
    elsewhere = [name for name in known if name.split(".")[1] == path[-1]]
    close = difflib.get_close_matches(where, inside, n=1, cutoff=0.8) or elsewhere
    if close := close or difflib.get_close_matches(where, known, n=1, cutoff=0.8):
        return f"{where} is not a setting; did you mean {close[0]}?"
    if len(path) > 1 and inside:
        return f"{where} is not a setting; [{path[0]}] holds {', '.join(n.split('.')[1] for n in inside)}"
    close = difflib.get_close_matches(path[0], list(Config.model_fields), n=1)
    hint = f"did you mean [{close[0]}]?" if close else f"sections: {', '.join(Config.model_fields)}"
    return f"{where} is not a setting; {hint}"


def settings() -> list[str]:
    """Every setting's dotted name, in the order of the sections."""
    names = []
    for section, field in Config.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        names += [f"{section}.{name}" for name in model.model_fields]
    return names


def to_toml(config: Config) -> str:
    """The resolved recipe as TOML; loading it again gives the same Config. Unset settings are left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def flatten(config: Config) -> dict[str, Any]:
    """Dotted names to values."""
    tree = config.model_dump(mode="json")
    return {f"{section}.{key}": value for section, node in tree.items() for key, value in node.items()}


def differences(ours: Config, theirs: Config) -> list[str]:
    """Settings in which two recipes differ, as `name: theirs -> ours`."""
    mine, yours = flatten(ours), flatten(theirs)
    return [f"{name}: {yours[name]!r} -> {mine[name]!r}" for name in mine if mine[name] != yours[name]]


def batch_algebra(c: Config) -> list[tuple[str, str]]:
    """What one step will do, in numbers, for `--dry-run`."""
    P, G = c.rollout.groups_per_step, c.rollout.group_size
    per_update = P * G // c.train.num_minibatches
    longest = c.rollout.max_prompt_tokens + c.rollout.max_tokens
    lines = [
        ("rollouts per step", f"{P} groups x {G} = {P * G}"),
        ("optimizer steps", f"{c.train.num_steps} steps x {c.train.num_minibatches} = "
         f"{c.train.num_steps * c.train.num_minibatches}, each over {per_update} rollouts"),
        ("tokens per optimizer step", f"at most {per_update} x {longest} = {per_update * longest:,}"),
        ("packed passes per optimizer step",
         f"at most {-(-per_update // max(1, c.policy.tokens_per_batch // longest))} "
         f"of {c.policy.tokens_per_batch:,} tokens"),
    ]  # fmt: skip
    if c.dynamic_sampling.enabled:
        cap = -(-int(P * c.dynamic_sampling.oversample * 1000) // 1000)
        lines.append(("groups sampled per step", f"{P} to {cap} (dynamic sampling)"))
    lines.append(("rollouts in the run", f"at least {c.train.num_steps * P * G:,}"))
    return lines
