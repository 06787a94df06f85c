"""The command `jrnn`."""

from jrnn.cli.main import main as main
