"""The figures of the methods' papers, made from trained runs: one file for each paper, all of them named in table.py."""

# What params.yaml's section `figures` may name; table.py says what each is. Here, for reading settings needs no torch.
NAMES = (
    "class-weights", "messages", "rates", "attention", "relations", "dependencies", "body-edge", "flow", "crfs", "compatibility",
)  # fmt: skip
