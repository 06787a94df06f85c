"""`metrics.jsonl`: one line of JSON for each look at a run."""

import json
from pathlib import Path


class MetricsFile:
    """Lines such as `{"step": 20, "split": "train", "loss": 2.3, "metric": 0.1}`, only appended."""

    def __init__(self, path: Path):
        """Uses the file at `path`, in a folder that is made if need be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Appends one line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "split": split, **values}) + "\n")

    def read(self, split: str, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one curve."""
        lines = [json.loads(line) for line in self._path.read_text("utf-8").splitlines()]
        chosen = [line for line in lines if line["split"] == split]
        return [line["step"] for line in chosen], [line[name] for line in chosen]
