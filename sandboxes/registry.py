"""A sandbox's name, import path or file -> a Backend; and which of them is the strongest that works here."""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from verigrad.sandboxes.base import Backend, Sandbox, SandboxSpec, SandboxUnavailable

GROUP = "verigrad.sandboxes"
AUTO = "auto"
BUILTIN = {
    "container": "verigrad.sandboxes.container:Container",
    "bubblewrap": "verigrad.sandboxes.bubblewrap:Bubblewrap",
    "local_process": "verigrad.sandboxes.local_process:LocalProcess",
}
REMOTE = {"sandbox_fusion": "verigrad.sandboxes.sandbox_fusion:SandboxFusion"}  # take sandbox.options
NAMED = {**BUILTIN, **REMOTE}
STRONGEST_FIRST = ("container", "bubblewrap")  # what `auto` chooses from; never local_process


def available() -> dict[str, str]:
    """Every sandbox that has a name, and where it comes from; imports none of them."""
    where = dict.fromkeys(NAMED, "built-in")
    for point in entry_points(group=GROUP):
        if point.name in NAMED:
            raise ValueError(
                f"an installed package registers the sandbox {point.name!r}, the name of a built-in one; "
                f"rename the entry point {point.value}"
            )
        where[point.name] = point.value
    return dict(sorted(where.items()))


def load(name: str) -> Backend:
    """Find a backend by built-in name, entry point, `path/file.py:name` or `package.module:name`.

    ValueError with the nearest right name for one that is not known.
    """
    installed = {point.name: point.value for point in entry_points(group=GROUP)}
    path = NAMED.get(name) or installed.get(name, name)
    module, colon, attribute = path.rpartition(":")
    if not colon or not module or not attribute:
        near = difflib.get_close_matches(name, available(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {AUTO}, {', '.join(available())}"
        raise ValueError(f"sandbox {name!r} is not known; {hint} (or path/file.py:name)")
    try:
        found = _from_file(module) if module.endswith(".py") else importlib.import_module(module)
        backend = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"sandbox {name!r}: {error}; correct the path, or install what it needs") from error
    made = backend() if isinstance(backend, type) else backend
    if not isinstance(made, Backend):
        raise ValueError(
            f"sandbox {name!r} is {type(made).__name__}; expected a Backend of sandboxes/base.py"
        )
    return made


def choose(spec: SandboxSpec) -> SandboxSpec:
    """The sandbox to use: `auto` becomes the strongest that works here, by name, and stays that one.

    SandboxUnavailable, with the reason of each, when none does; ValueError for a wrong name or option.
    """
    names = STRONGEST_FIRST if spec.backend == AUTO else (spec.backend,)
    reasons = []
    for name in names:
        reason = load(name).unavailable(spec.options)
        if reason is None:
            return SandboxSpec(name, spec.options)
        reasons.append(f"{name}: {reason}")
    if spec.backend != AUTO:
        raise SandboxUnavailable(f"the sandbox {spec.backend!r} does not work here: {reason}")
    raise SandboxUnavailable("no sandbox works here. " + "; ".join(reasons))


def open_sandbox(spec: SandboxSpec) -> Sandbox:
    """A new sandbox of exactly this kind: `auto` must have been chosen before."""
    return load(spec.backend).open(**spec.options)


def states(options: Mapping[str, Any]) -> Iterator[tuple[str, Backend, str | None]]:
    """Each named backend, and why it cannot be used here (None when it can)."""
    for name in (*STRONGEST_FIRST, *(name for name in available() if name not in STRONGEST_FIRST)):
        backend = load(name)
        yield name, backend, backend.unavailable(options)


def _from_file(file: str) -> Any:
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ImportError(f"sandbox file {file} does not exist (looked at {path})")
    spec = importlib.util.spec_from_file_location(f"verigrad_sandbox_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
