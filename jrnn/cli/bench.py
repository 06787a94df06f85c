"""The command `jrnn bench`."""


def bench_command(args: list[str]) -> None:
    """Runs `jrnn bench`, `jrnn bench newton` or `jrnn bench train` with flags."""
    # Imported here, because the benchmarks import libraries that other commands do not need.
    if args and args[0] == "newton":
        from jrnn.bench import newton

        newton.main(args[1:])
    elif args and args[0] == "train":
        from jrnn.bench import training

        training.main(args[1:])
    else:
        from jrnn.bench import bench

        bench.main(args)
