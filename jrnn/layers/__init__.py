"""Layers that combine layers: `Stack` and `Bidirectional`."""

from jrnn.layer import Layer
from jrnn.layers.bidirectional import Bidirectional as Bidirectional
from jrnn.layers.bidirectional import BidirectionalParams as BidirectionalParams
from jrnn.layers.stack import Stack as Stack

bidirectional = Bidirectional
stack = Stack

REGISTRY: dict[str, type[Layer]] = {"stack": Stack, "bidirectional": Bidirectional}
"""Maps the names that configs use to layers."""
