"""The image experiments without data: each seed has a fixture of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("name", "quick"),
    [
        ("bbbc021", ["--no-nested"]),
        ("rxrx1", ["--experiments", 1]),
        ("cell_painting", ["--splits", 1]),
    ],
)
def test_another_seed_is_another_fixture_beside_the_first(
    name: str, quick: list[object], experiment: Callable[[str], Callable[..., int]], tmp_path: Path
) -> None:
    run = experiment(name)
    for seed in (0, 1):
        assert run("--out", tmp_path, "--seed", seed, *quick) == 0
    one, other = (
        {path.name: path.read_bytes() for path in (tmp_path / f"fixture{seed}").iterdir()}
        for seed in (0, 1)
    )
    assert one.keys() == other.keys()
    assert one != other
