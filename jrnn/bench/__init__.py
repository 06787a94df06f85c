"""The benchmarks of `jrnn bench`."""
