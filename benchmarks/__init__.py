"""Benchmarks against other ways to train the same network, on real data: `make bench`."""
