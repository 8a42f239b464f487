"""`knobctl serve`, and the examples of its guide."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from knobctl.cli import main
from knobctl.serving.http import server as http_server
from knobctl.tests.support.chat_requests import png
from knobctl.tests.support.fake_engine import FakeEngine
from knobctl.tests.support.fake_server import running_server

GUIDE = (Path(__file__).parent.parent / "docs" / "guides" / "serve.md").read_text()


def test_the_command_gives_its_options_to_the_engine_and_the_server(monkeypatch, tmp_path: Path):
    seen: dict[str, Any] = {}

    class Engine(FakeEngine):
        def __init__(self, controllers: str, model: str | None, **options: Any) -> None:
            super().__init__()
            options.pop("progress")
            seen.update(controllers=controllers, engine={"model": model, **options})

        def close(self) -> None:
            seen["closed"] = True

    monkeypatch.setitem(sys.modules, "knobctl.serving.engine", SimpleNamespace(Engine=Engine))
    monkeypatch.setattr(
        http_server, "serve", lambda _engine, config, started: (seen.update(config=config), started("U"))
    )
    (tmp_path / "key").write_text("secret\n")
    options = ["--host", "0.0.0.0", "--api-key-file", str(tmp_path / "key"), "--default-budget-ms", "25"]
    options += ["--on-miss", "fastest", "--allow-image-host", "a.example", "--allow-image-host", "b.example"]
    result = CliRunner().invoke(main, ["serve", "ctl", "--task", "vqa", "--device", "cpu", *options])
    assert result.exit_code == 0, result.output
    assert seen["controllers"] == "ctl"
    expected = {"model": None, "revision": None, "device": "cpu", "dtype": None, "task": "vqa", "within": None}
    assert seen["engine"] == expected
    config = seen["config"]
    assert config.on_miss == "fastest"
    assert (config.host, config.api_key, config.default_budget_ms) == ("0.0.0.0", "secret", 25.0)
    assert config.allowed_image_hosts == ("a.example", "b.example")
    assert seen["closed"]
    assert "serving fake at U/v1" in result.stderr
    assert "secret" not in result.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--host", "0.0.0.0"], "needs an API key"),
        (["--default-budget-ms", "nan"], "default budget"),
        (["--allow-image-host", "https://x"], "image host"),
        (["--port", "70000"], "port 70000"),
    ],
)
def test_options_that_cannot_be_used_end_the_command_before_a_model_is_loaded(monkeypatch, options, reason):
    monkeypatch.delenv("KNOBCTL_API_KEY", raising=False)
    result = CliRunner().invoke(main, ["serve", "missing", *options])
    assert result.exit_code == 1
    assert reason in result.stderr


def test_the_examples_of_the_guide_run(tmp_path: Path):
    (shell,) = re.findall(r"```sh\n(cat.*?)```", GUIDE, re.DOTALL)
    (python,) = (block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "openai" in block)
    image = tmp_path / "docs" / "images" / "sign.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(png())
    with running_server("--on-miss", "fastest") as server:
        environment = {**os.environ, "NO_PROXY": "*"}
        for command in (["sh", "-c", shell], [sys.executable, "-c", python]):
            address = [part.replace("http://127.0.0.1:8000", server.url) for part in command]
            done = subprocess.run(address, cwd=tmp_path, capture_output=True, text=True, env=environment)
            assert done.returncode == 0, done.stderr
            assert " 8x6 " in done.stdout
            assert "what is the smallest number on the sign?" in done.stdout
