"""Timings of mora-kernels beside what people use today: `pytest benchmarks/ --benchmark`."""
