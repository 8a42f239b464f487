"""The engine with nano: agreement with replay's executor, and the OpenAI client against the real server."""

from __future__ import annotations

import base64
import dataclasses
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from openai import OpenAI

from knobctl.controllers.checkpoint import Controllers
from knobctl.controllers.two_stage import TwoStagePolicy
from knobctl.data.cache.reader import Cache, open_cache
from knobctl.data.datasets.sample_set import load_samples
from knobctl.data.importer import save_importance
from knobctl.data.samples import Sample
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.live_from_cache import live_factory
from knobctl.precompute.scale.launch import precompute
from knobctl.serving.engine import Engine
from knobctl.serving.http.app import ChatServer
from knobctl.serving.http.config import ServerConfig
from knobctl.tests.support.answering import answering_controllers
from knobctl.tests.support.tiny_model import published_order
from knobctl.tests.support.two_calls import two_calls

pytestmark = pytest.mark.slow
SAMPLES = 3
BUDGETS_MS = (21.0, 30.0, 60.0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A small run of nano: its model's conditions are what answering needs."""
    path = tmp_path_factory.mktemp("nano") / "cache"
    scores = path.with_name("scores.json")
    save_importance(published_order(), scores)
    precompute(
        PrecomputeConfig(
            model="nano",
            datasets=("easy_vqa",),
            out=path,
            samples=SAMPLES,
            device="cpu",
            budgets=("20", "40"),
            runs=1,
            importance=scores,
            checks_per_tiling=0,
        )
    )
    return open_cache(path)


@pytest.fixture(scope="module")
def controllers(cache: Cache) -> Controllers:
    return answering_controllers(cache, cache.path.parent / "controllers")


@pytest.fixture(scope="module")
def engine(controllers: Controllers) -> Engine:
    return Engine(controllers, device="cpu", warm_up=0)


@pytest.fixture(scope="module")
def samples() -> tuple[Sample, ...]:
    return load_samples("easy_vqa", limit=SAMPLES, seed=7).samples


def test_one_pass_chooses_and_answers_as_two_calls_do(cache, samples, tmp_path):
    live, _ = live_factory(cache.path, device="cpu")(cache.sample_ids[:1])
    found = set()
    for seed in range(4):
        controllers = answering_controllers(cache, tmp_path / str(seed), seed=seed)
        engine, policy = Engine(controllers, live.knobs.loaded, warm_up=0), TwoStagePolicy(controllers)
        for sample in samples:
            for budget_ms in BUDGETS_MS:
                answer = engine.answer_as_replayed(sample, engine.knobs.pixels(sample), budget_ms)
                assert (dataclasses.astuple(answer.setting), answer.text) == two_calls(live, policy, sample, budget_ms)
                found.add(answer.setting)
    assert len(found) > 3


@pytest.fixture
def url(engine: Engine) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(ChatServer(engine, ServerConfig()).app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join()


def test_an_openai_client_gets_the_engines_answers(engine: Engine, samples, url: str):
    client = OpenAI(base_url=url, api_key="none", max_retries=0)
    for sample in samples:
        data = sample.image.read_bytes()
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}
        reply = client.chat.completions.create(
            model=engine.model_name,
            messages=[{"role": "user", "content": [image, {"type": "text", "text": sample.question}]}],
            extra_body={"budget_ms": 10_000},
        )
        expected = engine.answer(data, sample.question, 10_000)
        assert reply.choices[0].message.content == expected.text
        assert reply.usage.completion_tokens == expected.output_tokens
