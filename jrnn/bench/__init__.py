"""Benchmarks: the command `jrnn bench`, and the GPU checks of `make gpu-check`."""
