"""`metrics.jsonl`: one line of JSON for each look at a run."""

import json
import os
from pathlib import Path


class MetricsFile:
    """Lines such as `{"step": 20, "split": "train", "loss": 2.3, "metric": 0.1}`, only appended."""

    def __init__(self, path: Path):
        """Uses the file at `path`, in a folder that is made if need be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, split: str, lines: dict[int, dict[str, float]]) -> None:
        """Appends lines, by their steps."""
        text = [json.dumps({"step": step, "split": split, **lines[step]}) + "\n" for step in lines]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(text))

    def lines(self) -> int:
        """How many whole lines there are."""
        return self._path.read_bytes().count(b"\n") if self._path.exists() else 0

    def size(self) -> int:
        """Bytes so far, once they are on the disk."""
        if not self._path.exists():
            return 0
        with self._path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def cut(self, size: int) -> None:
        """Takes away what was written after the file had `size` bytes.

        Raises:
          ValueError: the file has fewer bytes than that.
        """
        found = self._path.stat().st_size if self._path.exists() else 0
        if found < size:
            raise ValueError(
                f"{self._path} has {found} bytes, and had {size} when the run was saved: lines are "
                "missing; restore it from a copy"
            )
        if found > size:
            os.truncate(self._path, size)

    def read(self, split: str, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one curve."""
        lines = [json.loads(line) for line in self._path.read_text("utf-8").splitlines()]
        chosen = [line for line in lines if line["split"] == split]
        return [line["step"] for line in chosen], [line[name] for line in chosen]
