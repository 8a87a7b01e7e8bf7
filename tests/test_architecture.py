"""The house keeps its shape: imports go down only, files and functions stay small, signatures are annotated."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("rhea", "examples") for path in (ROOT / folder).rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# Exceptions to the budgets, each with its reason. This list may only shrink.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


def code_lines(node: ast.Module, text: str) -> int:
    """Count the lines that hold code: no blank lines, comments or docstrings."""
    lines = text.splitlines()
    counted = {i for i, line in enumerate(lines, 1) if line.strip() and not line.strip().startswith("#")}
    for item in ast.walk(node):
        if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str):
            counted -= set(range(item.lineno, (item.end_lineno or item.lineno) + 1))
    return len(counted)


def functions(node: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [item for item in ast.walk(node) if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]


def function_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_imports_go_down_only() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports"))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_budgets(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    name = str(path.relative_to(ROOT))
    assert (code_lines(tree, text) <= MAX_FILE_LINES) is (name not in LONG_FILES), f"{name}: {code_lines(tree, text)}"
    for function in functions(tree):
        place = f"{name}:{function.name}"
        assert (function_lines(function) <= MAX_FUNCTION_LINES) is (place not in LONG_FUNCTIONS), place


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_has_a_docstring_and_no_global(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "a module says in its first lines what it is"
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)]


def test_nothing_unpickles() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "dill", "cloudpickle"} & set(names), path
            if isinstance(node, ast.Attribute) and node.attr == "load" and isinstance(node.value, ast.Name):
                assert node.value.id != "torch", f"{path}:{node.lineno}: torch.load runs code from the file"


@pytest.mark.parametrize("arguments", [["-m", "rhea.cli", "--help"], ["-c", "import rhea"]])
def test_help_and_import_do_not_need_torch(arguments: list[str]) -> None:
    run = "runpy.run_module('rhea.cli', run_name='__main__')" if "--help" in arguments else "import rhea"
    probe = f"""
import runpy, sys
sys.argv = sys.argv[1:]
try:
    {run}
finally:
    assert "torch" not in sys.modules
"""
    command = [sys.executable, "-c", probe, "rhea", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
