"""A recipe's model to a local folder, with its tokenizer and the tokens that end a completion."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from verigrad.engine import lora, makers
from verigrad.engine.config import Config, ConfigError

NUM_LOOKS, LOOK_BYTES = 64, 1 << 20  # at a large file, and how much is read at each


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A starting model, on this machine."""

    folder: str  # a local folder
    tokenizer: Any
    eos_ids: tuple[int, ...]
    fingerprint: str  # of config and weights' sizes


def weight_bytes(folder: str) -> int:
    """Bytes of the weights in a model's folder, of one format where there are several."""
    sizes = {
        kind: sum(path.stat().st_size for path in Path(folder).glob(f"*.{kind}"))
        for kind in ("safetensors", "bin")
    }
    return sizes["safetensors"] or sizes["bin"]


def fetch(cfg: Config, *, progress: Callable[[str, float], None] | None = None) -> ModelFiles:
    """Make, find or download `policy.model`. Raises ConfigError when there is no such model."""
    reference = cfg.policy.model
    if makers.is_maker(reference):
        options, seed = cfg.policy.options, cfg.train.seed
        folder = makers.make_model(reference, seed=seed, options=options, progress=progress)
    elif cfg.policy.options:
        raise ConfigError(
            f"policy.options are for makers, and policy.model = {reference!r} is none; remove them"
        )
    elif Path(reference).expanduser().is_dir():
        folder = Path(reference).expanduser()
    elif reference.startswith((".", "/", "~")):
        raise ConfigError(
            f"policy.model = {reference!r}: no such folder (looked from {Path.cwd()}); correct the path"
        )
    else:
        folder = _download(reference)
    if lora.is_adapter(folder):
        folder = _merged(folder, cfg)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=cfg.policy.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"policy.model = {reference!r}: no tokenizer could be loaded: {reason}") from error
    _require_positions(cfg, folder)
    return ModelFiles(str(folder), tokenizer, _eos_ids(folder, tokenizer, reference), fingerprint(folder))


def _merged(adapter: Path, cfg: Config) -> Path:
    """An adapter and its base as one model folder, made once and kept in the cache."""
    base = lora.base_of(adapter)
    if not Path(base).is_dir():
        base = str(_download(base))
    key = hashlib.sha256(f"{fingerprint(adapter)} {fingerprint(Path(base))}".encode()).hexdigest()[:16]
    trust = cfg.policy.trust_remote_code

    def make(folder: Path) -> None:
        lora.merge_into(folder, adapter, Path(base), trust_remote_code=trust)

    return makers.make_once(f"merged-{key}", make)


def _download(reference: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(reference))
    except Exception as error:  # the hub's client raises anything from ValueError to its own network errors
        if isinstance(error, LocalEntryNotFoundError | ConnectionError | TimeoutError):
            reason = type(error.__cause__ or error).__name__
            raise ConfigError(
                f"policy.model = {reference!r} is no local folder, and the hub cannot be reached ({reason}); "
                "give a local folder"
            ) from error
        raise ConfigError(
            f"policy.model = {reference!r} is no local folder, and the hub did not give it: "
            f"{type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


def _require_positions(cfg: Config, folder: Path) -> None:
    """Refuse rollouts longer than the model's positions, where its config.json says how many there are."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"policy.model = {cfg.policy.model!r}: config.json cannot be read: {error}"
        ) from error
    text = config.get("text_config") or config
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    num_positions = text.get("max_position_embeddings")
    longest = cfg.rollout.max_prompt_tokens + cfg.rollout.max_tokens
    if isinstance(num_positions, int) and "factor" not in rope and longest > num_positions:
        raise ConfigError(
            f"rollout.max_prompt_tokens + rollout.max_tokens = {longest} is more than the {num_positions} "
            f"positions of policy.model; lower them, e.g. rollout.max_tokens={num_positions // 2} "
            f"rollout.max_prompt_tokens={num_positions - num_positions // 2}"
        )


def _eos_ids(folder: Path, tokenizer: Any, reference: str) -> tuple[int, ...]:
    """Tokens that end a completion: those of the generation config, and the tokenizer's own."""
    ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if (folder / "generation_config.json").is_file():
        listed = GenerationConfig.from_pretrained(folder).eos_token_id
        ids += [listed] if isinstance(listed, int) else listed or []
    if not ids:
        raise ConfigError(
            f"policy.model = {reference!r} names no end-of-sequence token, so no completion would ever end; "
            "set eos_token_id in its generation_config.json"
        )
    return tuple(dict.fromkeys(ids))


def fingerprint(folder: Path) -> str:
    """Tells two starting models apart without reading many gigabytes: names, sizes, and what files hold.

    Files up to 64 MiB are read whole, larger ones at 64 places spread evenly over them.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".bin")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            if size <= NUM_LOOKS * LOOK_BYTES:
                digest.update(file.read())
                continue
            for look in range(NUM_LOOKS):
                file.seek((size - LOOK_BYTES) * look // (NUM_LOOKS - 1))
                digest.update(file.read(LOOK_BYTES))
    return digest.hexdigest()[:16]


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Every token that a tokenizer finds in a text as a whole: those of its template, and added ones."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))
