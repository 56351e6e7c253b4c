"""What `benchmarks.methods` compares: a file for each method, each with its CASES."""
