"""The house has floors; imports only go down."""

import ast
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = {
    "sandboxes": set(),
    "kernels": set(),
    "verifiers": {"sandboxes"},
    "engine": {"sandboxes", "kernels", "verifiers"},
}


def files(room):
    return sorted((ROOT / room).rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("verigrad"):
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("verigrad."):
                    yield alias.name


def test_rooms_only_import_downwards():
    assert len(files("engine")) > 10
    for room, below in ROOMS.items():
        for path in files(room):
            for name in imported(path):
                parts = name.split(".")
                assert len(parts) == 1 or parts[1] in below | {room}, (
                    f"{path.relative_to(ROOT)} imports {name}; {room}/ may import {sorted(below)}"
                )


def test_no_circles():
    modules = {f"verigrad.{room}.{p.stem}": p for room in ROOMS for p in (ROOT / room).glob("*.py")}
    graph = {name: {other for other in imported(path) if other in modules} for name, path in modules.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name in done:
            return
        path.append(name)
        for other in sorted(graph[name]):
            visit(other)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_rooms_have_no_init():
    # A kernels/__init__.py here would shadow the package of that name that transformers imports.
    found = [str(p) for room in ROOMS for p in (ROOT / room).rglob("__init__.py")]
    assert not found


def test_the_loop_fits_its_budget():
    assert len((ROOT / "engine/train.py").read_text().splitlines()) < 250


def test_the_loop_knows_no_backend():
    text = (ROOT / "engine/train.py").read_text().lower()
    assert not [word for word in ("vllm", "transformers", "deepspeed", "rank ==", "cuda") if word in text]


def test_no_file_shadows_the_standard_library():
    # `python engine/x.py` puts engine/ first on sys.path; with a select.py there, `import torch` fails.
    for room in ROOMS:
        for path in files(room):
            assert path.stem not in sys.stdlib_module_names, f"{path.relative_to(ROOT)}: rename it"


def test_no_branch_for_the_quickstart_outside_recipes_and_makers():
    for room in ROOMS:
        for path in files(room):
            if path.parent.name == "recipes":
                continue
            code = ast.unparse(strip_docstrings(ast.parse(path.read_text())))
            names = [word for word in ("quickstart", "ladder") if word in code.lower()]
            assert not names, f"{path.relative_to(ROOT)} mentions {names}"


def strip_docstrings(tree):
    """Also the examples that help shows."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and "EXAMPLE" in ast.unparse(node.targets[0]):
            node.value = ast.Constant("")
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    return tree


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_recipes_and_verifiers_import_without_torch():
    done = run_python(
        "import sys, verigrad.engine.config, verigrad.verifiers.registry, verigrad.verifiers.isolation, "
        "verigrad.engine.verify, verigrad.engine.list_verifiers, verigrad.engine.cli\n"
        "print(sorted({'torch', 'sympy', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_help_is_there_before_the_hand_leaves_the_key():
    command = [str(Path(sys.executable).parent / "verigrad"), "--help"]
    subprocess.run(command, check=True, capture_output=True)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3
