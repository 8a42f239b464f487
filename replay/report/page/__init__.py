"""One self-contained HTML page about a cache and its controllers. Start with `write.py`.

`page.html` is a Jinja2 template that escapes everything it is given; `page.css` and `page.js` are put into the page,
which loads nothing from elsewhere.
"""
