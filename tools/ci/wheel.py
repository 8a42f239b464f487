"""Builds the package, checks it, and runs its commands where only its required dependencies exist.

    python -m knobctl.tools.ci.wheel                       # about a minute
    python -m knobctl.tools.ci.wheel --resolve 3.12 --resolve 3.13

The wheel is built from the source distribution, so a file that is missing there is noticed. Its dependencies are not
downloaded again: those that it requires without extras are linked from the running environment, and no others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import click
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent.parent
MAX_WHEEL_BYTES = 32 << 20
EXTRAS_ONLY = ("sklearn", "tensorboard", "wandb", "trackio", "pytest", "mkdocs")  # must not be there without extras


def run(*words: object, cwd: Path, quiet: bool = True) -> str:
    """Runs a command and returns its stdout. Ends the program if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    if not quiet:
        click.echo(done.stdout, nl=False)
    return done.stdout


def build(folder: Path) -> Path:
    """Builds source distribution and wheel, checks their metadata, and returns the wheel."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(folder.iterdir()), cwd=folder, quiet=False)
    (wheel,) = folder.glob("*.whl")
    size = wheel.stat().st_size
    if size > MAX_WHEEL_BYTES:
        raise SystemExit(f"{wheel.name} has {size:,} bytes, more than {MAX_WHEEL_BYTES:,}")
    click.echo(f"{wheel.name}: {size / (1 << 20):.1f} MiB")
    return wheel


def required(names: list[Requirement], found: dict[str, Distribution]) -> dict[str, Distribution]:
    """Adds the installed distributions that these requirements lead to, by name, to `found`."""
    for wanted in names:
        if wanted.name in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        found[wanted.name] = distribution(wanted.name)
        required([Requirement(line) for line in found[wanted.name].requires or []], found)
    return found


def linked(distributions: Iterator[Distribution], folder: Path) -> Path:
    """Links the installed files of these distributions, and nothing else, into a folder."""
    folder.mkdir()
    for one in distributions:
        for top in {file.parts[0] for file in one.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(one.locate_file(top))))
    return folder


def environment(wheel: Path, folder: Path) -> Path:
    """Makes an environment with the wheel and its required dependencies, and returns its `bin`."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    needed = [Requirement(line) for line in distribution("knobctl").requires or []]
    links = linked(iter(required(needed, {}).values()), folder / "linked")
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "linked.pth").write_text(f"{links}\n")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    run(*pip, "check", cwd=folder)
    where = run(python, "-c", "import knobctl; print(knobctl.__file__)", cwd=folder).strip()
    assert Path(where).is_relative_to(site), f"{where} is not the installed wheel"
    probe = f"import importlib.util as u; print([n for n in {EXTRAS_ONLY} if u.find_spec(n)])"
    assert run(python, "-c", probe, cwd=folder).strip() == "[]", "an optional dependency is there"
    return folder / "bin"


def commands(binaries: Path, folder: Path) -> None:
    """Runs the commands of the installed wheel in an empty folder."""
    folder.mkdir()
    knobctl = binaries / "knobctl"
    small = ("--train", 160, "--val", 40, "--test", 40, "--d-model", 16)
    run(knobctl, "--help", cwd=folder)
    run(binaries / "python", "-m", "knobctl.data.generated.cache", "cache", *small, cwd=folder)
    run(knobctl, "inspect", "cache", cwd=folder)
    run(knobctl, "train", "cache", "--out", "controllers", "--epochs", 20, cwd=folder)
    run(knobctl, "validate", "controllers", "--cache", "cache", "--resamples", 100, cwd=folder, quiet=False)


def resolve(wheel: Path, version: str, folder: Path) -> None:
    """Asks pip whether every dependency has a wheel for another version of Python. Runs nothing there."""
    target = ("--target", folder / version, "--python-version", version, "--only-binary=:all:")
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", *target, wheel, cwd=folder
    )
    click.echo(f"Python {version}: every dependency resolves (not run)")


@click.command()
@click.option("--resolve", "versions", multiple=True, help="Also resolve the dependencies for this version of Python.")
def main(versions: tuple[str, ...]) -> None:
    """Build the package and check it."""
    with tempfile.TemporaryDirectory(prefix="knobctl-wheel-") as name:
        folder = Path(name)
        (folder / "dist").mkdir()
        wheel = build(folder / "dist")
        commands(environment(wheel, folder / "environment"), folder / "elsewhere")
        for version in versions:
            resolve(wheel, version, folder)


if __name__ == "__main__":
    main()
