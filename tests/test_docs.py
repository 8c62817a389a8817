"""The documents keep their word: every block runs, every link leads somewhere, every list is complete."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from verigrad.engine import cli, config

ROOT = Path(__file__).parent.parent
WRAPPERS = ROOT / "tests" / "docs_bin"
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_NOT_RUN = 3
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if any(blocks(p))], ids=name_of)
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
