"""The command: `python -m jrnn.bench.gpu_check`."""

import argparse
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Set before JAX initializes its backend, because PyTorch needs GPU memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from jrnn.bench.gpu_check import correctness, results, speed, tables
from jrnn.bench.gpu_check.compilation import Deadline, DeadlineExceeded
from jrnn.bench.gpu_check.plan import FULL, LAYERS, TINY, Plan

GPU_RESULTS_DIR = Path(__file__).parents[3] / "docs" / "benchmarks" / "gpu"

CORRECTNESS_FRACTION = 0.45
"""The fraction of the time limit for the comparison of values and gradients."""


def main(args: list[str] | None = None) -> int:
    """Runs the command.

    Returns:
      The exit code: 1 if an engine of jrnn fails or gives wrong results, otherwise 0.

    Raises:
      SystemExit: with code 2 if an argument is invalid, or JAX found no GPU.
    """
    parser = argparse.ArgumentParser(
        prog="gpu_check", description="Checks and times the engines of jrnn on a GPU."
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="path of the JSON file; by default docs/benchmarks/gpu/DEVICE.json, with --tiny "
        "build/gpu-check.json",
    )
    parser.add_argument(
        "--budget", type=float, default=340.0, help="time limit in seconds (default: %(default)s)"
    )
    parser.add_argument("--tiny", action="store_true", help="run small cases, also on a CPU")
    options = parser.parse_args(args)
    if jax.default_backend() == "cpu" and not options.tiny:
        parser.error("JAX found no GPU; pass --tiny to run on a CPU")
    out = options.out or _default_out(options.tiny)
    result = run(TINY if options.tiny else FULL, out, Deadline(options.budget))
    print(f"\n{tables.render(result)}\n\nwritten to {out}")
    return 1 if failures(result) else 0


def _default_out(tiny: bool) -> Path:
    device = re.sub("[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower()).strip("-")
    return Path("build/gpu-check.json") if tiny else GPU_RESULTS_DIR / f"{device}.json"


def run(
    plan: Plan,
    out: Path,
    deadline: Deadline,
    reference_fn: correctness.Reference = correctness.reference,
) -> dict[str, Any]:
    """Checks and times the cells of a plan; writes and returns the results.

    Args:
      plan: the cells and sizes.
      out: path of the JSON file, which is written after each row.
      deadline: when to stop.
      reference_fn: computes the expected values and gradients.
    """
    result: dict[str, Any] = results.describe_environment() | {"plan": asdict(plan)}
    result |= {"correctness": [], "speed": []}
    makers = {name: LAYERS[name] for name in plan.checked_layers}
    correctness_deadline = Deadline(CORRECTNESS_FRACTION * deadline.remaining())
    for row in correctness.check_layers(
        makers, plan.checked_shape, correctness_deadline, reference_fn
    ):
        result["correctness"].append(row)
        print(f"{deadline.remaining():4.0f} s left: {row['cell']} {row['engine']} {row['status']}")
        results.save(result, out)
    for suite in speed.suites(plan):
        print(f"{deadline.remaining():4.0f} s left: {suite.title}", flush=True)
        for group in speed.measure(suite, plan.seconds, deadline):
            result["speed"].append(group)
            results.save(result, out)
    return result


def failures(result: dict[str, Any]) -> list[str]:
    """Returns a line for each engine of jrnn that fails or gives wrong results.

    Failures of CUDA graphs and missed deadlines are excluded.
    """
    incorrect = [
        f"{row['cell']} {row['engine']}: {row['reason']}"
        for row in result["correctness"]
        if row["status"] in ("mismatch", "error")
    ]
    failed = [
        f"{group['cell']} {missing['name']}: {missing['reason']}"
        for group in result["speed"]
        for missing in group["missing"]
        if missing["name"].startswith("jrnn")
        and missing["kind"] != DeadlineExceeded.__name__
        and not group["cuda_graphs"]
    ]
    return incorrect + failed


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # does not wait for compilations in background threads
