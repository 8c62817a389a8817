"""Every file of the rooms -> docs/tree.md: its name and the first line of what it says of itself."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "tree.md"
ROOMS = {
    "engine": "the loop, and everything that holds tensors",
    "verifiers": "is this attempt right? Never imports torch",
    "kernels": "tensors in, tensors out",
    "sandboxes": "places to run code nobody trusts; imports nothing of ours",
    "benchmarks": "the same work side by side, as ratios",
    "tools": "what `make` runs",
}
HEAD = """# Every file

Written by `make pages` from each file's own first line; edit that, not this. Imports go down only:
[architecture](architecture.md) says how.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())
    print(f"wrote {PAGE.name}", file=sys.stderr)


def page() -> str:
    """The page as it should be."""
    parts = [HEAD]
    for room, says in ROOMS.items():
        parts.append(
            f"\n## {room}/\n\n{says[0].upper() + says[1:]}.\n\n| file | what it holds |\n|---|---|\n"
        )
        parts += [f"| `{path.relative_to(ROOT)}` | {first_line(path)} |\n" for path in files(room)]
    return "".join(parts)


def files(room: str) -> list[Path]:
    """Python files and recipes, in order."""
    found = [p for p in (ROOT / room).rglob("*") if p.suffix in (".py", ".toml") and shipped(p)]
    return sorted(found, key=lambda path: (len(path.parts), path))


def shipped(path: Path) -> bool:
    """Whether it is source, and not something made by running it."""
    return not any(part.startswith((".", "__")) for part in path.relative_to(ROOT).parts)


def first_line(path: Path) -> str:
    """The first line of its docstring, or of its first comment."""
    if path.suffix == ".toml":
        text = next(line for line in path.read_text().splitlines() if line.startswith("#")).lstrip("# ")
    else:
        text = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    if not text:
        sys.exit(f"{path.relative_to(ROOT)} does not say what it is in its first line")
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
