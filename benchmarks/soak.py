"""Repeatedly kills a writing process at random moments, and checks its output after each kill.

    python benchmarks/soak.py                         200 kills of a small test writer
    python benchmarks/soak.py --kind cache --command 'knobctl precompute --model nano ... --out {out}'
    python benchmarks/soak.py --kind files --command 'knobctl train CACHE --out {out}'
        --again 'knobctl train CACHE --out {out} --resume' --kills 50

The command first runs without a kill, which gives the reference output and the duration. Then it is run repeatedly in
another directory: it is killed (SIGKILL to all its processes) at a seeded random moment, its output is checked, and it
is started again, until it finishes. Its output must then equal the reference. This continues in new directories until
the number of kills is reached.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from knobctl.data.cache.manifest import MANIFEST_NAME
from knobctl.data.cache.reader import open_cache
from knobctl.data.cache.verify import verify_cache, verify_parts

OWN_WRITER = f"{shlex.quote(sys.executable)} -m knobctl.tests.support.killed_writer {{out}}"


@dataclass
class SoakReport:
    """The number of kills and of finished runs, and the problems found."""

    kills: int = 0
    finished: int = 0
    kills_with_parts: int = 0  # kills after which a finished part existed
    problems: list[str] = field(default_factory=list)


def cache_problems(out: Path) -> list[str]:
    """Returns the problems of a cache that may be incomplete."""
    if (out / MANIFEST_NAME).exists():
        return [str(problem) for problem in verify_cache(out)]
    return [str(problem) for problem in verify_parts(out)]


def cache_content(out: Path) -> str:
    """Returns a digest of a finished cache's rows, without timings."""
    cache = open_cache(out, derived=out / "none")
    digest = hashlib.sha256(cache.fingerprint.encode())
    answer = cache.outcome_column("answer")
    digest.update(json.dumps(None if answer is None else answer.tolist()).encode())
    tokens = {}
    for cell, value in cache.tokens.batches() if cache.tokens else ():
        tokens.update((int(place), row.tobytes()) for place, row in zip(cell, value, strict=True))
    for place in sorted(tokens):
        digest.update(place.to_bytes(8, "little") + tokens[place])
    return digest.hexdigest()


def weight_content(out: Path) -> str:
    """Returns a digest of all weights below `out`, which must be bit-equal after resumed training."""
    digest = hashlib.sha256()
    for file in sorted(out.rglob("*.safetensors")):
        digest.update(str(file.relative_to(out)).encode() + file.read_bytes())
    return digest.hexdigest()


def soak(
    command: str,
    root: Path,
    *,
    again: str | None = None,
    kills: int,
    seed: int = 0,
    check: Callable[[Path], Sequence[str]] = cache_problems,
    content: Callable[[Path], str] = cache_content,
    say: Callable[[str], object] = lambda _text: None,
) -> SoakReport:
    """Kills `command` `kills` times (or `again`, if given, once there is output) and returns the problems found.

    Stops at the first problem and leaves the output below `root` unchanged.
    """
    report = SoakReport()
    reference, seen_s, whole_s = _run_once(command, root / "reference", content)
    say(f"without kills: {whole_s:.1f} s, of which {seen_s:.1f} s before the first file")
    moments = random.Random(seed)
    out = root / "killed"
    while report.kills < kills and not report.problems:
        begun = out.exists() and any(out.iterdir())
        moment_s = moments.uniform(0.9 * seen_s, whole_s)
        code = _run((again or command) if begun else command, out, moment_s)
        if code is None:
            report.kills += 1
            report.kills_with_parts += any(out.glob("samples/part-*"))
            report.problems += check(out)
            say(f"kill {report.kills} after {moment_s:.2f} s: {len(report.problems)} problems")
        else:
            report.finished += 1
            report.problems += _finished(code, out, check, content, reference)
            # On a machine that has become faster, every run might otherwise end before its moment.
            seen_s, whole_s = 0.9 * seen_s, 0.9 * whole_s
    if not report.problems:
        begun = out.exists() and any(out.iterdir())
        code = _run((again or command) if begun else command, out, None)
        report.problems += _finished(code or 0, out, check, content, reference)
        report.finished += 1
    return report


def _run_once(command: str, out: Path, content: Callable[[Path], str]) -> tuple[str, float, float]:
    """Returns the content of a run without kills, the seconds until its first file, and its total seconds."""
    start, seen_s = time.perf_counter(), None
    with subprocess.Popen(shlex.split(command.format(out=out)), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if seen_s is None and out.exists() and any(out.iterdir()):
                seen_s = time.perf_counter() - start
            time.sleep(0.005)
    whole_s = time.perf_counter() - start
    if process.returncode:
        raise click.ClickException(f"the command failed without being killed, with exit code {process.returncode}")
    return content(out), whole_s if seen_s is None else seen_s, whole_s


def _run(command: str, out: Path, moment_s: float | None) -> int | None:
    """Runs `command` and kills it with all its processes after `moment_s`. Returns its exit code; None if killed."""
    words = shlex.split(command.format(out=out))
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            return process.wait(moment_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None


def _finished(
    code: int, out: Path, check: Callable[[Path], Sequence[str]], content: Callable[[Path], str], reference: str
) -> list[str]:
    if code:
        return [f"{out}: the resumed command failed with exit code {code}"]
    problems = list(check(out))
    if not problems and content(out) != reference:
        problems = [f"{out}: the output of a resumed run differs from that of an uninterrupted one"]
    if not problems:
        shutil.rmtree(out)
    return problems


@click.command()
@click.option(
    "--command", default=OWN_WRITER, help="Command to kill; {out} is its output directory.  [default: a test writer]"
)
@click.option("--again", help="Command to continue with.  [default: the same command]")
@click.option("--kind", type=click.Choice(["cache", "files"]), default="cache", show_default=True)
@click.option("--kills", default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    help="Directory for the output, which is kept if there is a problem.",
)
def main(command: str, again: str | None, kind: str, kills: int, seed: int, directory: Path | None) -> None:
    """Print the result as JSON; the exit code is 1 if there was a problem."""
    root = Path(tempfile.mkdtemp(prefix="soak-", dir=directory))
    check, content = (cache_problems, cache_content) if kind == "cache" else ((lambda _out: []), weight_content)
    report = soak(
        command,
        root,
        again=again,
        kills=kills,
        seed=seed,
        check=check,
        content=content,
        say=lambda text: click.echo(text, err=True),
    )
    click.echo(json.dumps(asdict(report), indent=1))
    if report.problems:
        raise click.ClickException(f"the output is in {root}")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
