"""Calls the tests marked `gpu` directly, with or without pytest installed; each set of parameters is one test."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import time
import types
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tables import Row

if TYPE_CHECKING:
    from .worker import Work

TESTS = Path(__file__).resolve().parents[2] / "tests"


def run_marked_tests(_: Work) -> Iterator[Row]:
    yield from run_tests_in(TESTS)


def run_tests_in(folder: Path) -> Iterator[Row]:
    """Yields a row for each test marked `gpu` in the files of the folder."""
    if importlib.util.find_spec("pytest") is None:
        sys.modules["pytest"] = _pytest_stand_in()
    sys.path.insert(0, str(folder))  # helper modules of the tests
    for path in sorted(folder.glob("test_*.py")):
        if "mark.gpu" in path.read_text(encoding="utf-8"):
            for name, call in _calls(path):
                yield "tests", {"file": path.name, "test": name, **_outcome(call)}


def _outcome(call: Callable[[], object]) -> dict[str, object]:
    """Runs one test and returns its outcome, duration and message."""
    result, start = unittest.TestResult(), time.perf_counter()
    unittest.FunctionTestCase(call).run(result)
    seconds = f"{time.perf_counter() - start:.2f}"
    if result.skipped:
        return {"outcome": "skipped", "s": seconds, "message": result.skipped[0][1]}
    problems = result.failures + result.errors
    if problems:
        return {"outcome": "failed", "s": seconds, "message": problems[0][1].strip().splitlines()[-1]}
    return {"outcome": "passed", "s": seconds, "message": ""}


def _calls(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        yield "the whole file", partial(_skip, f"it needs a library that is not installed: {error}")
        return
    for name, function in inspect.getmembers(module, inspect.isfunction):
        marks = getattr(function, "pytestmark", [])
        if name.startswith("test_") and any(mark.name == "gpu" for mark in marks):
            yield from _parametrised(name, function, marks)


def _parametrised(
    name: str, function: Callable[..., object], marks: list[Any]
) -> Iterator[tuple[str, Callable[[], object]]]:
    skips = [mark for mark in marks if mark.name == "skip" or (mark.name == "skipif" and mark.args[0])]
    if skips:
        yield name, partial(_skip, skips[0].kwargs.get("reason", "marked as skipped"))
        return
    axes = [
        [dict(zip(names, value if len(names) > 1 else (value,), strict=True)) for value in mark.args[1]]
        for mark in marks
        if mark.name == "parametrize"
        for names in [
            [part.strip() for part in mark.args[0].split(",")] if isinstance(mark.args[0], str) else mark.args[0]
        ]
    ]
    for chosen in product(*axes):
        arguments = {key: value for part in chosen for key, value in part.items()}
        label = f"{name}[{'-'.join(map(str, arguments.values()))}]" if arguments else name
        fixtures = set(inspect.signature(function).parameters) - set(arguments)
        if fixtures:
            yield label, partial(_skip, f"fixtures are not available without pytest: {', '.join(sorted(fixtures))}")
        else:
            yield label, partial(function, **arguments)


def _skip(reason: str) -> None:
    raise unittest.SkipTest(reason)


@dataclass(frozen=True)
class _Mark:
    name: str
    args: tuple[Any, ...] = ()
    kwargs: Any = None


class _Marks:
    """`pytest.mark`: stores marks on functions, as pytest does."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def mark(*args: Any, **kwargs: Any) -> Any:
            if len(args) == 1 and not kwargs and inspect.isfunction(args[0]):  # without parentheses: @mark.gpu
                return _note(_Mark(name, (), {}), args[0])
            return partial(_note, _Mark(name, args, kwargs))

        return mark


def _note(mark: _Mark, function: Any) -> Any:
    function.pytestmark = [*getattr(function, "pytestmark", []), mark]
    return function


def _pytest_stand_in() -> types.ModuleType:
    """Returns a module with those parts of pytest that test files need to be imported and called."""
    module: Any = types.ModuleType("pytest")
    module.mark = _Marks()
    module.fixture = lambda *args, **_: args[0] if args else (lambda function: function)
    module.raises = lambda error, match="": unittest.TestCase().assertRaisesRegex(error, match)  # noqa: PT027
    module.skip = _skip
    return module
