"""engine/settings.py -> docs/settings.md: every section and setting with its type, default and docstring."""

import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from verigrad.engine.catalogue import ADVANTAGES, AGGREGATIONS, LOSSES, ROWS
from verigrad.engine.settings import Config

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
HEAD = """# Settings

Written by `make pages` from `engine/settings.py`; edit that, not this. `[section]` is a table of a recipe
file, and `section.key=value` on the command line replaces one setting. Unknown names are refused, and so are
settings that would have no effect.
"""
COLUMNS = "| setting | type | default | meaning |\n|---|---|---|---|\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())
    print(f"wrote {PAGE.name}", file=sys.stderr)


def page() -> str:
    """The page as it should be."""
    parts = [HEAD]
    for section, field in Config.model_fields.items():
        model = typing.cast(type[BaseModel], field.annotation)
        read_by = (model.__doc__ or "").strip().rstrip(".")
        parts.append(f"\n## [{section}]\n\nRead by {read_by}.\n\n{COLUMNS}")
        for name, setting in model.model_fields.items():
            cells = (f"`{name}`", kind(setting), default(setting), meaning(setting))
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    for setting, table in {
        "name": ROWS, "advantage": ADVANTAGES, "loss": LOSSES, "aggregation": AGGREGATIONS
    }.items():  # fmt: skip
        names = ", ".join(f"`{name}`" for name in table)
        parts.append(f"\nValues of `algorithm.{setting}`: {names}.\n")
    parts.append("\n[algorithms](algorithms/README.md) says what each is and chooses.\n")
    return "".join(parts)


def kind(setting: FieldInfo) -> str:
    """The type in words, with its bounds."""
    bounds = [bound for rule in setting.metadata for bound in bounds_of(rule)]
    return " ".join([words(setting.annotation), *bounds])


def words(annotation: Any) -> str:
    """A type as a recipe's author writes it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return " ".join([words(inner[0]), *(bound for rule in inner[1:] for bound in bounds_of(rule))])
    if origin is typing.Literal:
        return " or ".join(f'`"{choice}"`' for choice in inner)
    if origin in (types.UnionType, typing.Union):
        return words(next(choice for choice in inner if choice is not type(None)))
    if origin is dict or annotation is dict:
        return "table"
    if origin in (list, tuple):
        return f"list of {words(inner[0])}"
    return {"str": "text", "bool": "true or false", "int": "integer", "float": "number"}[annotation.__name__]


def bounds_of(rule: Any) -> list[str]:
    """Limits of a number, such as `>= 1`."""
    if isinstance(rule, FieldInfo):
        return [bound for part in rule.metadata for bound in bounds_of(part)]
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    return [
        f"{sign} {getattr(rule, name):g}" for name, sign in signs if getattr(rule, name, None) is not None
    ]


def default(setting: FieldInfo) -> str:
    """The default as TOML; nothing where the setting is left to something else."""
    value = setting.default
    if value is None:
        return "-"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f"`{json.dumps(value, ensure_ascii=False)}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value}`"


def meaning(setting: FieldInfo) -> str:
    """The docstring on one line. A `<tag>` would vanish from the page."""
    return " ".join((setting.description or "").split()).replace("<", "&lt;")


if __name__ == "__main__":
    main()
