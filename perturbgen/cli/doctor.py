"""``perturbgen doctor``: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from perturbgen.cli.options import Json
from perturbgen.core.console import show_table
from perturbgen.core.runs import package_version

_REQUIRED = (
    "numpy",
    "numba",
    "scipy",
    "pandas",
    "anndata",
    "pyarrow",
    "h5py",
    "zarr",
    "pydantic",
    "typer",
    "rich",
    "torch",
    "scikit-learn",
    "scanpy",
    "plotly",
    "pooch",
    "tensorboard",
    "umap-learn",
)
_OPTIONAL = {
    "rdkit": "pip install 'perturbgen[chem]' (fingerprints of compounds)",
    "distributed": "pip install 'perturbgen[cluster]' (compare on a Dask cluster)",
    "openpyxl": "pip install 'perturbgen[excel]' (published tables of two experiments)",
    "monai": "pip install 'perturbgen[images]' (DenseNets on images)",
    "openTSNE": "pip install 'perturbgen[maps]' (t-SNE of images)",
    "pyro-ppl": "pip install 'perturbgen[pyro]' (models as Pyro programs)",
    "rpy2": "pip install 'perturbgen[r]' (after R)",
}
_R_PACKAGES = {"limma": "r-bioc-limma", "edgeR": "r-bioc-edger", "statmod": "r-cran-statmod"}


def _doctor(as_json: Json = False) -> None:
    """Check packages, devices, R and data. Exit code 1 only if something required is missing.

    Example: [bold]perturbgen doctor[/bold]
    """
    rows = [*_python_rows(), *_device_rows(), *_r_rows(), *_data_rows()]
    show_table(rows, title="perturbgen doctor", as_json=as_json)
    # R and a GPU are needed by few commands, and their absence is no failure
    if any(row["needed"] == "required" and row["found"] is None for row in rows):
        raise typer.Exit(1)


def _row(what: str, found: str | None, needed: str, fix: str = "") -> dict[str, Any]:
    """One line of the table."""
    return {"what": what, "found": found, "needed": needed, "how to get it": "" if found else fix}


def _python_rows() -> list[dict[str, Any]]:
    """Installed versions of the Python packages."""
    needed = {name: ("required", f"pip install {name}") for name in _REQUIRED}
    needed |= {name: ("optional", fix) for name, fix in _OPTIONAL.items()}
    rows = [_row(name, package_version(name), kind, fix) for name, (kind, fix) in needed.items()]
    # two builds of one module: the one for CPUs alone is 300 MB smaller
    build = next((x for x in ("xgboost", "xgboost-cpu") if package_version(x)), "xgboost-cpu")
    version, fix = package_version(build), "pip install xgboost-cpu (xgboost for a GPU)"
    return [*rows, _row(build, version, "required", fix)]


def _device_rows() -> list[dict[str, Any]]:
    """What torch can compute on."""
    try:
        # doctor has to run where an installation is broken
        import torch
    except ImportError:
        return []
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    fix = "an NVIDIA GPU and a CUDA build of torch"
    return [
        _row("torch device cpu", f"{torch.get_num_threads()} threads", "required"),
        _row("torch device cuda", ", ".join(gpus) or None, "optional", fix),
    ]


def _r_rows() -> list[dict[str, Any]]:
    """R and the packages that the R backend calls."""
    # an absent package is an error in R, and must not keep the others from being asked
    version = 'tryCatch(as.character(packageVersion("{0}")), error=function(e) "")'
    wanted = [f'cat("{name}", {version.format(name)}, "\\n")' for name in _R_PACKAGES]
    code = "; ".join(['cat("R", as.character(getRversion()), "\\n")', *wanted])
    printed = ""
    if shutil.which("Rscript"):
        # An R that is broken or hangs is one that is not there.
        with suppress(OSError, subprocess.SubprocessError):
            printed = subprocess.run(
                ["Rscript", "-e", code], capture_output=True, text=True, timeout=60, check=True
            ).stdout
    found = {parts[0]: parts[1] for line in printed.splitlines() if len(parts := line.split()) == 2}
    fix = "apt-get install r-base-core r-base-dev, or https://cran.r-project.org"
    rows = [_row("R", found.get("R"), "optional", fix)]
    for name, deb in _R_PACKAGES.items():
        fix = f"apt-get install {deb}, or BiocManager::install"
        rows.append(_row(f"R {name}", found.get(name), "optional", fix))
    return rows


def data_folder() -> Path:
    """Where real data are looked for: ``PERTURBGEN_DATA``, by default ``../shared/data``."""
    return Path(os.environ.get("PERTURBGEN_DATA", "../shared/data"))


def _data_rows() -> list[dict[str, Any]]:
    """The folder of real data and what it holds."""
    folder = data_folder()
    found = None
    if folder.is_dir():
        found = f"{folder} ({', '.join(sorted(p.name for p in folder.iterdir() if p.is_dir()))})"
    fix = "set PERTURBGEN_DATA; perturbgen data list shows public sources"
    return [_row("data folder", found, "optional", fix)]


VERBS = {"doctor": _doctor}
