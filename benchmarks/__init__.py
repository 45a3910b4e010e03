"""Measurements: each command runs everything it compares in one run, and writes JSON and a table to `benchmarks/results/`."""
