"""Sends generated requests to the server with a fake engine: python benchmarks/serve_fuzz.py

Prints how often each status came back. Ends with an error, and the smallest request that causes it, if a request gets a
500 or a malformed reply.
"""

from __future__ import annotations

import json
import time

import click

from knobctl.tests.support.hostile_requests import send_hostile_requests


@click.command()
@click.option("--cases", type=click.IntRange(1), default=20_000, show_default=True)
def main(cases: int) -> None:
    start_s = time.perf_counter()
    statuses = send_hostile_requests(cases)
    print(json.dumps({"cases": sum(statuses.values()), "statuses": dict(sorted(statuses.items()))}))
    print(f"{time.perf_counter() - start_s:.0f} s")


if __name__ == "__main__":
    main()
