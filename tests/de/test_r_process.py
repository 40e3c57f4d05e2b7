import subprocess
import sys

import pytest

CODE = """
import os
from perturbgen.de.r import _start_r
before = os.environ.get("LD_LIBRARY_PATH")
_start_r()
assert os.environ.get("LD_LIBRARY_PATH") == before
"""


@pytest.mark.r
def test_starting_r_leaves_the_library_path_of_child_processes_alone(rscript: str) -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True)
