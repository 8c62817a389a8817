"""Makers: references, options, and a cache that holds whole folders only."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from verigrad.engine import makers
from verigrad.engine.config import ConfigError

SOURCE = """
import time
from pathlib import Path

def rows(*, seed, num_rows=2):
    return [{"prompt": f"{seed}+{i}=?", "answer": seed + i} for i in range(num_rows)]

def lazy(seed):
    yield {"prompt": "1+1=?", "answer": 2}

def one(seed):
    return {"prompt": "1+1=?", "answer": 2}

def picky(*, seed, level):
    raise ValueError("level = 9: expected 1 to 3")

def model(folder, *, seed, progress, size=1, slow_s=0.0):
    with open("calls.txt", "a") as calls:
        calls.write("called\\n")
    (folder / "weights").write_text(str(seed * size))
    time.sleep(slow_s)
    progress("half", 0.5)
    (folder / "config.json").write_text("{}")

def broken(folder, *, seed, progress):
    (folder / "weights").write_text("half of them")
    raise RuntimeError("out of memory")

def forgetful(folder, *, seed, progress):
    (folder / "weights").write_text("no config")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VERIGRAD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine.py").write_text(SOURCE)
    return tmp_path


def num_calls(here: Path) -> int:
    return len((here / "calls.txt").read_text().splitlines())


@pytest.mark.parametrize("reference", ["a.b:c", "mine.py:rows", "some/folder/my-file.py:rows", "module:f"])
def test_a_reference_to_a_function_is_a_maker(reference):
    assert makers.is_maker(reference)


@pytest.mark.parametrize(
    "reference", ["org/name", "data.jsonl", "mine.py", "hf://x/y", "a.b:", "a-b:c", "a/b:c", ""]
)
def test_files_and_hub_ids_are_no_makers(reference):
    assert not makers.is_maker(reference)


def test_rows_come_from_the_function_with_seed_and_options(here):
    rows = makers.make_rows("mine.py:rows", seed=7, options={"num_rows": 3})
    assert [row["answer"] for row in rows] == [7, 8, 9]


def test_a_generator_of_rows_is_read_to_its_end(here):
    assert len(makers.make_rows("mine.py:lazy", seed=0, options={})) == 1


@pytest.mark.parametrize(
    ("reference", "options", "message"),
    [
        ("mine.py:rows", {"num_row": 3}, "takes no option 'num_row'; it takes num_rows"),
        ("mine.py:rows", {"seed": 3}, "takes no option 'seed'"),
        ("mine.py:picky", {}, "needs the option 'level'"),
        ("mine.py:picky", {"level": 9}, "mine.py:picky: level = 9: expected 1 to 3"),
        ("mine.py:row", {}, "no function 'row'; it has broken, forgetful, lazy, model, one, picky, rows"),
        ("mine.py:one", {}, "returned dict"),
        ("yours.py:rows", {}, "no file yours.py"),
        ("no_such_package.data:rows", {}, "no module 'no_such_package'"),
    ],
)
def test_a_wrong_reference_or_option_says_what_there_is(here, reference, options, message):
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as caught:
        makers.make_rows(reference, seed=0, options=options)
    assert message in str(caught.value)


def test_a_model_maker_that_cannot_report_progress_is_refused(here):
    (here / "mine.py").write_text("def model(folder, *, seed):\n    pass\n")
    with pytest.raises(ConfigError, match=r"mine.py:model does not take progress"):
        makers.make_model("mine.py:model", seed=0, options={})


def test_a_model_is_made_once_for_its_seed_options_and_source(here):
    told = []
    first = makers.make_model(
        "mine.py:model", seed=3, options={"size": 2}, progress=lambda *t: told.append(t)
    )
    assert (first / "weights").read_text() == "6"
    assert told == [("half", 0.5)]
    assert makers.make_model("mine.py:model", seed=3, options={"size": 2}) == first
    assert num_calls(here) == 1
    others = [
        makers.make_model("mine.py:model", seed=4, options={"size": 2}),
        makers.make_model("mine.py:model", seed=3, options={"size": 1}),
    ]
    (here / "mine.py").write_text(f"{SOURCE}\n# changed\n")
    others.append(makers.make_model("mine.py:model", seed=3, options={"size": 2}))
    assert len({first, *others}) == 4
    assert num_calls(here) == 4


def test_a_listed_source_is_part_of_the_key(here, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    (here / "listed_part.py").write_text("x = 1\n")
    (here / "mine.py").write_text(f"__maker_sources__ = ['listed_part']\n{SOURCE}")
    first = makers.make_model("mine.py:model", seed=0, options={})
    (here / "listed_part.py").write_text("x = 2\n")
    assert makers.make_model("mine.py:model", seed=0, options={}) != first


def test_a_maker_that_fails_leaves_nothing_behind(here):
    with pytest.raises(RuntimeError, match="out of memory"):
        makers.make_model("mine.py:broken", seed=0, options={})
    assert [p for p in (here / "cache/made").iterdir() if p.is_dir()] == []


def test_a_folder_without_a_model_is_refused_and_not_kept(here):
    with pytest.raises(ConfigError, match=r"wrote no config.json"):
        makers.make_model("mine.py:forgetful", seed=0, options={})
    assert [p for p in (here / "cache/made").iterdir() if p.is_dir()] == []


def make_slowly(results) -> None:
    results.put(str(makers.make_model("mine.py:model", seed=1, options={"slow_s": 0.5})))


def make_for_a_minute() -> None:
    makers.make_model("mine.py:model", seed=1, options={"slow_s": 60.0})


def test_a_killed_maker_leaves_no_model_and_the_next_run_starts_afresh(here):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=make_for_a_minute)
    process.start()
    made = here / "cache/made"
    while not list(made.glob("*.part/weights")):
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert [p.name for p in made.iterdir() if p.is_dir() and not p.name.endswith(".part")] == []
    left = next(made.glob("*.part"))
    (left / "stale").write_text("from the killed one")
    name = left.name.removesuffix(".part")
    maker = makers.find("mine.py:model")
    options = {"slow_s": 0.0}
    makers.make_into(
        made / name, lambda part: makers.call(maker, part, seed=1, progress=lambda *_: None, **options)
    )
    assert sorted(p.name for p in (made / name).iterdir()) == ["config.json", "weights"]
    assert not left.exists()


def test_two_processes_at_once_make_one_model(here):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=make_slowly, args=(results,)) for _ in range(2)]
    for process in processes:
        process.start()
    folders = {results.get(timeout=30) for _ in processes}
    for process in processes:
        process.join(timeout=30)
    assert len(folders) == 1
    assert num_calls(here) == 1


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("VERIGRAD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x/cache")
    assert makers.cache_folder() == Path("/x/cache/verigrad")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert makers.cache_folder() == tmp_path / ".cache/verigrad"
    monkeypatch.setenv("VERIGRAD_CACHE", os.fspath(tmp_path / "own"))
    assert makers.cache_folder() == tmp_path / "own"


def test_what_a_maker_raises_is_placed(here):
    with pytest.raises(ConfigError, match=r"level = 9: expected 1 to 3 \(mine\.py line \d+\)$"):
        makers.make_rows("mine.py:picky", seed=0, options={"level": 9})


def test_a_maker_file_that_cannot_be_imported_is_one_line(here):
    (here / "cut.py").write_text("import nonexist\n")
    with pytest.raises(ConfigError, match=r"^cut\.py line 1: No module named 'nonexist'; install it"):
        makers.make_rows("cut.py:rows", seed=0, options={})
