"""The environment of a run, and its JSON file."""

import json
import subprocess
from pathlib import Path
from typing import Any

import jax

import jrnn
from jrnn import files
from jrnn.bench import machine

ROOT = Path(__file__).parents[3]


def describe_environment() -> dict[str, Any]:
    """Describes the machine, the versions of libraries and drivers, and the Git commit.

    A value is None if it is not available.
    """
    return {
        "jrnn": jrnn.__version__,
        "commit": _command_output(
            "git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"
        ),
        "machine": machine.describe(),
        "platform_version": jax.devices()[0].client.platform_version,
        "driver": _command_output(
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit",
            "--format=csv",
        ),
        "versions": machine.versions(),
        "torch": _torch_versions(),
        "compilation_threads": machine.cores(),
    }


def _command_output(*command: str) -> str | None:
    """Returns the output of a command; None if the command does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _torch_versions() -> dict[str, Any] | None:
    """Describes CUDA and cuDNN in PyTorch; None if PyTorch is not installed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    cudnn = torch.backends.cudnn
    return {"cuda": torch.version.cuda, "cudnn": cudnn.version(), "cudnn_tf32": cudnn.allow_tf32}


def save(result: dict[str, Any], out: Path) -> None:
    """Writes the JSON file atomically, so that a killed run leaves the old or the new file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(out, json.dumps(result, indent=1) + "\n")
