"""Small classic functions and classes, written out for `penstock-tiny` to learn from; `variants.py` multiplies them.

They are read as text and never called by the package; a test runs their doctests. `_v2`, `_v3` at the end of a name
mark another way to write the same function and are taken off. Every signature stands on one line.
"""
