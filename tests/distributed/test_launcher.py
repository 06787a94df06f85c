"""`Launcher.find`, with flags and with environment variables."""

import pytest

from jrnn.distributed import Launcher

TORCHRUN = {
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
}
SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "gpu[012-015,020],login",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
JAX = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "3",
    "JAX_PROCESS_ID": "0",
}
FLAGS = {"coordinator-address": "[fe80::1]:99", "num-processes": "2", "process-id": "1"}


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ({}, {}, None),
        ({}, JAX, Launcher("10.0.0.1", 1234, 3, 0)),
        (FLAGS, {}, Launcher("fe80::1", 99, 2, 1)),
        (FLAGS, JAX | TORCHRUN | SLURM, Launcher("fe80::1", 99, 2, 1)),
        ({"process-id": "2"}, JAX, Launcher("10.0.0.1", 1234, 3, 2)),
        ({}, TORCHRUN, Launcher("node7", 29500, 4, 3, 1)),
        ({}, TORCHRUN | SLURM, Launcher("node7", 29500, 4, 3, 1)),
        ({}, TORCHRUN | {"LOCAL_WORLD_SIZE": "1"}, Launcher("node7", 29500, 4, 3)),
        # torchrun itself listens on MASTER_PORT, and assigns an accelerator to each process.
        (
            {},
            TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True", "CUDA_VISIBLE_DEVICES": "3"},
            Launcher("node7", 29501, 4, 3),
        ),
        ({"coordinator-address": "other:7"}, TORCHRUN, Launcher("other", 7, 4, 3, 1)),
        ({}, SLURM, Launcher("gpu012", 61444, 8, 5, 1)),
        ({}, SLURM | {"SLURM_STEP_NODELIST": "a-1,b"}, Launcher("a-1", 61444, 8, 5, 1)),
        ({}, SLURM | {"SLURM_STEP_NODELIST": "c[7]"}, Launcher("c7", 61444, 8, 5, 1)),
        ({}, SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x8)"}, Launcher("gpu012", 61444, 8, 5)),
        # A single process: a batch script, one launched process, and explicit settings.
        ({}, SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({}, {"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({}, {"RANK": "1", "MASTER_ADDR": "stale"}, None),
        ({"num-processes": "1"}, SLURM, None),
        ({}, SLURM | {"JAX_NUM_PROCESSES": "1"}, None),
    ],
)
def test_find_reads_flags_and_environment(flags, environ, expected):
    assert Launcher.find(flags, environ) == expected


def test_find_uses_detection_methods_of_jax(monkeypatch):
    ompi = {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    }
    flags = {"cluster-detection-method": "ompi"}
    with pytest.raises(ValueError, match="got 'ompi', which JAX does not detect; set --coord"):
        Launcher.find(flags, {})
    for name, value in ompi.items():
        monkeypatch.setenv(name, value)
    assert Launcher.find(flags, {}) == Launcher(
        "10.96.0.1", 61440 + 1531576320 // 2**12 % 2**12, 4, 3, 1
    )
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    assert Launcher.find(flags, {}) is None  # `mpirun -n 1`
    with pytest.raises(ValueError, match="got 'k8s', which JAX does not detect; set --coord"):
        Launcher.find({"cluster-detection-method": "k8s"}, {})
    with pytest.raises(ValueError, match="must be one of ompi, .*, k8s, got 'pbs'"):
        Launcher.find({"cluster-detection-method": "pbs"}, {})


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        (
            {"process-id": "1"},
            {},
            "got process-id=1 without --coordinator.*--num-processes .*; set",
        ),
        ({"coordinator-address": "a:1"}, {}, "got coordinator-address=a:1 without --num-processes"),
        ({"num-processes": "2", "process-id": "0"}, TORCHRUN, "without .*JAX_COORDINATOR_ADDRESS"),
        ({}, {"WORLD_SIZE": "2"}, "got num-processes=2 without --coordinator-address"),
        ({}, {k: v for k, v in TORCHRUN.items() if k != "RANK"}, "without --process-id "),
        ({}, {k: v for k, v in SLURM.items() if k != "SLURM_JOB_ID"}, "without --coordinator-a"),
        (FLAGS | {"process-id": "2"}, {}, "process-id must be from 0 to 1 for 2 processes, got 2"),
        (FLAGS | {"process-id": "-1"}, {}, "process-id must be a non-negative int, got '-1'"),
        (
            FLAGS | {"num-processes": "two"},
            {},
            "num-processes must be a non-negative int, got 'two'",
        ),
        (FLAGS | {"num-processes": "0"}, {}, "process-id must be from 0"),
        (
            FLAGS | {"coordinator-address": "here"},
            {},
            "must be the host and a free port of process 0",
        ),
        (
            FLAGS | {"coordinator-address": ":9"},
            {},
            "must be the host and a free port of process 0",
        ),
        (FLAGS | {"coordinator-address": "a:99999"}, {}, "port must be from 1 to 65535, got 99999"),
        ({}, TORCHRUN | {"MASTER_PORT": "x"}, "MASTER_PORT must be a non-negative int, got 'x'"),
    ],
)
def test_missing_or_invalid_flags_and_variables_raise(flags, environ, message):
    with pytest.raises(ValueError, match=message):
        Launcher.find(flags, environ)
