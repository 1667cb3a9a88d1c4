"""Make the package of the functions: small, pure Python, with bytecode that Lambda accepts.

Called by `sam build` through the Makefile beside it. The dependencies are installed, trimmed and
compiled once, and copied for each function. Of botocore's service models only the operations stay
that the functions call: loading a whole one takes longer than all else of a cold start. Bytecode is
hash-based and unchecked: entries of a SAM zip are dated 1980, so Python would throw timestamp-based
bytecode away.
"""

import compileall
import contextlib
import gzip
import hashlib
import json
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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
    "boto3/examples",
    "botocore/data/*/*/examples-*",
    "botocore/data/*/*/paginators-*",
    "botocore/data/*/*/waiters-*",
    "aws_lambda_powertools/event_handler",
    "aws_lambda_powertools/utilities/data_classes",
    "aws_lambda_powertools/utilities/parser",
    "aws_lambda_powertools/utilities/feature_flags",
    "aws_lambda_powertools/utilities/kafka",
)


# What the functions ask of AWS (a test compares it with the calls on the wire).
OPERATIONS = {
    "dynamodb": {"BatchExecuteStatement", "Query", "UpdateItem"},
    "events": {"PutEvents"},
}


def main(target: Path) -> None:
    """Fill `target` with the package."""
    lock = (SRC / "requirements.txt").read_bytes() + Path(__file__).read_bytes()
    # Beside the folder of all packages, which each `sam build` begins by emptying.
    cache = target.parent.parent
    dependencies = installed(cache, f"dependencies-{hashlib.sha256(lock).hexdigest()[:16]}")
    # A cached build begins with what an earlier version left.
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(dependencies, target)
    for room in ROOMS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SRC / room, target / room, ignore=ignored)
        compile_all(target / room, target)


def installed(cache: Path, name: str) -> Path:
    """Return the folder of the locked dependencies, as pip has installed and we have trimmed them.

    Its name ends with the digest of what is in it: one in which anything has changed is made anew.
    """
    for folder in cache.glob(f"{name}-*"):
        if folder.name == f"{name}-{digest(folder)}":
            return folder
        shutil.rmtree(folder, ignore_errors=True)
    return install(cache, name)


def install(cache: Path, name: str) -> Path:
    """Install the locked dependencies into a folder of `cache`, trimmed and compiled."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
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
        target = cache / f"{name}-{digest(made)}"
        # The SAM CLI may build functions side by side; the first one done serves all.
        with contextlib.suppress(OSError):
            os.replace(made, target)
    if not target.exists():
        sys.exit(f"{target} could not be made")
    return target


def digest(folder: Path) -> str:
    """Return what stands for the names and contents of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.relative_to(folder)}" for p in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def trim(folder: Path) -> None:
    """Remove what the functions never read."""
    for pattern in WASTE:
        for path in list(folder.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    models = folder / "botocore" / "data"
    for service in [path for path in models.iterdir() if path.is_dir()]:
        # botocore takes the latest of a service's versions.
        *others, latest = sorted(path for path in service.iterdir() if path.is_dir())
        if service.name in OPERATIONS:
            trim_model(latest / "service-2.json.gz", OPERATIONS[service.name])
        for gone in others if service.name in OPERATIONS else [service]:
            shutil.rmtree(gone)


def trim_model(path: Path, operations: set[str]) -> None:
    """Leave only these operations in a service's model, with the shapes they use, unpacked."""
    model = json.loads(gzip.decompress(path.read_bytes()))
    model["operations"] = {name: model["operations"][name] for name in sorted(operations)}
    shapes, used, new = model["shapes"], set[str](), _shapes_in(model["operations"])
    while new:
        used |= new
        new = set().union(*(_shapes_in(shapes[name]) for name in new)) - used
    model["shapes"] = {name: shapes[name] for name in sorted(used)}
    path.with_suffix("").write_text(json.dumps(_undocumented(model)))
    path.unlink()


def _shapes_in(part: Any) -> set[str]:
    """Return the names of the shapes that a part of a model refers to."""
    if isinstance(part, list):
        return set().union(*map(_shapes_in, part))
    if not isinstance(part, dict):
        return set()
    found = set().union(*map(_shapes_in, part.values()))
    return found | {part["shape"]} if isinstance(part.get("shape"), str) else found


def _undocumented(part: Any) -> Any:
    """Return a part of a model without its texts."""
    if isinstance(part, list):
        return [_undocumented(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {n: _undocumented(one) for n, one in part.items() if n != "documentation"}


def compile_all(folder: Path, root: Path) -> None:
    """Compile a folder of a package's `root`; raises SystemExit when something does not compile."""
    done = compileall.compile_dir(
        folder,
        quiet=1,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        workers=0,
        # Tracebacks name the path in Lambda, not that of the build.
        stripdir=str(root),
        prependdir="/var/task",
    )
    if not done:
        sys.exit(f"{folder.name} does not compile")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
