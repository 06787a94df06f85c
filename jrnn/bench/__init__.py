"""The benchmark of recurrent layers that `jrnn bench` runs."""
