"""Reports as text for a terminal. Start with `tables.py`; `live_tables.py` renders the live part.

Reads only what `EvaluationReport.to_dict` returns. Nothing else in `replay` imports this package or `rich`.
"""
