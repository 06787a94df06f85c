"""The command: `python -m jrnn.bench.gpu_check`."""

import argparse
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Set before JAX creates its client: PyTorch needs GPU memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from jrnn.bench.gpu_check import agreement, record, speed, table
from jrnn.bench.gpu_check.compiling import Deadline, OutOfTime
from jrnn.bench.gpu_check.plan import FULL, LAYERS, TINY, Plan

RESULTS = Path(__file__).parents[3] / "docs" / "benchmarks" / "gpu"

CHECK_FRACTION = 0.45
"""The fraction of the time budget for the check of values and gradients."""


def main(args: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, help="the JSON to write")
    parser.add_argument("--budget", type=float, default=340.0, help="total seconds")
    parser.add_argument("--tiny", action="store_true", help="a few seconds on a CPU")
    options = parser.parse_args(args)
    if jax.default_backend() == "cpu" and not options.tiny:
        parser.error("JAX found no GPU; use --tiny on a CPU")
    out = options.out or _default_out()
    result = run(TINY if options.tiny else FULL, out, Deadline(options.budget))
    print(f"\n{table.text(result)}\n\nwritten to {out}")
    return 1 if failures(result) else 0


def _default_out() -> Path:
    device = re.sub("[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower()).strip("-")
    return Path("build/gpu-check.json") if device == "cpu" else RESULTS / f"{device}.json"


def run(
    plan: Plan,
    out: Path,
    deadline: Deadline,
    reference_fn: agreement.Reference = agreement.reference,
) -> dict[str, Any]:
    """Checks and times the cells of a plan, and writes the JSON file after each row.

    Args:
      plan: the cells and sizes.
      out: the JSON file.
      deadline: when to stop.
      reference_fn: computes the expected values and gradients.
    """
    result: dict[str, Any] = record.conditions() | {"plan": asdict(plan)}
    result |= {"agreement": [], "speed": []}
    makers = {name: LAYERS[name] for name in plan.checked}
    until = Deadline(CHECK_FRACTION * deadline.remaining())
    for row in agreement.check_cells(makers, plan.checked_shape, until, reference_fn):
        result["agreement"].append(row)
        print(f"{deadline.remaining():4.0f} s left: {row['cell']} {row['engine']} {row['status']}")
        record.save(result, out)
    for batch in speed.batches(plan):
        print(f"{deadline.remaining():4.0f} s left: {batch.title}", flush=True)
        for group in speed.measure(batch, plan.seconds, deadline):
            result["speed"].append(group)
            record.save(result, out)
    return result


def failures(result: dict[str, Any]) -> list[str]:
    """Describes the engines of jrnn that are wrong or fail, except for those in CUDA graphs."""
    wrong = [
        f"{row['cell']} {row['engine']}: {row['reason']}"
        for row in result["agreement"]
        if row["status"] in ("differs", "error")
    ]
    failed = [
        f"{group['cell']} {missing['name']}: {missing['reason']}"
        for group in result["speed"]
        for missing in group["missing"]
        if missing["name"].startswith("jrnn")
        and missing["kind"] != OutOfTime.__name__
        and not group["graphs"]
    ]
    return wrong + failed


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # does not wait for compilations in background threads
