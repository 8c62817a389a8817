"""`--dry-run`: what can be told of a recipe without reading data or making a model. Needs no torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verigrad.engine import tools
from verigrad.engine.config import Config, ConfigError
from verigrad.verifiers import registry


def check(cfg: Config) -> None:
    """Raise ConfigError for a verifier or a tool that does not load, or a model folder that is not."""
    check_verifiers(cfg)
    tools.load(cfg.agent.tools)
    model = cfg.policy.model
    if model.startswith((".", "/", "~")) and ":" not in model and not Path(model).expanduser().is_dir():
        raise ConfigError(
            f"policy.model = {model!r}: no such folder (looked from {Path.cwd()}); correct the path"
        )


def check_verifiers(cfg: Config) -> None:
    """Raise ConfigError for a verifier that does not load with its options."""
    for setting, name, options in _verifiers(cfg):
        try:
            registry.load(name, options)
        except ValueError as error:
            raise ConfigError(f"{setting}: {error}") from error


def _verifiers(cfg: Config) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    if cfg.verb == "sft":
        return
    yield "verifier.name", cfg.verifier.name, cfg.verifier.options
    if cfg.eval.verifier:
        yield "eval.verifier", cfg.eval.verifier, cfg.eval.verifier_options
    for name, chosen in cfg.data.evals.items():
        if chosen.verifier:
            yield f"data.evals.{name}.verifier", chosen.verifier, chosen.verifier_options
