"""Examples and their starting model -> the reference's log-probabilities, computed once and kept on disk.

They depend on the model, the examples, the prompts and whatever made tokens of these, so every loss and every
later run that shares these reads them from the cache folder ($VERIGRAD_CACHE, see makers.cache_folder).
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from verigrad.engine import makers
from verigrad.engine.data import digest
from verigrad.engine.preference_batch import LabelledExample, PairExample

CHUNK = 4096
"""Examples of one file: what a kill loses of the work at most."""
FILE = "logprobs.npy"
TOKENIZER_FILES = frozenset({".json", ".jinja", ".model", ".py", ".tiktoken", ".txt"})
TOKENIZER_LIBRARIES = ("transformers", "tokenizers", "sentencepiece", "tiktoken", "mistral_common")

Compared = PairExample | LabelledExample
Sums = Callable[[Sequence[Compared]], Sequence[tuple[float, float]]]
"""Examples -> the reference's two log-probabilities of each, as of preference_batch.reference_sums."""


class Source(Protocol):
    """Examples by number, and a hash of all of them in order."""

    fingerprint: str
    prompts: NDArray[np.uint64]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Compared: ...


class Referenced:
    """Examples that carry what the reference says of them."""

    def __init__(self, examples: Source, values: NDArray[np.float64]) -> None:
        self._examples, self._values = examples, values  # [N, 2]
        self.fingerprint, self.prompts = examples.fingerprint, examples.prompts

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Compared:
        example = self._examples[index]
        first, second = self._values[index].tolist()
        if isinstance(example, PairExample):
            return dataclasses.replace(example, ref_chosen=first, ref_rejected=second)
        return dataclasses.replace(example, ref=first, kl_ref=second)


def tokenizer_key(folder: str | Path) -> str:
    """Changes with a tokenizer's files in the model's `folder`, and with the libraries that read them."""
    found = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in TOKENIZER_FILES and path.is_file():
            found.update(f"{path.name} {path.stat().st_size} ".encode())
            found.update(path.read_bytes())
    for name in TOKENIZER_LIBRARIES:
        found.update(f"{name} {_version(name)} ".encode())
    return found.hexdigest()


def _version(name: str) -> str:
    """Of an installed library; empty without it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def attach(
    examples: Source, sums: Sums, *, of: str, key: Sequence[str], progress: makers.Progress
) -> tuple[Referenced, int]:
    """Examples with the reference's log-probabilities, and of how many these had to be computed.

    `of` is what people are told these examples are; `key` names all that the log-probabilities depend on
    besides the examples.
    """
    parts, computed = [], 0

    def told(text: str, fraction: float) -> None:
        progress(f"{text} of {of}", fraction)

    for start in range(0, len(examples), CHUNK):
        stop = min(start + CHUNK, len(examples))
        name = f"reference-{digest([*key, examples.fingerprint, len(examples), start, stop]):016x}"
        before = (makers.cache_folder() / "made" / name).is_dir()
        make = partial(_write, examples=examples, sums=sums, span=(start, stop), progress=told)
        folder = makers.make_once(name, make, progress=progress)
        computed += 0 if before else stop - start
        parts.append(np.load(folder / FILE))
    return Referenced(examples, np.concatenate(parts)), computed


STEP = 64
"""Examples read and packed at once."""


def _write(
    folder: Path, *, examples: Source, sums: Sums, span: tuple[int, int], progress: makers.Progress
) -> None:
    values: list[tuple[float, float]] = []
    for start in range(*span, STEP):
        values += sums([examples[i] for i in range(start, min(start + STEP, span[1]))])
        progress("reference log-probabilities", (span[0] + len(values)) / len(examples))
    np.save(folder / FILE, np.array(values, np.float64).reshape(-1, 2))
