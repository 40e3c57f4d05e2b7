"""The withheld cell types of a simulated folder drawn anew: the positive control of compare.toml.

python experiments/op3_semireal/replicate.py data/op3_semireal
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import say


def main(
    folder: Annotated[Path, typer.Argument(help="A folder that perturbgen simulate wrote.")],
) -> None:
    """Write de_replicate.parquet beside de_truth.parquet.

    Example: python experiments/op3_semireal/replicate.py data/op3_semireal
    """
    from perturbgen.simulation import write_replicate

    say(f"wrote {write_replicate(folder)}")


if __name__ == "__main__":
    run_experiment(main)
