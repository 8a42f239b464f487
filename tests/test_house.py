"""The rules of the layout: allowed imports, no cycles, short files, complete package list, a light command line."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data", "precompute", "controllers", "replay", "serving", "commands")
MAX_LINES = 400

# `devices.py` at the root holds what every package that uses torch shares.
MAY_IMPORT = {
    "data": {"data"},
    "precompute": {"data", "precompute", "devices", "controllers.budget_encoder"},
    "controllers": {"data", "controllers", "devices"},
    "replay": {"data", "controllers", "replay", "devices"},
    "serving": {
        "data",
        "precompute.models",
        "precompute.execution",
        "precompute.latency",
        "controllers",
        "devices",
        "serving",
    },
    "commands": {"data", "precompute", "controllers", "replay", "serving", "devices", "console", "commands"},
}
FORBIDDEN_LIBRARIES = {"data": {"torch", "transformers"}, "replay": {"transformers"}, "controllers": {"transformers"}}

# Inside these packages a folder imports only folders that precede it. In `replay` the files beside the folders precede
# all folders; `precompute` has only its `__init__.py`.
LAYERS = {
    "precompute": ("models", "execution", "latency", "run", "scale"),
    "replay": ("", "bases", "policies", "evaluation", "training", "report"),
}


def source_files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """Yields (imported module, whether it is the project's own, line), own ones relative to the root."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.removeprefix("knobctl."), alias.name.split(".")[0] == "knobctl", node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            module = node.module or ""
            yield module.removeprefix("knobctl."), module.split(".")[0] == "knobctl", node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            if node.module:
                yield ".".join((*base, *node.module.split("."))), True, node.lineno
            else:
                for alias in node.names:
                    yield ".".join((*base, alias.name)), True, node.lineno


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_the_design_allows(package: str):
    wrong = []
    known = {*PACKAGES, "tools", "tests", "benchmarks", *(path.stem for path in ROOT.glob("*.py"))}
    for path in (ROOT / package).rglob("*.py"):
        for module, own, line in imports(path):
            if own:
                allowed = any(module == name or module.startswith(name + ".") for name in MAY_IMPORT[package])
                if not allowed and module.split(".")[0] in known:
                    wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
            elif module.split(".")[0] in FORBIDDEN_LIBRARIES.get(package, set()):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert wrong == []


@pytest.mark.parametrize("package", LAYERS)
def test_folders_import_only_folders_before_them(package: str):
    layers = LAYERS[package]
    wrong = []
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT / package).parts
        if parts == ("__init__.py",):  # the package's face may offer anything
            continue
        layer = parts[0] if len(parts) > 1 else ""
        assert layer in layers, f"{path.relative_to(ROOT)} is in no layer of {layers}"
        for module, own, line in imports(path):
            if not (own and module.startswith(f"{package}.")):
                continue
            imported = module.split(".")[1]
            imported = imported if (ROOT / package / imported).is_dir() else ""
            if layers.index(imported) > layers.index(layer):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert wrong == []


def test_no_import_cycles():
    names = {module_name(path) for path in source_files()}
    graph: dict[str, set[str]] = {}
    for path in source_files():
        own = {module for module, is_own, _ in imports(path) if is_own}
        # `from .pair import Thing` names a module or, one level deeper, something in it.
        targets = {module if module in names else module.rpartition(".")[0] for module in own}
        graph[module_name(path)] = {target for target in targets if target in names and target != module_name(path)}
    TopologicalSorter(graph).prepare()  # raises CycleError, which lists the cycle


def test_every_file_is_under_400_lines():
    folders = ("tests", "benchmarks", "tools")
    files = [*source_files(), *ROOT.glob("*.py")]
    files += [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}
    assert {path: n for path, n in lengths.items() if n > MAX_LINES} == {}


def test_every_package_is_in_the_wheel_and_tools_are_not():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {"knobctl"} | {f"knobctl.{module_name(path)}" for path in source_files() if path.name == "__init__.py"}
    missing_init = {path.parent for path in source_files() if not (path.parent / "__init__.py").exists()}
    assert missing_init == set()
    assert found == listed


def test_every_package_has_a_docstring():
    faces = [path for path in source_files() if path.name == "__init__.py"]
    assert [str(path.relative_to(ROOT)) for path in faces if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_help_needs_neither_torch_nor_transformers():
    code = (
        "import sys; from click.testing import CliRunner; from knobctl.cli import main\n"
        "result = CliRunner().invoke(main, ['--help']); assert result.exit_code == 0, result.output\n"
        "names = main.list_commands(None)\n"
        "for n in names: assert CliRunner().invoke(main, [n, '--help']).exit_code == 0, n\n"
        "print(sorted({'torch', 'transformers', 'polars', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_model_and_replay_training_need_no_table_library():
    """`make gpu` measures them with a Python that may lack everything but torch and transformers."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['polars', 'pyarrow', 'psutil', 'click', 'rich', 'pytest']))\n"
        "import knobctl.precompute.run.live, knobctl.precompute.run.sample, knobctl.tools.nano.small_print\n"
        "import knobctl.replay.training.data, knobctl.replay.training.trainer, knobctl.data.generated.population\n"
        "try: import knobctl.data.cache.reader\n"
        "except ModuleNotFoundError as error: print(error.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "polars"), done.stderr
