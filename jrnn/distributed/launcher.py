"""The number of processes and the coordinator's address, from flags, SLURM or torchrun."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FLAG_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}
"""The environment variable that sets each flag."""
SLURM_PORTS = 2**12
"""Number of ports, the highest ones, that SLURM jobs are distributed over by their id."""


@dataclass(frozen=True)
class Launcher:
    """How one process of a run joins the others.

    Args:
      host: host name of process 0, the coordinator.
      port: a free port on that host.
      count: number of processes on all machines.
      index: index of this process, from 0.
      device: the local accelerator that this process uses; None means all.

    Raises:
      ValueError: the index or the port is out of range.
    """

    host: str
    port: int
    count: int
    index: int
    device: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"processes: process must be from 0 to {self.count - 1} for {self.count} "
                f"processes, got {self.index}"
            )
        if not 0 < self.port < 2**16:
            raise ValueError(f"processes: port must be from 1 to 65535, got {self.port}")

    @classmethod
    def find(cls, flags: Mapping[str, str], environ: Mapping[str, str]) -> "Launcher | None":
        """Reads flags, else the variables of JAX, of launchers like torchrun, or of SLURM.

        Args:
          flags: any of `coordinator` as "host:port", `processes` and `process`. The variables in
            `FLAG_VARIABLES` set those that are missing.
          environ: the environment of this process.

        Returns:
          The launcher; None for a single process.

        Raises:
          ValueError: a value is missing or invalid.
        """
        explicit = {flag: environ[key] for flag, key in FLAG_VARIABLES.items() if key in environ}
        explicit |= flags
        has_counts = explicit.keys() & {"processes", "process"}
        options = (
            explicit if has_counts else {**(_torchrun(environ) or _slurm(environ)), **explicit}
        )
        if not options or options.get("processes") == "1":
            return None
        if missing := [flag for flag in FLAG_VARIABLES if flag not in options]:
            present = ", ".join(
                f"{flag}={options[flag]}" for flag in FLAG_VARIABLES if flag in options
            )
            absent = ", ".join(f"--{flag} ({FLAG_VARIABLES[flag]})" for flag in missing)
            raise ValueError(
                f"processes: got {present} without {absent}; set all three, or none for a single "
                "process"
            )
        host, port = _parse_address(options["coordinator"])
        count, index = (_parse_int(flag, options[flag]) for flag in ("processes", "process"))
        device = options.get("device")
        device = None if device is None else _parse_int("device", device)
        return cls(host, port, count, index, device)


def _parse_address(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"\[?([^\[\]]+?)\]?:(\d+)", text)
    if match is None:
        raise ValueError(
            f"processes: coordinator must be the host and a free port of process 0, such as "
            f"node1:9876, got {text!r}"
        )
    return match[1], int(match[2])


def _parse_int(name: str, text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f"processes: {name} must be a non-negative int, got {text!r}")
    return int(text)


def _torchrun(environ: Mapping[str, str]) -> dict[str, str]:
    """The options of a launcher that sets the variables of PyTorch; empty without one."""
    if environ.get("WORLD_SIZE", "1") == "1":
        return {}
    names = {"processes": "WORLD_SIZE", "process": "RANK"}
    options = {name: environ[key] for name, key in names.items() if key in environ}
    if "MASTER_ADDR" in environ and "MASTER_PORT" in environ:
        port = _parse_int("MASTER_PORT", environ["MASTER_PORT"])
        # The launcher may listen on that port itself.
        port += environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        options["coordinator"] = f"{environ['MASTER_ADDR']}:{port}"
    is_shared = environ.get("LOCAL_WORLD_SIZE", "1") != "1"
    return options | _device(environ, is_shared, environ.get("LOCAL_RANK"))


def _slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """The options of a task of `srun`; empty without one, as in the batch script of a job."""
    if environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return {}
    names = {"processes": "SLURM_STEP_NUM_TASKS", "process": "SLURM_PROCID"}
    options = {name: environ[key] for name, key in names.items() if key in environ}
    if "SLURM_STEP_NODELIST" in environ and "SLURM_JOB_ID" in environ:
        # The first node of a list such as node1,node2 or node[001-004,007],other.
        first = re.match(r"([^\[,]+)(?:\[(\w+))?", environ["SLURM_STEP_NODELIST"])
        job = _parse_int("SLURM_JOB_ID", environ["SLURM_JOB_ID"])
        host = "".join(part or "" for part in first.groups()) if first else "localhost"
        options["coordinator"] = f"{host}:{2**16 - SLURM_PORTS + job % SLURM_PORTS}"
    is_shared = any(
        int(tasks) > 1
        for tasks in re.findall(r"(\d+)(?:\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    )
    return options | _device(environ, is_shared, environ.get("SLURM_LOCALID"))


def _device(environ: Mapping[str, str], is_shared: bool, local: str | None) -> dict[str, Any]:
    """One accelerator for each process of a shared machine, unless the launcher assigned them."""
    is_assigned = environ.get("CUDA_VISIBLE_DEVICES", ",").count(",") == 0
    return {} if local is None or not is_shared or is_assigned else {"device": local}
