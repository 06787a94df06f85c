"""Checks and times jrnn on a GPU.

Run `make gpu-check`, or from the root of the repository::

    python -m jrnn.bench.gpu_check --out gpu.json

It needs JAX with CUDA, NumPy and flax; jrnn need not be installed. PyTorch is timed if it is
installed. First, every engine runs every cell that it supports, and values and gradients are
compared with `scan` in float64 on the CPU (`agreement.py`). Then cells are timed against flax,
cuDNN called from JAX, and PyTorch (`speed.py`). Sizes are in `plan.py`. A failure is a row of the
results with its reason, and does not stop the run. The JSON file is written after each row, so that
an interrupted run keeps its results; a run stops after `--budget` seconds. The exit code is 1 if an
engine of jrnn is wrong or fails. `--tiny` runs the same on a CPU in seconds, for tests.

Matrix products have the default precision of JAX and cuDNN, which is TF32 for float32 on a GPU;
only the check uses full precision. In bfloat16 all arrays are bfloat16, including the parameters.
Many programs are compiled in parallel, so `compile_seconds` is larger than for a program that is
compiled alone.
"""
