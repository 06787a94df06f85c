"""Checks and times jrnn on a GPU.

Run `make gpu-check`, or from the root of the repository::

    python -m jrnn.bench.gpu_check --out gpu.json

It requires JAX with CUDA, NumPy and flax; jrnn need not be installed. PyTorch is timed if it is
installed.

1. `correctness.py` runs every cell on the engines `scan`, `fused`, `associative` and `newton`, if
   they support it, and compares values and gradients with `scan` in float64 on the CPU.
2. `speed.py` times cells against flax, PyTorch, and cuDNN called from JAX.

`plan.py` lists the cells and sizes. A failure does not stop the run; the results state its reason.
The JSON file is written after each row, so an interrupted run keeps its results. No check or timing
starts after `--budget` seconds. The exit code is 1 if an engine of jrnn fails or gives wrong
results, except with CUDA graphs. `--tiny` runs small cases, also on a CPU, for tests.

Timed matrix products have the default precision of JAX and cuDNN, which is TF32 for float32 on a
GPU; the comparison with float64 uses full precision. In bfloat16 all arrays are bfloat16, including
the parameters. Programs are compiled in parallel, so `compile_seconds` is larger than it is for a
program that is compiled alone.
"""
