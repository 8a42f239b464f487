"""No request makes the server fail: each gets an answer or one error in OpenAI's form."""

from __future__ import annotations

from knobctl.tests.support.hostile_requests import send_hostile_requests


def test_no_request_makes_the_server_fail():
    statuses = send_hostile_requests(500)
    assert sum(statuses.values()) >= 500
    assert {200, 400, 415, 429} <= set(statuses)  # not all are refused for the same reason
