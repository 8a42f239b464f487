"""Simulates a large run with the coordinator's own queue of parts: how it scales to many GPUs, and what limits it.

    python benchmarks/ray_scaling.py > benchmarks/results/ray-scaling.md

Nothing here has run on a cluster. Measured on this machine: the coordinator's work for a part of the size of a real one
(decoding the message, writing and syncing the files) and its storage operations. Assumed, and printed with the result:
the time of a sample, its spread, the time to load the model, and preemptions.
"""

from __future__ import annotations

import heapq
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from statistics import median

import click
import numpy as np
import pyarrow as pa

from knobctl.data.cache.parts import SAMPLES as SAMPLES_TABLE
from knobctl.data.cache.writer import CacheWriter, encode_part
from knobctl.data.files.atomic import Disk
from knobctl.data.knobs import KnobSpace
from knobctl.precompute.scale.part_queue import PARTS_LEFT, PartIds, PartQueue
from knobctl.tests.support.caches import outcome_table, sample_table, token_table

PART_SAMPLES = 16
D_MODEL = 2048


@dataclass(frozen=True)
class Cluster:
    """What the simulation assumes. Times in seconds."""

    gpus: int
    samples: int = 6000
    sample_s: float = 115.0  # a day on 8 GPUs
    sample_spread: float = 0.3  # standard deviation of the logarithm
    slow_share: float = 0.02  # of the workers, at half speed
    model_gb: float = 60.0
    worker_gb_s: float = 1.0
    storage_gb_s: float = 20.0  # of all workers together
    prepare_s: float = 0.0  # importance scores and pilot, by one worker
    preempted_every_h: float | None = None  # mean, for each GPU
    replaced_after_s: float = 600.0
    commit_s: float = 0.1  # the coordinator's work for one part
    parts_left: int = PARTS_LEFT
    shrinking: bool = True  # parts near the end; else all have 16 samples

    @property
    def load_s(self) -> float:
        """Seconds until all workers have loaded the model."""
        return max(self.model_gb / self.worker_gb_s, self.gpus * self.model_gb / self.storage_gb_s)


@dataclass
class Outcome:
    """What the simulation finds. Times in seconds."""

    end_s: float = 0.0
    work_s: float = 0.0  # of all samples, at full speed
    lost_s: float = 0.0  # work of preempted workers
    coordinator_s: float = 0.0  # busy
    waited_s: float = 0.0  # of workers for the coordinator
    first_idle_s: float | None = None  # when a worker first found no part
    parts: int = 0
    preemptions: int = 0


@dataclass
class Simulation:
    """One run, event by event: `join`, `done` and `leave` of workers."""

    cluster: Cluster
    seed: int = 0
    events: list[tuple[float, int, str, int]] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    order: Iterator[int] = field(default_factory=count)  # of events at the same time

    def run(self) -> Outcome:
        """Returns the outcome."""
        cluster, draw = self.cluster, random.Random(self.seed)
        spread = cluster.sample_spread
        cost = {
            str(n): cluster.sample_s * draw.lognormvariate(-(spread**2) / 2, spread) for n in range(cluster.samples)
        }
        self.outcome.work_s = sum(cost.values())
        queue = PartQueue(tuple(cost), PART_SAMPLES, parts_left=cluster.parts_left)
        speed: dict[int, float] = {}
        running: dict[int, tuple[PartIds, float]] = {}
        idle: set[int] = set()
        left, coordinator_free, number = cluster.samples, 0.0, 0
        for _ in range(cluster.gpus):
            self._add(cluster.load_s + cluster.prepare_s, "join", number)
            number += 1
        while left:
            now, _, kind, worker = heapq.heappop(self.events)
            if kind == "join":
                speed[worker] = 0.5 if draw.random() < cluster.slow_share else draw.gauss(1.0, 0.03)
                idle.add(worker)
                if cluster.preempted_every_h is not None:
                    self._add(now + draw.expovariate(1 / (cluster.preempted_every_h * 3600)), "leave", worker)
            elif kind == "leave":
                self.outcome.preemptions += 1
                del speed[worker]
                idle.discard(worker)
                if worker in running:
                    part, since = running.pop(worker)
                    queue.give_back(part, counts=False)
                    self.outcome.lost_s += now - since
                self._add(now + cluster.replaced_after_s + cluster.model_gb / cluster.worker_gb_s, "join", number)
                number += 1
            elif worker in running:
                part, _ = running.pop(worker)
                self.outcome.waited_s += max(coordinator_free - now, 0.0)
                now = coordinator_free = max(now, coordinator_free) + cluster.commit_s
                self.outcome.coordinator_s += cluster.commit_s
                self.outcome.parts += 1
                left -= len(part)
                idle.add(worker)
            for one in sorted(idle):
                given = queue.next(cluster.gpus if cluster.shrinking else 1)
                if given is None:
                    if self.outcome.first_idle_s is None:
                        self.outcome.first_idle_s = now
                    break
                idle.discard(one)
                running[one] = given, now
                self._add(now + sum(cost[name] for name in given) / speed[one], "done", one)
            self.outcome.end_s = now
        return self.outcome

    def _add(self, at: float, kind: str, worker: int) -> None:
        heapq.heappush(self.events, (at, next(self.order), kind, worker))


