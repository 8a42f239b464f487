"""An OpenAI-compatible HTTP server for one engine. Needs the extra `serve`.

A request passes `app.py` (routes), `limits.py` (size and time of the body), `chat.py` (fields), `budget.py`,
`image_source.py`, `request_queue.py` (earliest deadline first, one request at a time on the model) and
`completion.py` (the reply). `server.py` runs it and drains it at SIGTERM. Start with `app.py`.
"""
