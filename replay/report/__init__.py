"""Reports for people. `tables.py` and `live_tables.py` render one for a terminal, `page/` as an HTML page.

`figures/` turns an evaluation into the numbers of each figure, `drawing/` draws them, `gallery.py` lists both. Nothing
else in `replay` imports this package, `rich`, matplotlib or Jinja2.
"""
