"""A fork server: runs command lines in children of one process that has imported everything.

Reads a job as a line of JSON on standard input, answers with one on standard output. A child starts
in milliseconds instead of seconds, so that a thousand cases take minutes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

SLOW = """
torch numpy scipy.stats scipy.sparse.linalg scipy.optimize pandas pyarrow.parquet h5py anndata
sklearn.linear_model sklearn.ensemble sklearn.decomposition numba plotly.graph_objects pydantic
typer rich.table rich.progress lightning_fabric tensorboard torch.utils.tensorboard
xgboost PIL.Image perturbgen.cli perturbgen.train.generative perturbgen.l1000.embedder
perturbgen.images.network perturbgen.compare perturbgen.predict
"""
# bytes that a child may address: a size that no memory holds must not take the machine
MEMORY = 12 << 30


def serve() -> None:
    """Answer until standard input ends."""
    for name in SLOW.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(run(job)), flush=True)  # noqa: T201


def run(job: dict) -> dict:
    """Exit code (negative: the signal that ended it) and whether its time ran out."""
    child = os.fork()
    if child == 0:
        become(job)
    deadline = time.monotonic() + job["seconds"]
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return {"code": os.waitstatus_to_exitcode(status), "hung": False}
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"code": -signal.SIGKILL, "hung": True}
        time.sleep(0.005)


def become(job: dict) -> None:
    """The child: a process group of its own, in its folder, that runs the command and exits."""
    code = 70
    try:
        os.setsid()
        os.chdir(job["folder"])
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        said = Path(job["said"])
        for number, target in ((0, "/dev/null"), (1, said / "out"), (2, said / "err")):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            handle = os.open(target, flags, 0o666)
            os.dup2(handle, number)
        sys.argv = ["perturbgen", *job["command"]]
        from perturbgen.cli import main

        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        code = 1
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
