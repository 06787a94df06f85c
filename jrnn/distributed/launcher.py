"""Settings of a multi-process run, from flags or the environment variables of a launcher."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FLAG_VARIABLES = {
    "coordinator-address": "JAX_COORDINATOR_ADDRESS",
    "num-processes": "JAX_NUM_PROCESSES",
    "process-id": "JAX_PROCESS_ID",
}
"""The environment variable for each flag."""
DETECTION_FLAG = "cluster-detection-method"
NUM_SLURM_PORTS = 2**12
"""A SLURM job uses one of this many ports below 65536, chosen by the id of the job."""


@dataclass(frozen=True)
class Launcher:
    """The address of the coordinator, and the position of this process among all processes.

    Args:
      host: host name of process 0, the coordinator.
      port: a free port on that host.
      num_processes: number of processes on all machines.
      process_id: index of this process, from 0 to `num_processes` - 1.
      local_device_id: index of the local accelerator that this process uses; None means all.

    Raises:
      ValueError: `process_id` or `port` is out of range.
    """

    host: str
    port: int
    num_processes: int
    process_id: int
    local_device_id: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"processes: process-id must be from 0 to {self.num_processes - 1} for "
                f"{self.num_processes} processes, got {self.process_id}"
            )
        if not 0 < self.port < 2**16:
            raise ValueError(f"processes: port must be from 1 to 65535, got {self.port}")

    @classmethod
    def find(cls, flags: Mapping[str, str], environ: Mapping[str, str]) -> "Launcher | None":
        """Reads flags, or the environment variables of JAX, of torchrun, or of SLURM.

        If a flag or a variable of JAX sets the number of processes or the index of this one, the
        variables of torchrun and SLURM are ignored. Otherwise a coordinator address of a flag or a
        variable of JAX replaces that of torchrun or SLURM.

        Args:
          flags: values of "coordinator-address", in the form "host:port", "num-processes" and
            "process-id". The variables in `FLAG_VARIABLES` replace missing flags. Alternatively,
            "cluster-detection-method", a method of `jax.distributed.initialize` such as "ompi",
            "mpi4py" or "k8s", which reads the environment of this process; all other flags are
            then ignored.
          environ: the environment variables of this process.

        Returns:
          The launcher; None for a single process.

        Raises:
          ValueError: a value is missing or invalid.
        """
        if DETECTION_FLAG in flags:
            return _detect(flags[DETECTION_FLAG])
        explicit = {flag: environ[key] for flag, key in FLAG_VARIABLES.items() if key in environ}
        explicit |= flags
        has_indices = explicit.keys() & {"num-processes", "process-id"}
        options = (
            explicit
            if has_indices
            else {**(_read_torchrun(environ) or _read_slurm(environ)), **explicit}
        )
        if not options or options.get("num-processes") == "1":
            return None
        if missing := [flag for flag in FLAG_VARIABLES if flag not in options]:
            present = ", ".join(
                f"{flag}={options[flag]}" for flag in FLAG_VARIABLES if flag in options
            )
            absent = ", ".join(f"--{flag} ({FLAG_VARIABLES[flag]})" for flag in missing)
            raise ValueError(
                f"processes: all three flags must be set, got {present} without {absent}; set all "
                "three, or none for a single process"
            )
        host, port = _parse_address(options["coordinator-address"])
        num_processes = _parse_int("num-processes", options["num-processes"])
        process_id = _parse_int("process-id", options["process-id"])
        device = options.get("local-device-id")
        local_device_id = None if device is None else _parse_int("local-device-id", device)
        return cls(host, port, num_processes, process_id, local_device_id)


def _detect(method: str) -> Launcher | None:
    """Returns the launcher that JAX detects; None for a single process.

    Raises:
      ValueError: JAX does not have the method, or it does not find its cluster.
    """
    # The methods of jax.distributed.initialize. A change of this private module of JAX must only
    # affect runs that use it.
    from jax._src.clusters import ClusterEnv, K8sCluster

    clusters = {cluster.name: cluster for cluster in ClusterEnv._cluster_types if cluster.name}
    clusters["k8s"] = K8sCluster  # JAX 0.10 does not name this class
    advice = "set --coordinator-address, --num-processes and --process-id instead"
    if method not in clusters:
        raise ValueError(
            f"processes: {DETECTION_FLAG} must be one of {', '.join(clusters)}, got {method!r}; "
            f"{advice}"
        )
    cluster = clusters[method]
    if not cluster.is_env_present():
        raise ValueError(
            f"processes: {DETECTION_FLAG} must be the method of a cluster that started this "
            f"process, got {method!r}, which JAX does not detect; {advice}"
        )
    num_processes = cluster.get_process_count()
    if num_processes == 1:
        return None
    host, port = _parse_address(cluster.get_coordinator_address(300, None))
    local_device_id = cluster.get_local_process_id()
    return Launcher(host, port, num_processes, cluster.get_process_id(), local_device_id)


def _parse_address(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"\[?([^\[\]]+?)\]?:(\d+)", text)
    if match is None:
        raise ValueError(
            f"processes: coordinator-address must be the host and a free port of process 0, such "
            f"as node1:9876, got {text!r}"
        )
    return match[1], int(match[2])


def _parse_int(name: str, text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f"processes: {name} must be a non-negative int, got {text!r}")
    return int(text)


def _read_torchrun(environ: Mapping[str, str]) -> dict[str, str]:
    """Reads the variables of torchrun and similar launchers; returns {} if they are not set."""
    if environ.get("WORLD_SIZE", "1") == "1":
        return {}
    names = {"num-processes": "WORLD_SIZE", "process-id": "RANK"}
    options = {name: environ[key] for name, key in names.items() if key in environ}
    if "MASTER_ADDR" in environ and "MASTER_PORT" in environ:
        port = _parse_int("MASTER_PORT", environ["MASTER_PORT"])
        # The agent of torchrun may itself listen on that port.
        port += environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        options["coordinator-address"] = f"{environ['MASTER_ADDR']}:{port}"
    is_shared_node = environ.get("LOCAL_WORLD_SIZE", "1") != "1"
    return options | _choose_device(environ, is_shared_node, environ.get("LOCAL_RANK"))


def _read_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """Reads the variables of `srun`; returns {} for one task, as in the batch script of a job."""
    if environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return {}
    names = {"num-processes": "SLURM_STEP_NUM_TASKS", "process-id": "SLURM_PROCID"}
    options = {name: environ[key] for name, key in names.items() if key in environ}
    if "SLURM_STEP_NODELIST" in environ and "SLURM_JOB_ID" in environ:
        # Matches the first node of a list such as node1,node2 or node[001-004,007],other.
        first = re.match(r"([^\[,]+)(?:\[(\w+))?", environ["SLURM_STEP_NODELIST"])
        job_id = _parse_int("SLURM_JOB_ID", environ["SLURM_JOB_ID"])
        host = "".join(part or "" for part in first.groups()) if first else "localhost"
        port = 2**16 - NUM_SLURM_PORTS + job_id % NUM_SLURM_PORTS
        options["coordinator-address"] = f"{host}:{port}"
    is_shared_node = any(
        int(tasks) > 1
        for tasks in re.findall(r"(\d+)(?:\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    )
    return options | _choose_device(environ, is_shared_node, environ.get("SLURM_LOCALID"))


def _choose_device(
    environ: Mapping[str, str], is_shared_node: bool, local_rank: str | None
) -> dict[str, Any]:
    """Assigns one accelerator to each process of a node, unless the launcher has assigned it."""
    is_assigned = environ.get("CUDA_VISIBLE_DEVICES", ",").count(",") == 0
    if local_rank is None or not is_shared_node or is_assigned:
        return {}
    return {"local-device-id": local_rank}
