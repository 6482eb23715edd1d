"""A chapter as a script: its cells, one after the other, in a process of its own. `python -m tests.book.run_cells 02-rank`."""

import os
import subprocess
import sys

from tests.book.test_cells import ROOT, cells


def run_cells(name: str, replacements: tuple[tuple[str, str], ...] = (), **options) -> subprocess.CompletedProcess[str]:
    """Run a chapter's cells, with texts replaced in them; each text has to be there."""
    code = "\n\n".join(cells(ROOT / "chapters" / f"{name}.md"))
    for old, new in replacements:
        if old not in code:
            raise ValueError(f"no cell of {name} holds {old!r}")
        code = code.replace(old, new)
    environment = os.environ | {"TQDM_DISABLE": "1", "MPLBACKEND": "agg"}
    command = [sys.executable, "-"]
    return subprocess.run(command, input=code, text=True, cwd=ROOT / "chapters", env=environment, check=False, **options)


if __name__ == "__main__":
    sys.exit(run_cells(sys.argv[1]).returncode)
