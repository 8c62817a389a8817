"""Mathematics of the Hugging Face hub as rows {prompt, answer}: GSM8K, DAPO-Math-17k, AIME 2024.

Each function names its data set; `path` takes another one of the same columns, or a local file of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from verigrad.engine.config import ConfigError
from verigrad.engine.rows import BadRow, Rows, TableRows, first_line, read_rows

FILES = (".jsonl", ".parquet", ".csv")


def gsm8k(*, seed: int, split: str = "train", path: str = "openai/gsm8k") -> list[dict[str, str]]:
    """Grade-school word problems (arXiv 2110.14168); the answer is what follows `####` in the solution."""
    rows = open_rows(path, split=split, part="main")
    found = []
    for place, row in each(rows, "question", "answer"):
        _, mark, answer = str(row["answer"]).rpartition("####")
        if not mark or not answer.strip():
            raise ConfigError(f"{place}: its answer has no `#### number` at its end. Correct it.")
        found.append({"prompt": str(row["question"]), "answer": answer.strip().replace(",", "")})
    return found


def dapo_math(
    *, seed: int, split: str = "train", path: str = "BytedTsinghua-SIA/DAPO-Math-17k"
) -> list[dict[str, Any]]:
    """The training problems of DAPO (arXiv 2503.14476), each once; the hub's rows hold each about 100 times.

    The prompts are theirs: a message that asks for a last line `Answer: $Answer`.
    """
    return unwrapped(open_rows(path, split=split))


def aime24(
    *, seed: int, split: str = "train", path: str = "BytedTsinghua-SIA/AIME-2024"
) -> list[dict[str, Any]]:
    """AIME 2024 with the same prompts, each of the 30 problems once; the hub's rows hold each 32 times."""
    return unwrapped(open_rows(path, split=split))


def unwrapped(rows: Rows) -> list[dict[str, Any]]:
    """Prompt and `reward_model.ground_truth`, the first of each prompt."""
    found: dict[str, dict[str, Any]] = {}
    for place, row in each(rows, "prompt", "reward_model"):
        reward = row["reward_model"]
        if not isinstance(reward, Mapping) or reward.get("ground_truth") in (None, ""):
            raise ConfigError(f"{place}: its reward_model has no ground_truth. Correct it.")
        answer = str(reward["ground_truth"])
        found.setdefault(repr(row["prompt"]), {"prompt": row["prompt"], "answer": answer})
    return list(found.values())


def each(rows: Rows, *columns: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row with the place it is found at; one that cannot be read, or lacks a column, stops."""
    for index in range(len(rows)):
        try:
            row = rows.row(index)
        except BadRow as error:
            raise ConfigError(f"{rows.place(index)}: {error}. Correct it.") from error
        for column in columns:
            if column not in row:
                there = ", ".join(map(str, row))
                raise ConfigError(
                    f"{rows.place(index)}: has no column {column!r}; it has {there}. Correct it."
                )
        yield rows.place(index), row


def open_rows(path: str, *, split: str, part: str = "") -> Rows:
    """A file, or a split of a data set of the hub; `part` is its configuration where it has several."""
    if not part or path.endswith(FILES):
        return read_rows(path, split=split, seed=0, options={})
    import datasets

    try:
        return TableRows(path, datasets.load_dataset(path, part, split=split))
    except Exception as error:  # network, spelling, access, a missing split: each has its own
        raise ConfigError(
            f"{path!r}, configuration {part!r}, split {split!r}, cannot be loaded: {first_line(error)}. "
            "Check the connection to the hub, or set the maker's option path to a local file."
        ) from error
