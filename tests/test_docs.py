"""The documents keep their word: every block runs, every link leads somewhere, every list is complete."""

import os
import re
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest

from verigrad.engine import algorithm_settings, catalogue, cli, config, divergence, settings

ROOT = Path(__file__).parent.parent
WRAPPERS = ROOT / "tests" / "docs_bin"
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_NOT_RUN = 3
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IN_A_SANDBOX = re.compile(
    r"sandbox|unit_tests|program_output|agent_task|quickstart_code|environment:|exit_status"
)
NOT_RUN = re.compile(r"<!--\s*not run:(.*?)-->\s*\Z", re.DOTALL)


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path):
    """(line, language, code, why it is not run or None) of each bash and python block."""
    text = path.read_text()
    for match in FENCE.finditer(text):
        if match[1] in ("bash", "python"):
            marked = NOT_RUN.search(text[: match.start()])
            line = text.count("\n", 0, match.start()) + 2
            yield line, match[1], match[2], marked[1].strip() if marked else None


def run_block(language, code, line, folder):
    file = folder / f"block_{line}.{'py' if language == 'python' else 'sh'}"
    file.write_text(code if language == "python" else f"set -euo pipefail\n{code}")
    program = sys.executable if language == "python" else "bash"
    return subprocess.run(
        [program, str(file)],
        cwd=folder,
        env=os.environ
        | {
            "PATH": f"{WRAPPERS}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VERIGRAD_DOCS_ROOT": str(ROOT),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def page(path):
    """A page's blocks as a test; one that runs programs needs somewhere to run them."""
    code = "\n".join(code for *_, code, why_not in blocks(path) if why_not is None)
    marks = [pytest.mark.sandbox] if IN_A_SANDBOX.search(code) else []
    return pytest.param(path, marks=marks, id=name_of(path))


@pytest.mark.parametrize("path", [page(path) for path in DOCUMENTS if any(blocks(path))])
def test_every_block_runs(path, tmp_path):
    for line, language, code, why_not in blocks(path):
        if why_not is not None:
            continue
        done = run_block(language, code, line, tmp_path)
        if done.returncode:
            pytest.fail(
                f"{name_of(path)}:{line}: this {language} block ended with status {done.returncode}\n"
                f"{code}\n--- it printed ---\n{done.stdout[-4000:]}",
                pytrace=False,
            )


def test_few_blocks_are_excused_from_running_and_each_says_why():
    reasons = [why for path in DOCUMENTS for *_, why in blocks(path) if why is not None]
    assert all(reasons)
    assert len(reasons) <= MAX_NOT_RUN


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_within_the_repository_resolve(path):
    text = FENCE.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{name_of(path)}: nothing at {target}"
        if anchor:
            assert anchor in anchors(there), (
                f"{name_of(path)}: {file or 'this page'} has no heading #{anchor}"
            )


def anchors(path):
    """Headings as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_number_is_left_to_be_measured(path):
    assert "TBD-MEASURED" not in path.read_text()


def test_the_readme_is_short():
    assert len(README.splitlines()) < 200


def test_the_contribution_guide_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 100


def test_every_shipped_recipe_is_in_the_readme_table():
    rows = [line for line in README.splitlines() if line.startswith("| ")]
    for recipe in config.RECIPES.glob("*.toml"):
        assert any(f"`{recipe.stem}`" in row for row in rows), f"README's table lacks {recipe.stem}"


def test_every_verb_is_shown_somewhere():
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    missing = [verb for verb in cli.VERBS if not re.search(rf"verigrad {verb}\b", text)]
    assert not missing


@pytest.mark.parametrize("name", ["settings", "tree"])
def test_generated_pages_are_current(name):
    done = subprocess.run(
        [sys.executable, "-c", f"import make_{name}_page as m; print(m.page(), end='')"],
        cwd=ROOT / "tools",
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ROOT / f"docs/{name}.md").read_text() == done.stdout, "run `make pages`"


def test_the_settings_page_names_every_setting_and_explains_it():
    page, section, explained = (ROOT / "docs/settings.md").read_text(), "", set()
    for line in page.splitlines():
        if heading := re.fullmatch(r"## \[(\w+)\]", line):
            section = heading[1]
        if row := re.fullmatch(r"\| `(\w+)` \|.*\| (.*) \|", line):
            assert row[2], f"{section}.{row[1]} has no docstring"
            explained.add(f"{section}.{row[1]}")
    assert explained == set(config.settings())


ALGORITHMS = ROOT / "docs" / "algorithms"
TOPICS = {path.stem for path in ALGORITHMS.glob("*.md")} - {"README", *catalogue.ROWS}


def algorithm_page(name):
    return (ALGORITHMS / f"{name}.md").read_text()


def table_rows(text, *, starting):
    """Cells of the table that follows the line `starting`, without backticks."""
    lines = text.split(starting, 1)[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")])
    return rows


def setting_rows(text):
    """Setting -> default as written, of a page's table of settings."""
    return {row[0]: row[1] for start in re.findall(r"^\| setting \|.*$", text, re.MULTILINE)
            for row in table_rows(text, starting=start)}  # fmt: skip


def test_every_algorithm_has_a_page_and_every_page_is_linked_from_the_index():
    there = {path.stem for path in ALGORITHMS.glob("*.md")}
    assert set(catalogue.ROWS) <= there
    linked = set(re.findall(r"\]\((\w+)\.md\)", algorithm_page("README")))
    assert there - linked == {"README"}


def test_the_index_lists_the_rows_as_they_are():
    heading = next(line for line in algorithm_page("README").splitlines() if "`algorithm.name`" in line)
    shown = table_rows(algorithm_page("README"), starting=heading)
    expected = [[name, row.advantage, row.loss, row.aggregation] for name, row in catalogue.ROWS.items()]
    assert [[re.sub(r"\[(\w+)\].*", r"\1", row[0]), *row[1:4]] for row in shown] == expected
    for cells, row in zip(shown, catalogue.ROWS.values(), strict=True):
        assert re.sub(r"\[([\d.]+)\]\([^)]*\)", r"\1", cells[4]) == row.source


@pytest.mark.parametrize("name", catalogue.ROWS)
def test_an_algorithms_page_says_what_the_catalogue_says(name):
    page, row = algorithm_page(name), catalogue.ROWS[name]
    parts = {cells[0]: cells[1] for cells in table_rows(page, starting="| part | name | source |")}
    assert parts == {
        "row": name,
        "advantage": row.advantage,
        "loss": row.loss,
        "aggregation": row.aggregation,
        "keeps": "groups with signal" if row.dynamic_sampling else "every decided group",
    }
    for source in (row.source, catalogue.ADVANTAGES[row.advantage].source, catalogue.LOSSES[row.loss].source):
        for piece in source.split("; "):
            assert piece in page
    numbers = algorithm_settings.resolved_numbers(name, row.advantage, row.loss)
    assert {setting: float(default) for setting, default in setting_rows(page).items()} == numbers
    for setting in numbers:
        assert re.search(rf"\b{setting}\b", page.split("## Settings")[0]), f"the formula lacks {setting}"


@pytest.mark.parametrize("name", sorted(TOPICS | {"README"}))
def test_a_topics_page_says_the_defaults(name):
    """As in the settings; where those are empty, what they become once the topic is turned on."""
    asked = {"kl_coef": 0.1, "kl_target": 0.1, "ref_sync_every": 1, "entropy_target": 1.0, "reject": "token"}
    resolved = algorithm_settings.resolve(settings.AlgorithmConfig.model_validate(asked))
    shown = setting_rows(algorithm_page(name))
    assert shown
    for setting, default in shown.items():
        section, _, key = setting.rpartition(".")
        model = settings.DynamicSamplingConfig if section else settings.AlgorithmConfig
        value = model.model_fields[key].default
        if value is None and not section and key not in asked:
            value = getattr(resolved, key)
        assert (None if default == "-" else tomllib.loads(f"v = {default}")["v"]) == value, setting


def test_every_algorithm_setting_is_on_some_algorithm_page():
    explained = {setting for path in ALGORITHMS.glob("*.md") for setting in setting_rows(path.read_text())}
    assert set(settings.AlgorithmConfig.model_fields) <= explained


def test_the_pages_of_corrections_aggregations_and_estimators_are_complete():
    page = algorithm_page("correction")
    heading = next(line for line in page.splitlines() if line.startswith("| `correction` |"))
    bounds = {
        row[0]: tuple(None if cell == "-" else float(cell) for cell in row[2:4])
        for row in table_rows(page, starting=heading)
    }
    assert bounds == catalogue.CORRECTIONS
    page = algorithm_page("aggregation")
    heading = next(line for line in page.splitlines() if line.startswith("| `algorithm.aggregation` |"))
    assert {row[0] for row in table_rows(page, starting=heading)} == set(catalogue.AGGREGATIONS)
    k2, k3 = (algorithm_settings.REJECT_BOUNDS[measure] for measure in ("k2", "k3"))
    assert k2 == k3
    assert f"for k2 and k3 {k2[1]:g} |" in algorithm_page("rejection")
    for choice in typing.get_args(divergence.Estimator):
        assert f"`{choice}`" in algorithm_page("kl")


def test_algorithm_pages_are_short():
    for name in {*catalogue.ROWS, *TOPICS}:
        assert algorithm_page(name).count("\n") <= 75, name


@pytest.mark.parametrize("name", sorted({*catalogue.ROWS, *TOPICS}))
def test_the_metrics_to_watch_exist(name):
    """Names in backticks under "Watch": written to the run folder, or settings."""
    code = "\n".join(path.read_text() for path in sorted((ROOT / "engine").glob("*.py")))
    watched = re.findall(r"`([\w./]+)`", algorithm_page(name).split("## Watch")[1])
    assert watched
    for metric in watched:
        quoted = f'"{metric.removeprefix("seconds/")}"'
        assert metric in config.settings() or quoted in code, metric
