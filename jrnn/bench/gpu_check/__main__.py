"""The command: `python -m jrnn.bench.gpu_check`."""

import argparse
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Read when JAX makes its client: PyTorch needs a part of the memory of the GPU too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from jrnn.bench.gpu_check import agreement, record, speed, table
from jrnn.bench.gpu_check.compiling import Deadline, OutOfTime
from jrnn.bench.gpu_check.plan import FULL, SUBJECTS, TINY, Plan

RESULTS = Path(__file__).parents[3] / "docs" / "benchmarks" / "gpu"

CHECKING = 0.45
"""The part of the time that the check of values and gradients may take."""


def main(args: list[str] | None = None) -> int:
    """Runs what the arguments ask for; the exit code."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, help="the JSON to write")
    parser.add_argument("--budget", type=float, default=340.0, help="seconds for all of it")
    parser.add_argument("--tiny", action="store_true", help="a few seconds on a CPU")
    options = parser.parse_args(args)
    if jax.default_backend() == "cpu" and not options.tiny:
        parser.error("JAX sees no GPU here; on a CPU there is --tiny")
    out = options.out or _default_out()
    result = run(TINY if options.tiny else FULL, out, Deadline(options.budget))
    print(f"\n{table.text(result)}\n\nwritten to {out}")
    return 1 if faults(result) else 0


def _default_out() -> Path:
    device = re.sub("[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower()).strip("-")
    return Path("build/gpu-check.json") if device == "cpu" else RESULTS / f"{device}.json"


def run(
    plan: Plan, out: Path, deadline: Deadline, truth: agreement.Reference = agreement.reference
) -> dict[str, Any]:
    """Checks and times what a plan says, and writes the JSON after each row.

    Args:
      plan: what to do.
      out: the file.
      deadline: when to stop.
      truth: what values and gradients are compared with.
    """
    result: dict[str, Any] = record.conditions() | {"plan": asdict(plan)}
    result |= {"agreement": [], "speed": []}
    makers = {name: SUBJECTS[name] for name in plan.checked}
    until = Deadline(CHECKING * deadline.left())
    for row in agreement.check(makers, plan.checked_shape, until, truth):
        result["agreement"].append(row)
        print(f"{deadline.left():4.0f} s left: {row['cell']} {row['engine']} {row['status']}")
        record.save(result, out)
    for batch in speed.batches(plan):
        print(f"{deadline.left():4.0f} s left: {batch.title}", flush=True)
        for group in speed.measure(batch, plan.seconds, deadline):
            result["speed"].append(group)
            record.save(result, out)
    return result


def faults(result: dict[str, Any]) -> list[str]:
    """Engines of jrnn that are wrong, or fail; CUDA graphs do not count."""
    wrong = [
        f"{row['cell']} {row['engine']}: {row['reason']}"
        for row in result["agreement"]
        if row["status"] in ("differs", "error")
    ]
    failed = [
        f"{group['cell']} {absent['name']}: {absent['reason']}"
        for group in result["speed"]
        for absent in group["missing"]
        if absent["name"].startswith("jrnn")
        and absent["kind"] != OutOfTime.__name__
        and not group["graphs"]
    ]
    return wrong + failed


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without waiting for what is still being compiled in the background
