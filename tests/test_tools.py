"""Arrows outside src/ point one way, too: local → ops → sessions."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_operators_commands_need_neither_the_embedded_stack_nor_the_handlers() -> None:
    names = sorted(path.stem for path in (ROOT / "ops").glob("[a-z]*.py"))
    code = f"""
import sys, {", ".join(f"ops.{name}" for name in names)}
print(sorted(name for name in sys.modules if name.split(".")[0] in ("local", "handler")))
"""
    command = [sys.executable, "-c", code]
    shown = subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "[]\n"
