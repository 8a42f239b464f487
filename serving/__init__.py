"""Answering: one request, from pixels to text, within a latency budget.

`answer.py` states what an engine offers and what an answer contains; `engine.py` is that engine; `batch.py` answers the
requests of a JSONL file; `http/` serves an engine as an OpenAI-compatible HTTP server. May import `data`,
`controllers`, `devices`, and of `precompute` the folders `models`, `execution` and `latency`. Only commands, the
command line and the root package import it. Start with `answer.py`.
"""
