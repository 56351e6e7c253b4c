"""The report: one page, Markdown tables, charts and curves, from the results and records alone.

An edit here writes the report anew, nothing else. It imports evaluation (its records and pictures) and what is below.
"""
