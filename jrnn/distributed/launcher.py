"""Where the processes of a run meet, by what the user or a launcher says."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAMES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}
"""Flags, and the variables that stand for them."""
SLURM_PORTS = 2**12


@dataclass(frozen=True)
class Launcher:
    """A process among those of a run.

    Args:
      host: the machine of process 0, where all of them meet.
      port: a free port there.
      count: processes, on all machines together.
      index: which of them this one is, from 0.
      device: which accelerator of its machine it takes; None means all of them.

    Raises:
      ValueError: the index is not below the count, or the port is none.
    """

    host: str
    port: int
    count: int
    index: int
    device: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"processes: process must be from 0 to {self.count - 1}, of {self.count} "
                f"processes, got {self.index}"
            )
        if not 0 < self.port < 2**16:
            raise ValueError(f"processes: a port is from 1 to 65535, got {self.port}")

    @classmethod
    def find(cls, given: Mapping[str, str], environ: Mapping[str, str]) -> "Launcher | None":
        """What flags say, or the variables of JAX, of a launcher like torchrun, or of SLURM.

        Args:
          given: `coordinator` as "host:port", `processes` and `process`, or some of these; those of
            the environment, by the names in `NAMES`, stand for the others.
          environ: the environment of this process.

        Returns:
          The launcher; None for a single process.

        Raises:
          ValueError: some of it is said and some is not, or it makes no sense.
        """
        said = {name: environ[key] for name, key in NAMES.items() if key in environ} | dict(given)
        numbered = said.keys() & {"processes", "process"}
        found = said if numbered else {**(_torchrun(environ) or _slurm(environ)), **said}
        if not found or found.get("processes") == "1":
            return None
        if missing := [name for name in NAMES if name not in found]:
            known = ", ".join(f"{name}={found[name]}" for name in NAMES if name in found)
            named = ", ".join(f"--{name} ({NAMES[name]})" for name in missing)
            raise ValueError(
                f"processes: {known} is said, and {named} is not; give all three, or none for a "
                "single process"
            )
        host, port = _address(found["coordinator"])
        count, index = (_number(name, found[name]) for name in ("processes", "process"))
        device = found.get("device")
        return cls(host, port, count, index, None if device is None else _number("device", device))


def _address(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"\[?([^\[\]]+?)\]?:(\d+)", text)
    if found is None:
        raise ValueError(
            f"processes: coordinator must be the host and a free port of process 0, such as "
            f"node1:9876, got {text!r}"
        )
    return found[1], int(found[2])


def _number(name: str, text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f"processes: {name} must be a whole number, got {text!r}")
    return int(text)


def _torchrun(environ: Mapping[str, str]) -> dict[str, str]:
    """Of launchers that set what PyTorch reads."""
    if environ.get("WORLD_SIZE", "1") == "1":
        return {}
    names = {"processes": "WORLD_SIZE", "process": "RANK"}
    found = {name: environ[key] for name, key in names.items() if key in environ}
    if "MASTER_ADDR" in environ and "MASTER_PORT" in environ:
        port = _number("MASTER_PORT", environ["MASTER_PORT"])
        # The launcher may listen on that port itself.
        port += environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        found["coordinator"] = f"{environ['MASTER_ADDR']}:{port}"
    shared = environ.get("LOCAL_WORLD_SIZE", "1") != "1"
    return found | _device(environ, shared, environ.get("LOCAL_RANK"))


def _slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """Of the tasks that one `srun` has started; a job's script itself is none of these."""
    if environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return {}
    names = {"processes": "SLURM_STEP_NUM_TASKS", "process": "SLURM_PROCID"}
    found = {name: environ[key] for name, key in names.items() if key in environ}
    if "SLURM_STEP_NODELIST" in environ and "SLURM_JOB_ID" in environ:
        # As in node1,node2 or node[001-004,007],other: the first of them.
        first = re.match(r"([^\[,]+)(?:\[(\w+))?", environ["SLURM_STEP_NODELIST"])
        job = _number("SLURM_JOB_ID", environ["SLURM_JOB_ID"])
        host = "".join(part or "" for part in first.groups()) if first else "localhost"
        found["coordinator"] = f"{host}:{2**16 - SLURM_PORTS + job % SLURM_PORTS}"
    shared = any(
        int(tasks) > 1
        for tasks in re.findall(r"(\d+)(?:\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    )
    return found | _device(environ, shared, environ.get("SLURM_LOCALID"))


def _device(environ: Mapping[str, str], shared: bool, local: str | None) -> dict[str, Any]:
    """One accelerator for each process of a machine, unless the launcher has seen to that."""
    seen_to = environ.get("CUDA_VISIBLE_DEVICES", ",").count(",") == 0
    return {} if local is None or not shared or seen_to else {"device": local}
