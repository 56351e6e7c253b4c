"""Where it runs: each module has `launch(work, config)`, which blocks until the work is done."""
