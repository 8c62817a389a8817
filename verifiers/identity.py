"""A verifier's name, options and version -> what it was, recorded so that a later change can be named."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verigrad.verifiers import registry


def identity(name: str, options: Mapping[str, Any], *, version: str) -> dict[str, Any]:
    """Name, version, options and the hash of the source, as plain data."""
    return {"name": name, "version": version, "options": dict(options), "source": source_hash(name)}


def source_hash(name: str) -> str | None:
    """Of its file, or of all files of the built-in ones; an installed package is told by its version."""
    path = Path(name.rpartition(":")[0]).expanduser()
    if path.is_file():
        files = [path]
    elif name in registry.BUILTIN:
        files = sorted(Path(registry.__file__).parent.rglob("*.py"))
    else:
        return None
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is no longer as it was, one short line each."""
    return [
        f"{key} {before.get(key)!r} -> {now.get(key)!r}"
        for key in ("name", "version", "options", "source")
        if before.get(key) != now.get(key)
    ]
