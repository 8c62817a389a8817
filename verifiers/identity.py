"""A verifier's name, options and version -> what it was, recorded so that a later change can be named."""

import ast
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verigrad.verifiers import registry


def identity(name: str, options: Mapping[str, Any], *, version: str) -> dict[str, Any]:
    """Name, version, options and the hash of the source, as plain data."""
    source = source_hash(name, options)
    return {"name": name, "version": version, "options": dict(options), "source": source}


def source_hash(name: str, options: Mapping[str, Any] | None = None) -> str | None:
    """Of the file that holds it, and of those of the same package that this imports, one from the other.

    Those of the parts of a `combine` and of what an adapter adapts are in it too. None where there is no such
    file. What comes from other packages, and what a service computes, is told by the version.
    """
    files = sources(name, options or {})
    if not files:
        return None
    return hashlib.sha256(b"".join(files[key].read_bytes() for key in sorted(files))).hexdigest()[:16]


def sources(name: str, options: Mapping[str, Any]) -> dict[str, Path]:
    """Module or path -> file, of all that a verifier is made of."""
    scheme, colon, rest = name.partition(":")
    if colon and scheme in registry.SCHEMES:
        return {**_files(registry.SCHEMES[scheme]), **_files(rest)}
    path = registry.BUILTIN.get(name, name)
    if path == name and ":" not in name:
        point = registry.installed().get(name)
        path = name if point is None else point.value
    files = _files(path)
    for part in parts_of(name, options):
        files |= sources(*part)
    return files


def parts_of(name: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Names and options of the verifiers that a `combine` adds up; none of any other."""
    parts = options.get("parts") if name == "combine" else None
    for part in parts.values() if isinstance(parts, Mapping) else ():
        if isinstance(part, Mapping) and isinstance(part.get("verifier"), str):
            yield part["verifier"], part.get("options") or {}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is no longer as it was, one short line each; a source that was not recorded is not compared."""
    return [
        f"{key} {before.get(key)!r} -> {now.get(key)!r}"
        for key in ("name", "version", "options", "source")
        if before.get(key) != now.get(key) and not (key == "source" and before.get(key) is None)
    ]


def _files(path: str) -> dict[str, Path]:
    """Of `path/file.py:name` its file; of `package.module:name` the module's and its neighbours'."""
    module = path.rpartition(":")[0]
    if (file := Path(module).expanduser()).is_file():
        return {str(file.resolve()): file}
    package, _, own = module.rpartition(".")
    try:
        spec = importlib.util.find_spec(package or module) if module else None
    except Exception:  # a package that cannot be imported is told of where it is loaded
        return {}
    if spec is None:
        return {}
    if not package:
        return {module: Path(spec.origin)} if spec.origin and Path(spec.origin).is_file() else {}
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    found: dict[str, Path] = {}
    todo = [own]
    while todo:
        name = todo.pop()
        if name not in found and (file_of_it := _module_file(folders, name)) is not None:
            found[name] = file_of_it
            todo += _imported(file_of_it, name, package)
    return {f"{package}.{name}": file for name, file in found.items()}


def _module_file(folders: list[Path], name: str) -> Path | None:
    """The file of a module, its name taken from the package that `folders` hold."""
    inner = Path(*name.split("."))
    files = (folder / end for folder in folders for end in (inner.with_suffix(".py"), inner / "__init__.py"))
    return next((file for file in files if file.is_file()), None)


def _imported(file: Path, name: str, package: str) -> Iterator[str]:
    """What a module imports of its package, wherever it says so; also names that are no modules."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    where = [*package.split("."), *name.split(".")]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            own_package = where if file.name == "__init__.py" else where[:-1]
            start = own_package[: len(own_package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for imported in names:
            if imported.startswith(f"{package}."):
                yield imported.removeprefix(f"{package}.")
