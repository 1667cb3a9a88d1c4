"""`make mutate`: change the code bit by bit, and list the changes that no test notices."""

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
from mutmut.__main__ import cli

from emulator import ministack

RESULTS = Path("mutants/src/sessions")
# mutmut's exit codes for a survivor: its tests passed, or no test calls it.
SURVIVED = (0, 33)


def main(module: str = "") -> None:
    """Run mutmut over one module of src/sessions, or all; print the scores and the survivors."""
    # mutmut 3.7 asks pytest's items for an attribute that pytest 9.2 no longer has.
    pytest.Item._nodeid = property(lambda item: item.nodeid)  # type: ignore[attr-defined]
    chosen = [f"sessions.{module}.*"] if module else []
    with tempfile.TemporaryDirectory() as folder, ministack(Path(folder)) as endpoint:
        os.environ["MINISTACK"] = endpoint
        cli(["run", "--max-children", "2", *chosen], standalone_mode=False)
    for path in sorted(RESULTS.glob(f"{module or '*'}.py.meta")):
        results: dict[str, int | None] = json.loads(path.read_text())["exit_code_by_key"]
        survivors = [name for name, code in results.items() if code in SURVIVED]
        tried = len([code for code in results.values() if code is not None])
        if tried:
            killed = tried - len(survivors)
            print(f"{path.name.removesuffix('.py.meta')}: {killed} of {tried} killed, survivors:")
            print(*(f"    {name}" for name in survivors), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
