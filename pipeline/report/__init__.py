"""The report: from the evaluations that params.yaml names to report/index.md, its pictures and its table in the terminal."""
