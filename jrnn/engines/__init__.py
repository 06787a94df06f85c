"""Engines: different algorithms that run a cell over time, with the same values and gradients."""

from jrnn.engines.associative import Associative as Associative
from jrnn.engines.engine import Engine as Engine
from jrnn.engines.fused import Fused as Fused
from jrnn.engines.native import Native as Native
from jrnn.engines.newton import Newton as Newton
from jrnn.engines.newton import Solution as Solution
from jrnn.engines.newton import newton as newton
from jrnn.engines.newton_iteration import NewtonStatus as NewtonStatus
from jrnn.engines.scan import Scan as Scan
from jrnn.engines.sharded import Sharded as Sharded
from jrnn.engines.unroll import REGISTRY as REGISTRY
from jrnn.engines.unroll import choose_engine as choose_engine
from jrnn.engines.unroll import unroll as unroll
from jrnn.engines.unroll import unroll_inputs as unroll_inputs
from jrnn.masking import reverse_resets as reverse_resets
from jrnn.masking import segment_resets as segment_resets
