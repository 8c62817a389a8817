"""[sandbox] of a recipe -> the settings that pools of sandboxes take. Needs no torch."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from verigrad.engine.config import ConfigError
from verigrad.engine.failures import WorkError
from verigrad.engine.settings import SandboxConfig
from verigrad.sandboxes import registry
from verigrad.sandboxes.base import SandboxSpec, SandboxUnavailable
from verigrad.sandboxes.pool import SandboxSettings
from verigrad.sandboxes.registry import AUTO, BUILTIN

OF_CONTAINER = ("image", "runtime", "docker_host")


class NoSandbox(WorkError):
    """None of the sandboxes that may be used works on this machine."""


def config_of(name: str | None, options: Mapping[str, Any]) -> SandboxConfig:
    """`--sandbox NAME --sandbox-option KEY=VALUE` as the section of a recipe; ConfigError for what it lacks.

    What is no setting of [sandbox] is an option of a sandbox that is not built in.
    """
    backend = name or AUTO
    known = {key: value for key, value in options.items() if key in SandboxConfig.model_fields}
    others = {key: value for key, value in options.items() if key not in known}
    if others and backend in (AUTO, *BUILTIN):
        raise ConfigError(
            f"--sandbox-option {next(iter(others))}: the sandbox {backend!r} has no such setting; it has: "
            f"{', '.join(key for key in SandboxConfig.model_fields if key not in ('backend', 'options'))}"
        )
    own = {"options": others} if others else {}
    try:
        return SandboxConfig.model_validate({**known, **own, "backend": backend})
    except ValidationError as error:
        found = error.errors()[0]
        place = ".".join(map(str, found["loc"]))
        raise ConfigError(f"--sandbox-option {place}={found['input']}: {found['msg']}") from None


def settings_of(cfg: SandboxConfig) -> SandboxSettings:
    """The settings as pools take them; `auto` is not decided yet.

    Raises ConfigError for a backend that is not known and for settings that it would not look at.
    """
    if cfg.backend != AUTO:
        try:
            registry.load(cfg.backend)
        except ValueError as error:
            raise ConfigError(f"sandbox.backend: {error}") from error
    own = {name: getattr(cfg, name) for name in ("image", "runtime", "docker_host", "trusted")}
    chosen = {name: value for name, value in own.items() if value}
    for name in OF_CONTAINER:
        if name in chosen and cfg.backend not in ("container", AUTO):
            raise ConfigError(
                f"sandbox.{name} has no effect with sandbox.backend = {cfg.backend!r}; remove it, or set "
                "sandbox.backend = 'container'"
            )
    if cfg.trusted and cfg.backend != "local_process":
        raise ConfigError(
            f"sandbox.trusted has no effect with sandbox.backend = {cfg.backend!r}; remove it, or set "
            "sandbox.backend = 'local_process'"
        )
    if cfg.options and cfg.backend in (AUTO, *BUILTIN):
        raise ConfigError(
            f"sandbox.options are for a sandbox that is not built in, and sandbox.backend = {cfg.backend!r} "
            "is; remove them"
        )
    if cfg.backend in (AUTO, *BUILTIN):
        sizes = {name: getattr(cfg, name) for name in ("memory_mb", "disk_mb", "pids", "cpus")}
        options = {**chosen, **sizes}
    else:
        options = dict(cfg.options)
    backend = "container" if cfg.backend == AUTO and set(chosen) & set(OF_CONTAINER) else cfg.backend
    return SandboxSettings(SandboxSpec(backend, options), cfg.retries, cfg.patience_s)


def chosen(cfg: SandboxConfig) -> SandboxSettings:
    """The settings with the backend decided; ConfigError for a wrong name, NoSandbox when none works here."""
    settings = settings_of(cfg)
    try:
        return settings.chosen()
    except ValueError as error:
        raise ConfigError(f"sandbox.backend: {error}") from error
    except SandboxUnavailable as error:
        raise NoSandbox(str(error)) from error
