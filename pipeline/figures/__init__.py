"""The figures of the methods' papers, made from trained runs: one file for each paper, all of them named in table.py."""
