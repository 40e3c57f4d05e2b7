import numpy as np
import pandas as pd
import pytest

from perturbgen.data import maps, pictures


@pytest.fixture
def obs() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "plate": ["p1"] * 3 + ["p2"] * 2,
            "well": ["A1", "A1", "B12", "A2", "A2"],
            "compound": ["DMSO", "DMSO", "x", "y", "y"],
            "cell_type": list("BBTBT"),
        }
    ).astype("category")


def test_depth_lines_are_shares_of_each_cell_type(obs: pd.DataFrame) -> None:
    figure = pictures._depth_figure(pd.Series([10, 100, 1000, 0, 50]), obs["cell_type"])
    assert [trace.name for trace in figure.data] == ["B (2)", "T (2)"]
    assert [sum(trace.y) for trace in figure.data] == pytest.approx([1, 1])


def test_zeros_are_drawn_against_the_mean_and_silent_genes_left_out() -> None:
    mean, zeros = (
        pd.Series({"a": 0.1, "b": 0.0, "c": 2.0}),
        pd.Series({"a": 0.9, "b": 1.0, "c": 0.2}),
    )
    points, poisson = pictures._zeros_figure(mean, zeros).data
    assert (list(points.x), list(points.y), list(points.text)) == (
        [0.1, 2.0],
        [0.9, 0.2],
        ["a", "c"],
    )
    assert poisson.y[0] == pytest.approx(np.exp(-0.1))


def test_wells_lie_where_they_are_on_the_plate(obs: pd.DataFrame) -> None:
    first, second = pictures._plates_figure(obs, pd.Series(1, obs.index), unit="cells").data
    assert list(first.y) == ["A", "B"]
    assert first.z[0][0] == 2
    assert first.z[1][11] == 1
    assert first.text[1][11] == "x"
    assert second.z[0][1] == 2
    assert np.isnan(second.z[0][0])
    assert second.text[0][0] == "empty"


def test_rows_past_z_come_after_z() -> None:
    obs = pd.DataFrame({"plate": "p", "well": ["AA01", "B01"], "compound": "x"})
    assert list(pictures._plates_figure(obs, pd.Series(1, obs.index), unit="cells").data[0].y) == [
        "B",
        "AA",
    ]


def test_maps_have_a_panel_for_each_colouring_and_version() -> None:
    points = pd.DataFrame({"PC1": [0.0, 1.0], "PC2": [0.0, 1.0]})
    obs = pd.DataFrame({"plate": ["p", "q"]})
    colours = {"plate": pd.Series(["p", "q"]), "compound": pd.Series(["x", "other"])}
    figure = maps._maps_figure({"before": points, "after": points}, obs, colours, ("PC1", "PC2"))
    assert len(figure.data) == 8
    assert {trace.name: trace.marker.color for trace in figure.data}["other"] == maps.GREY


def test_only_the_first_and_most_frequent_names_keep_a_colour() -> None:
    values = pd.Series(["a"] * 3 + ["b"] * 2 + ["c", "v"])
    assert maps.named(values, ["v"], most=2).unique().tolist() == ["a", "other", "v"]


def test_doses_are_listed_by_size():
    doses = pd.Series(["10 uM", "other", "3 uM", "0.37 uM", "DMSO", "3.3 uM"])
    assert list(maps.tints(doses)) == ["other", "0.37 uM", "3 uM", "3.3 uM", "10 uM", "DMSO"]


def test_any_number_of_plates_is_drawn() -> None:
    names = [f"plate {i}" for i in range(70)]
    obs = pd.DataFrame({"plate": names, "well": "A1", "compound": "x"})
    drawn = pictures._plates_figure(obs, pd.Series(1, obs.index), unit="cells")
    assert len(drawn.data) == 70
