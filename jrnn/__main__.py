"""`python -m jrnn`: the command, where the script is not on the path."""

from jrnn.cli import main

main()
