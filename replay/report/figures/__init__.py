"""The figures of a report as numbers: one function per figure returns a frozen record. Drawing is in `../drawing`.

Start with `source.py`, what figures are made from. A function returns `Absent`, with the reason, if its data does not
exist; the page then says so.
"""
