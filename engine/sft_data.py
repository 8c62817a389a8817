"""Files, hub data sets and makers -> written answers to learn from, some held out; see examples.py."""

from collections.abc import Mapping
from typing import Any

from verigrad.engine import examples, mixture
from verigrad.engine.config import DataConfig
from verigrad.engine.examples import Form, Item
from verigrad.engine.mixture import Mixture
from verigrad.engine.sft_rows import Encoder, Example, to_source

EXPECTED = "rows with 'messages', or 'prompt' and 'completion'"


def form_of(encoder: Encoder) -> Form[Example]:
    """Rows -> tokens, and which of them are learned."""

    def read(row: Mapping[str, Any], columns: Mapping[str, str]) -> Item[Example]:
        source = to_source(row, columns)
        example = encoder(source)
        return Item(source.asked, [source.prompt, source.completion], [example], len(example.token_ids))

    return Form(read, EXPECTED)


def load(cfg: DataConfig, encoder: Encoder, *, seed: int) -> Mixture[Example]:
    """Read, check, tokenise and split every set; see `data.load` for what is held out."""
    return mixture.load(cfg, form_of(encoder), seed=seed)


def require_source(cfg: DataConfig, *, seed: int) -> None:
    """Raise ConfigError when no row reads as an example, before anything expensive is done."""
    examples.require_row(cfg, to_source, EXPECTED, seed=seed)
