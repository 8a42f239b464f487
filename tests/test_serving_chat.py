"""Which chat requests are accepted, and which budget applies to one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.datastructures import Headers

from knobctl.serving.http.budget import request_budget_ms
from knobctl.serving.http.chat import chosen_task, parse_chat
from knobctl.serving.http.refusal import Refusal
from knobctl.tests.support.chat_requests import chat_body, messages


def parse(**fields: Any):
    return parse_chat(json.dumps(chat_body(**fields)).encode())


def refusal(call: Any, *arguments: Any, **options: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call(*arguments, **options)
    return caught.value


def budget(headers: dict[str, str] | list[tuple[str, str]], body_ms: float | None = None, default: float | None = None):
    items = headers if isinstance(headers, list) else list(headers.items())
    raw = [(name.encode(), value.encode()) for name, value in items]
    return request_budget_ms(Headers(raw=raw), body_ms, default, 5)


def test_a_question_is_the_text_around_one_image():
    image = messages()[0]["content"][1]
    content = [{"type": "text", "text": " What "}, image, {"type": "text", "text": "is it? "}]
    chat = parse(messages=[{"role": "user", "content": content}])
    assert chat.message.question == "What \nis it?"
    assert chat.message.image_url == image["image_url"]["url"]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 0.0, "top_p": 1, "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0},
        {"temperature": None, "stream": None, "max_tokens": None, "logprobs": False, "store": False},
        {"seed": 7, "user": "someone"},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"max_tokens": 3, "max_completion_tokens": 3},
    ],
)
def test_what_does_not_change_a_greedy_answer_is_accepted(fields):
    parse(**fields)


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"temperature": 0.7}, "temperature", "greedy"),
        ({"top_p": 0.9}, "top_p", "greedy"),
        ({"n": 2}, "n", "one answer"),
        ({"logprobs": True}, "logprobs", "probabilities"),
        ({"tools": []}, "tools", "not supported"),
        ({"stop": ["x"]}, "stop", "not supported"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": "5"}, "max_tokens", "integer"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"stream_options": {"include_usage": True}}, None, "needs `stream`"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, None, "differ"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": messages() * 2}, "messages", "at most 1"),
        ({"messages": [{"role": "system", "content": []}]}, "messages[0].role", "user"),
        ({"messages": [{"role": "user", "content": "What?"}]}, "messages[0].content", "image_url"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0]", "`content` has 0"),
        (
            {"messages": [{"role": "user", "content": messages()[0]["content"] + messages()[0]["content"]}]},
            "messages[0]",
            "`content` has 2",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x.png"}]}]},
            "messages[0].content[0].image_url",
            "object",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "", "detail": "low"}}]}
                ]
            },
            "messages[0].content[0].image_url",
            "auto",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]", "text"),
    ],
)
def test_anything_else_is_refused_with_the_field_and_a_reason(fields, param, reason):
    error = refusal(parse, **fields)
    assert (error.status, error.param) == (400, param)
    assert reason in str(error)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'"x"', b"[" * 100_000, b'{"messages": "\\ud800"}'])
def test_a_body_that_is_no_json_object_is_refused(body):
    assert refusal(parse_chat, body).status == 400


def test_the_task_is_the_only_one_or_must_be_named():
    several = {"vqa": 8, "chart": 16}
    assert chosen_task(parse(), "fake", {"vqa": 8}) == "vqa"
    assert chosen_task(parse(task="chart"), "fake", several) == "chart"
    assert "chart, vqa" in str(refusal(chosen_task, parse(), "fake", several))
    assert "'maps' is unknown" in str(refusal(chosen_task, parse(task="maps"), "fake", several))


def test_another_model_is_not_found():
    error = refusal(chosen_task, parse(model="gpt-9"), "fake", {"vqa": 8})
    assert (error.status, error.code) == (404, "model_not_found")
    assert chosen_task(parse(model=None), "fake", {"vqa": 8}) == "vqa"


def test_the_header_precedes_the_body_which_precedes_the_slo_headers_and_the_default():
    slo = {"x-llm-d-slo-ttft-ms": "100", "x-llm-d-slo-tpot-ms": "2.5"}
    header = {"x-knobctl-budget-ms": "25"}
    assert budget({**header, **slo}, 30.0, 40.0) == 25
    assert budget(slo, 30.0, 40.0) == 30
    assert budget(slo, None, 40.0) == 100 + 2.5 * 4  # five tokens
    assert budget({}, None, 40.0) == 40


@pytest.mark.parametrize("value", ["", "abc", "-5", "nan", "inf", "1e3", "1_000", "25ms", "0x10", "\u0661"])
def test_a_budget_header_is_a_plain_number(value):
    assert refusal(budget, {"x-knobctl-budget-ms": value}).param == "x-knobctl-budget-ms"


@pytest.mark.parametrize("value", [0.0, 0.5, -1.0, 3_600_001.0, float("inf"), float("nan")])
def test_a_budget_is_in_range(value):
    assert refusal(budget, {}, value).code == "invalid_budget"


def test_half_an_slo_two_headers_or_no_budget_are_refused():
    assert refusal(budget, {"x-llm-d-slo-ttft-ms": "100"}, None, 40.0).param == "x-llm-d-slo-tpot-ms"
    assert refusal(budget, {"x-llm-d-slo-tpot-ms": "100"}, None, 40.0).param == "x-llm-d-slo-ttft-ms"
    assert "one number" in str(refusal(budget, [("x-knobctl-budget-ms", "25"), ("x-knobctl-budget-ms", "30")]))
    assert "x-knobctl-budget-ms" in str(refusal(budget, {}))
