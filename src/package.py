"""Make the package of the functions: small, pure Python, with bytecode that Lambda accepts.

Called by `sam build` through the Makefile beside it. The dependencies are installed, trimmed and
compiled once, and copied for each function. Bytecode is hash-based and unchecked: entries of a SAM
zip are dated 1980, so Python would throw timestamp-based bytecode away.
"""

import compileall
import contextlib
import hashlib
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SRC = Path(__file__).parent
ROOMS = ("handler", "sessions")

# What no function imports, or reads, at run time.
WASTE = (
    "*.dist-info",
    "*.data",
    "**/*.pyi",
    "**/py.typed",
    "**/__pycache__",
    "bin",
    "boto3/data",
    # Models of each service, which sessions/aws.py does without.
    "botocore/data/*/",
    "boto3/examples",
    "aws_lambda_powertools/event_handler",
    "aws_lambda_powertools/utilities/data_classes",
    "aws_lambda_powertools/utilities/parser",
    "aws_lambda_powertools/utilities/feature_flags",
    "aws_lambda_powertools/utilities/kafka",
)


def main(target: Path) -> None:
    """Fill `target` with the package."""
    lock = (SRC / "requirements.txt").read_bytes() + Path(__file__).read_bytes()
    dependencies = target.parent / f".dependencies-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not dependencies.exists():
        install(dependencies)
    # A cached build begins with what an earlier version left.
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(dependencies, target)
    for room in ROOMS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SRC / room, target / room, ignore=ignored)
        compile_all(target / room, target)


def install(target: Path) -> None:
    """Install the locked dependencies into `target`, trimmed and compiled, or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "made"
        # Wheels that run anywhere only: one package serves arm64 and x86_64.
        wheels = ["--only-binary=:all:", "--platform=any", "--implementation=py", "--abi=none"]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        locked = ["--require-hashes", "--requirement", str(SRC / "requirements.txt")]
        subprocess.run(
            [*command, "--disable-pip-version-check", *wheels, *locked, "--target", str(made)],
            check=True,
        )
        trim(made)
        compile_all(made, made)
        # The SAM CLI may build functions side by side; the first one done serves all.
        with contextlib.suppress(OSError):
            os.replace(made, target)
    if not target.exists():
        sys.exit(f"{target} could not be made")


def trim(folder: Path) -> None:
    """Remove what the functions never read."""
    for pattern in WASTE:
        for path in list(folder.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def compile_all(folder: Path, root: Path) -> None:
    """Compile a folder of a package's `root`; raises SystemExit when something does not compile."""
    done = compileall.compile_dir(
        folder,
        quiet=1,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        workers=0,
        # Tracebacks shall name the place in Lambda, not the one of the build.
        stripdir=str(root),
        prependdir="/var/task",
    )
    if not done:
        sys.exit(f"{folder.name} does not compile")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
