"""The Python code of Markdown pages.

    python -m tests.code_blocks build/code_blocks

writes the code of each page to a file of its own, which `make lint` checks with pyright.
"""

import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def read_code(page: Path) -> str:
    """Returns the code of all blocks of a page, as one program."""
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```", page.read_text("utf-8"), re.M | re.S)
    return "\n".join(textwrap.dedent(block) for _, block in blocks)


def main(folder: str) -> None:
    """Writes the code of each page that has any to a file in a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        if code := read_code(page):
            name = "_".join(page.relative_to(ROOT).with_suffix("").parts)
            (Path(folder) / f"{name}.py").write_text(code, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
