"""PPO with and without memory on the T-maze.

    python -m experiments.rl.run                # about two minutes on two cores
    python -m experiments.rl.run --updates 20

The seeds of a policy are trained in one compilation, by `jax.vmap`. The study writes a JSON file
and a figure to `--out`, by default `experiments/rl/results`.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import jrnn
from experiments.rl.ppo import Config, Policy, train
from jrnn.plotting import new_figure

HERE = Path(__file__).parent
POLICIES = {
    "LSTM": Policy(jrnn.LSTM(32)),
    "GRU": Policy(jrnn.GRU(32)),
    "minGRU": Policy(jrnn.MinGRU(32)),
    "no memory": Policy(None),
}


@dataclass(frozen=True)
class Options:
    """Trains the policies, prints a table, and writes the results and a figure.

    Args:
      config: hyper-parameters.
      seeds: number of seeds.
      out: the folder of the results.
    """

    config: tyro.conf.OmitArgPrefixes[Config] = field(default_factory=Config)
    seeds: int = 5
    out: Path = HERE / "results"


def main(args: list[str] | None = None) -> None:
    """Runs the study."""
    options = tyro.cli(Options, args=args)
    results: dict[str, Any] = {"config": asdict(options.config), "policies": {}}
    for name, policy in POLICIES.items():
        keys = jax.random.split(jax.random.key(0), options.seeds)
        start = time.perf_counter()
        run = jax.jit(jax.vmap(lambda key, policy=policy: train(policy, options.config, key)))
        metrics = {name: np.asarray(value) for name, value in run(keys).items()}
        seconds = time.perf_counter() - start
        final = metrics["success"][:, -10:].mean(axis=1)
        print(f"{name:10} {seconds:6.1f} s   success of each seed: {np.round(final, 3)}")
        results["policies"][name] = {
            "seconds": seconds,
            "final": final.tolist(),
            "success": metrics["success"].tolist(),
        }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rl.json").write_text(json.dumps(results), "utf-8")
    draw(results, options.out / "rl.png")


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws the fraction of successful episodes over the updates."""
    figure = new_figure(4.5, 3.0)
    ax = figure.subplots()
    for number, (name, row) in enumerate(results["policies"].items()):
        success = np.array(row["success"])
        color = f"C{number}"
        ax.plot(success.T, color=color, lw=0.6, alpha=0.4)
        ax.plot(success.mean(axis=0), color=color, lw=1.6, label=name)
    length = results["config"]["length"]
    ax.set(xlabel="update", ylabel="episodes at the goal", ylim=(0, 1.02))
    ax.set_title(f"PPO on the T-maze of length {length}")
    ax.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
