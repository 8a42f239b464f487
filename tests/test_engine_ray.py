"""`--ray`: rows equal those of one process, whatever is killed; clusters that cannot be used; nothing left running."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from knobctl.data.cache.verify import verify_cache
from knobctl.data.errors import KnobctlError
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.scale.launch import precompute
from knobctl.tests.support.dataset_files import png, write_json_lines
from knobctl.tests.support.ray_cluster import RayCluster, actors, ray_cluster, ray_home
from knobctl.tests.support.ray_runs import SAMPLES, driver, ray_config
from knobctl.tests.support.recorded_progress import RecordedProgress
from knobctl.tests.support.tiny_model import assert_same_rows

LIMIT_S = 300  # for any run here: a hang fails the test


def test_a_missing_ray_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "knobctl.precompute.scale.ray_actors", raising=False)
    with pytest.raises(KnobctlError, match=r"pip install 'knobctl\[ray\]'"):
        precompute(ray_config(tmp_path, "local"))


ray = pytest.importorskip("ray")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster can be reached at 127.0.0.1:1"),
        ("head:many", "no Ray cluster can be reached at head:many"),
        ("ray://head:10001", "Ray Client is not supported"),
        ("nonsense", "Invalid address"),
    ],
)
def test_an_address_without_a_cluster_is_named(tmp_path, address, message):
    with ray_home(), pytest.raises(KnobctlError, match=message):
        precompute(ray_config(tmp_path, address))
    assert not (tmp_path / "cache").exists()


HEAD = """
import sys, time
import ray
{change}
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, "include_dashboard": False}})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ray.__version__ = '2.50.0'", r"Version mismatch.*Ray: 2\.50\.0"),
        ("sys.version_info = (3, 9, 1, 'final', 0)", r"Version mismatch.*Python: 3\.9\.1"),
    ],
)
def test_a_cluster_of_another_version_is_refused(tmp_path, change, message):
    with ray_home():
        command = [sys.executable, "-c", HEAD.format(change=change)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as head:
            assert head.stdout is not None
            address = head.stdout.readline().strip()
            with pytest.raises(KnobctlError, match=message):
                precompute(ray_config(tmp_path, address))
            head.communicate("", timeout=60)
    assert not Path(tmp_path / "cache").exists()


def test_a_machine_without_a_cluster_is_named(tmp_path):
    if any(process.info["name"] == "gcs_server" for process in psutil.process_iter(["name"])):
        pytest.skip("Ray would find the cluster that runs on this machine")
    with ray_home(), pytest.raises(KnobctlError, match="Could not find any running Ray instance"):
        precompute(ray_config(tmp_path, "auto"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> PrecomputeConfig:
    """The run in one process."""
    config = ray_config(tmp_path_factory.mktemp("reference"))
    precompute(config)
    return config


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as running:
        yield running


def wait_for(condition, within_s: float = LIMIT_S) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_workers_and_nodes_may_be_killed_in_the_middle_of_a_part(reference, cluster, tmp_path):
    draw = random.Random(1)

    def kill(done: int) -> None:
        if done == 6:
            assert cluster.kill_worker(draw)
        elif done == 14:
            cluster.kill_node(draw)
        elif done == 20:
            cluster.add_node()  # whose worker joins

    progress = RecordedProgress(kill)
    config = ray_config(tmp_path, cluster.address)
    assert precompute(config, progress)["samples"] == SAMPLES
    lost = [note for note in progress.notes if "is lost" in note]
    assert len(lost) >= 2
    assert all(len(note) < 250 for note in lost)
    assert not ray.is_initialized()
    assert actors() == []
    assert verify_cache(config.out) == []
    assert_same_rows(config.out, reference.out)
    assert precompute(config)["samples"] == SAMPLES  # complete: nothing runs again


@pytest.mark.slow
def test_a_stalled_worker_is_ended_and_replaced(reference, cluster, tmp_path):
    progress = RecordedProgress(lambda done: os.kill(actors()[0].pid, signal.SIGSTOP) if done == 6 else None)
    config = ray_config(tmp_path, cluster.address, stall_timeout=15.0)
    precompute(config, progress)
    assert any("it made no progress for 15 s" in note for note in progress.notes)
    wait_for(lambda: actors() == [], 30)
    assert_same_rows(config.out, reference.out)


@pytest.mark.slow
@pytest.mark.parametrize("again", ["with Ray", "without Ray"])
def test_a_killed_driver_leaves_a_directory_that_is_resumed(reference, cluster, tmp_path, again):
    config = ray_config(tmp_path, cluster.address)
    with driver(config) as process:
        wait_for(lambda: len(list(config.out.glob("samples/part-*"))) >= 2 or process.poll() is not None)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    committed = len(list(config.out.glob("samples/part-*")))
    if again == "with Ray":
        precompute(config)  # at once, while the actors of the first driver may still run
    else:
        precompute(replace(config, ray=None))
        wait_for(lambda: actors() == [], 60)
    assert committed >= 2
    assert verify_cache(config.out) == []
    assert_same_rows(config.out, reference.out)


@pytest.mark.slow
def test_a_second_driver_on_the_directory_is_refused(reference, cluster, tmp_path):
    config = ray_config(tmp_path, cluster.address)
    with driver(config) as process:
        wait_for(lambda: list(config.out.glob("samples/part-*")) or process.poll() is not None)
        with pytest.raises(KnobctlError, match=r"is being written by process \d+"):
            precompute(config)
        result, notes = process.communicate(timeout=LIMIT_S)
    assert json.loads(result)["samples"] == SAMPLES  # stdout holds the result alone
    assert process.returncode == 0, notes
    assert_same_rows(config.out, reference.out)


@pytest.mark.slow
def test_resources_that_the_cluster_lacks_are_named(cluster, tmp_path):
    config = ray_config(tmp_path, cluster.address, device="cuda", ray_wait=3.0)
    with pytest.raises(KnobctlError, match=r"within 3 s .*1 CPU .* and 1 GPU \(the cluster has 0.*--device cpu"):
        precompute(config)
    assert not config.out.exists()


@pytest.mark.slow
def test_a_worker_that_cannot_read_the_model_says_so(cluster, tmp_path):
    config = ray_config(tmp_path, cluster.address, model=str(tmp_path / "nowhere"))
    with pytest.raises(KnobctlError, match=r"^worker \d+ failed: .*nowhere"):
        precompute(config)
    assert actors() == []


@pytest.mark.slow
def test_a_worker_that_cannot_read_an_image_says_which(cluster, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    entries = []
    for number in range(SAMPLES):
        (images / f"{number}.png").write_bytes(png(number, (40, 30)))
        entries.append({"image": f"{number}.png", "question": f"what is number {number}?", "answers": ["cat"]})
    mine = write_json_lines(tmp_path / "mine.jsonl", entries)
    progress = RecordedProgress(lambda done: images.rename(tmp_path / "elsewhere") if done == 6 else None)
    config = ray_config(
        tmp_path,
        cluster.address,
        datasets=(f"mine={mine}",),
        images=images,
        metrics={"mine": "exact_match"},
        max_new_tokens={"mine": 2},
    )
    with pytest.raises(KnobctlError, match=rf"^worker \d+ failed: .*{images} does not exist \(needed for \d+\.png\)"):
        precompute(config, progress)
    assert actors() == []
    (tmp_path / "elsewhere").rename(images)
    assert precompute(config)["samples"] == SAMPLES
    assert verify_cache(config.out) == []


@pytest.mark.slow
def test_the_caller_keeps_its_own_ray(reference, tmp_path):
    with ray_home():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            precompute(ray_config(tmp_path, "local"))
            assert ray.is_initialized()
        finally:
            ray.shutdown()
    assert_same_rows(tmp_path / "cache", reference.out)
