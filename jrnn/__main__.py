"""Runs the command `jrnn` as `python -m jrnn`."""

from jrnn.cli import main

main()
