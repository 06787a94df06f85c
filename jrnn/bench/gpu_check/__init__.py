"""Checks jrnn on a GPU, and times it there.

Run it by `make gpu-check`, or from the root of the repository by::

    python -m jrnn.bench.gpu_check --out gpu.json

It needs JAX with CUDA, NumPy and flax, but neither jrnn installed nor a network; PyTorch takes part
where it is installed. First every cell is run by every engine that takes it, and its values and
gradients are compared with `scan` in float64 on the CPU (`agreement.py`). Then cells are timed
against flax, cuDNN called from JAX, and PyTorch (`speed.py`). Sizes are in `plan.py`. Whatever
fails is a row of the results with its reason, and the rest goes on. The JSON is written after each
row, so that a run that is stopped keeps what it has; a run ends by itself when `--budget` seconds
have passed. The exit code is 1 if an engine of jrnn is wrong or fails. `--tiny` runs the same on a
CPU in seconds: that is how the script is tested where there is no GPU.

Products are those of JAX and cuDNN by default, which on a GPU means TF32 for float32; only the
check asks for full precision. In bfloat16 all arrays are bfloat16, parameters included. Programs
are compiled many at once, so that `compile_seconds` are longer than they would be alone.
"""
