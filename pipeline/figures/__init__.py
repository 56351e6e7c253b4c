"""The figures of the methods' papers, made from trained runs: one file for each paper, all of them named in table.py.

An edit here draws the figures anew, nothing else. canvas.py alone imports matplotlib. It imports report (how Markdown is written)
and what is below.
"""
