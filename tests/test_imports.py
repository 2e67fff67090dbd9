"""Who imports whom, what is imported when, and what must not be in the repository."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHODS = [
    n for n in ("sohandnet", "selfsup_fitting", "v2v_posenet", "hand3d_wild", "handoccnet") if (ROOT / n).is_dir()
]
SOURCES = sorted(p for top in ["shared", *METHODS] for p in (ROOT / top).rglob("*.py"))
HEAVY = {"lightning", "tensorboard", "viser", "gradio"}
TORCH_ONLY = {"model.py", "losses.py", "reference.py"}  # need torch and geometry, no programs, no files


def imports(path: Path, *, top_level: bool) -> Iterator[str]:
    """Modules that a file imports, absolute; only those that run on import with ``top_level``."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if top_level and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if top_level and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = ".".join(package[: len(package) - child.level + 1]) if child.level else ""
                module = ".".join(part for part in (base, child.module) if part)
                yield module
                yield from (f"{module}.{alias.name}" for alias in child.names)
            yield from visit(child)

    yield from visit(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_who_imports_whom(path: Path) -> None:
    top = path.relative_to(ROOT).parts[0]
    strangers = {m for m in METHODS if m != top}
    for module in imports(path, top_level=False):
        assert module.split(".")[0] not in strangers, f"{module}: a method imports shared and itself, shared no method"
        assert module.split(".")[0] != "tests"
    for module in imports(path, top_level=True):
        assert module.split(".")[0] not in HEAVY, f"{module} takes seconds; import it inside the function that uses it"
        if path.name in TORCH_ONLY and top != "shared":
            assert module.split(".")[0] not in {"jsonargparse", "yaml", "tqdm", "matplotlib", "PIL"}
    if path.parent == ROOT / "shared/datasets" and path.name not in ("check.py", "__init__.py"):
        readers = {
            "icvl",
            "nyu",
            "msra",
            "hands2017",
            "itop",
            "ho3d",
            "dexycb",
            "stb",
            "panoptic",
            "mpii_nzsl",
            "freihand",
        }
        for module in imports(path, top_level=False):
            if module.startswith("shared.datasets."):
                assert module.split(".")[2] not in readers - {path.stem}, f"{module}: readers do not import one another"


def programs() -> list[str]:
    found = []
    for path in SOURCES:
        if '__name__ == "__main__"' in path.read_text():
            found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


@pytest.mark.parametrize("module", programs())
def test_help_is_quick_and_imports_nothing_heavy(module: str) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{module}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('{module}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'lightning', 'matplotlib', 'scipy.optimize'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout
    assert "HEAVY []" in result.stdout, result.stdout[-300:]


def test_nothing_names_a_machine() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    needles = ["/ro" + "ot/", "/ho" + "me/", "../sha" + "red/specs", "../sha" + "red/golden", "../sha" + "red/data"]
    for name in files:
        path = ROOT / name
        if path.suffix in {".npz", ".gz", ".png", ".so"} or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        for needle in needles:
            assert needle not in text, f"{name} contains {needle}"


def test_no_unsafe_loading() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert "allow_pickle=True" not in text, path
        assert "weights_only=False" not in text, path
        if path.name != "safe_io.py":
            assert "import pickle" not in text or "pickle.load" not in text, path