class CountingDisk(Disk):
    """Counts storage operations."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def create(self, path: Path) -> int:
        self.counts["create"] += 1
        return super().create(path)

    def write(self, descriptor: int, data: memoryview) -> int:
        self.counts["write"] += 1
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self.counts["sync"] += 1
        super().sync(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        self.counts["rename"] += 1
        super().replace(source, target)


@dataclass(frozen=True)
class PartCost:
    """The coordinator's work for one part."""

    commit_s: float
    operations: dict[str, float]
    megabytes: float


def measure_commit(folder: Path, repeats: int = 8, others: int = 1000) -> PartCost:
    """Measures commits of parts of a real run's size into a directory that already has `others` parts."""
    space, budgets = KnobSpace(), tuple(float(10 + n) for n in range(16))
    times, disk = [], CountingDisk()
    with CacheWriter(folder / "cache", {"benchmark": "ray_scaling"}, disk=disk) as writer:
        (folder / "cache" / SAMPLES_TABLE).mkdir()
        for number in range(others):
            (folder / "cache" / SAMPLES_TABLE / f"part-0000-{number:06d}.parquet").touch()
        disk.counts.clear()
        for repeat in range(repeats):
            names = [f"s{repeat}-{n}" for n in range(PART_SAMPLES)]
            tokens = token_table(names, space, budgets, D_MODEL)
            files = encode_part(sample_table(names, D_MODEL), outcome_table(names, space), _noisy(tokens))
            received = {name: bytes(file) for name, file in files.items()}
            started = time.perf_counter()
            writer.commit_part(received)
            times.append(time.perf_counter() - started)
    operations = {name: number / repeats for name, number in disk.counts.items()}
    return PartCost(median(times), operations, sum(map(len, received.values())) / 1e6)


def _noisy(tokens: pa.Table) -> pa.Table:
    """Returns the table with random tokens, which do not compress, as real ones do not."""
    values = np.random.default_rng(0).normal(size=(tokens.num_rows, D_MODEL)).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), D_MODEL)
    return tokens.set_column(tokens.column_names.index("token"), "token", column)


def row(cluster: Cluster, operations: float) -> str:
    """Returns a line of the table."""
    found = Simulation(cluster).run()
    startup_s = cluster.load_s + cluster.prepare_s
    whole = found.work_s / (cluster.gpus * found.end_s)
    after = found.work_s / (cluster.gpus * (found.end_s - startup_s))
    tail_s = found.end_s - (found.first_idle_s or found.end_s)
    rate = found.parts / (found.end_s - startup_s)
    cells = [
        f"{cluster.gpus}",
        f"{found.end_s / 3600:.2f}",
        f"{startup_s / 60:.0f}",
        f"{whole:.0%}",
        f"{after:.1%}",
        f"{tail_s:.0f}",
        f"{found.parts}",
        f"{found.preemptions}",
        f"{found.lost_s / found.work_s:.1%}",
        f"{found.coordinator_s / (found.end_s - startup_s):.2%}",
        f"{rate * operations:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


HEADER = """| GPUs | hours | start-up min | efficiency | after start-up | tail s | parts | preempted | work redone | \
coordinator busy | storage operations/s |
|---|---|---|---|---|---|---|---|---|---|---|"""


@click.command()
@click.option("--prepare-s", default=2400.0, show_default=True, help="Importance scores and pilot, in one worker.")
@click.option("--preempted-every-h", default=12.0, show_default=True, help="Mean for each GPU.")
def main(prepare_s: float, preempted_every_h: float) -> None:
    """Print the result as Markdown."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        cost = measure_commit(Path(folder))
    operations = sum(cost.operations.values())
    base = Cluster(1, commit_s=cost.commit_s)
    cases = {
        "Importance scores given (`--importance`), no preemption": base,
        f"Importance scores and pilot take one worker {prepare_s / 60:.0f} min first": replace(
            base, prepare_s=prepare_s
        ),
        f"As the first, every GPU preempted once in {preempted_every_h:g} h on average": replace(
            base, preempted_every_h=preempted_every_h
        ),
        "As the first, with the model on every machine's own disk (`storage_gb_s` without limit)": replace(
            base, storage_gb_s=1e9
        ),
        "As the first, with parts cut twice as fine": replace(base, parts_left=2 * PARTS_LEFT),
        "As the first, with parts of 16 samples up to the end": replace(base, shrinking=False),
    }
    named = ", ".join(f"{number:g} {name}" for name, number in sorted(cost.operations.items()))
    click.echo(
        f"Measured: committing a part of {PART_SAMPLES} samples ({cost.megabytes:.1f} MB) takes the coordinator "
        f"{cost.commit_s * 1000:.0f} ms and {operations:g} storage operations ({named}), beside 1,000 other parts.\n\n"
        f"Assumed: {base.samples:,} samples of {base.sample_s:g} s each on average (8 GPUs for a day), standard "
        f"deviation of the logarithm {base.sample_spread:g}; {base.slow_share:.0%} of the workers at half speed; a "
        f"model of {base.model_gb:g} GB, read at up to {base.worker_gb_s:g} GB/s by a worker and {base.storage_gb_s:g} "
        f"GB/s by all; a preempted GPU is replaced after {base.replaced_after_s / 60:.0f} min."
    )
    for title, case in cases.items():
        click.echo(f"\n## {title}\n\n{HEADER}")
        for gpus in (1, 8, 64, 512):
            click.echo(row(replace(case, gpus=gpus), operations))


if __name__ == "__main__":
    main()
