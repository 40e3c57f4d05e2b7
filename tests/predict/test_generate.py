"""Generated cells: whole numbers under their own labels, the same for one seed, and nothing
half-written.
"""

import copy
import logging
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from perturbgen.core.errors import InputError, SchemaError, StorageError
from perturbgen.data.covariates import CovariateEncoder
from perturbgen.generate import CellGenerator, CellSampler, Plan, ReplicateFolder
from perturbgen.generate.latents import _BankLatents
from perturbgen.models import GaussianVAE
from perturbgen.predict import Wells, read_wanted
from perturbgen.predict.wells import _add_covariates
from tests.predict.conftest import COMPOUNDS, FEW_TREES, GENES, train, wanted_table

WANTED = wanted_table()
LABELS = read_wanted(WANTED)


class OneGeneEach(torch.nn.Module):
    """Puts all counts of a cell into the gene that bears the number of its condition, and r into
    the rest.
    """

    n_latent = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def composition(self, z, codes):
        share = torch.zeros(len(z), len(GENES))
        share[:, codes[:, 0]] = 1
        return share, torch.full((len(GENES),), 12.0)


class NoLatents:
    def draw(self, well, codes, rng):
        return torch.zeros(len(codes), 1)


@pytest.fixture(scope="module")
def sampler(experiment_file):
    return CellSampler.of(ad.read_h5ad(experiment_file), seed=0, settings=FEW_TREES)


def drawn(generator, plan, wells, replicate=1):
    """Counts of each well, put together."""
    parts = {}
    for well, counts in generator.draw(plan, wells, replicate=replicate):
        parts.setdefault(tuple(wells.iloc[well][["cell_type", "compound", "plate"]]), []).append(
            counts.toarray()
        )
    return {key: np.vstack(values) for key, values in parts.items()}


@pytest.mark.parametrize("column", ["compound", "plate", "well"])
def test_counts_stand_under_the_labels_they_were_drawn_for(sampler, monkeypatch, column):
    monkeypatch.setattr("perturbgen.generate.cells._PIECE", 5)  # wells are cut
    # and fetched before the last one is drawn
    monkeypatch.setattr("perturbgen.generate.cells._AHEAD", 3)
    plan = Plan(sampler, WANTED.iloc[::-1], 0)
    values = tuple(sorted(plan.wells[column].unique()))
    encoder = CovariateEncoder({column: values}, {})
    generator = CellGenerator(OneGeneEach(), pd.Index(GENES), encoder, NoLatents())
    sizes = plan.libraries(1)
    seen = np.zeros(len(plan.wells), int)
    for well, counts in generator.draw(plan, plan.wells, replicate=1):
        gene = values.index(plan.wells[column].iat[well])
        assert set(counts.indices) == {gene}
        expected = sizes[well][seen[well] : seen[well] + counts.shape[0]]
        seen[well] += counts.shape[0]
        np.testing.assert_allclose(
            counts.toarray()[:, gene], expected, atol=6 * np.sqrt(expected.max())
        )
    assert seen.tolist() == [len(size) for size in sizes]
    sums, cells = generator.drawn_sums(plan, plan.wells, replicate=1)
    assert cells.tolist() == seen.tolist()
    assert set(map(tuple, np.argwhere(sums.toarray() > 0))) == {
        (i, values.index(plan.wells[column].iat[i])) for i in np.flatnonzero(seen)
    }


def test_the_design_has_every_donor_and_the_real_well(sampler, experiment):
    wells = Plan(sampler, WANTED, 0).wells
    assert len(wells) == 9
    real = experiment.obs[["compound", "plate", "well", "donor"]].astype(str).drop_duplicates()
    assert wells.merge(real, on=["compound", "plate", "well", "donor"]).shape[0] == 9


def test_neither_order_nor_other_conditions_change_what_is_drawn(vae, experiment, sampler):
    def cells(wanted, seed=3, replicate=1):
        plan, wells, generator, _ = Wells.of(
            vae, experiment, sampler, read_wanted(wanted), latent="control", seed=seed
        )
        return drawn(generator, plan, wells, replicate)

    first, reversed_, other_seed, other = (
        cells(WANTED),
        cells(WANTED.iloc[::-1]),
        cells(WANTED, 4),
        cells(WANTED, 3, 2),
    )
    assert first.keys() == reversed_.keys()
    for key, counts in first.items():
        np.testing.assert_array_equal(counts, reversed_[key])
    for changed in (other_seed, other):
        assert any(not np.array_equal(first[key], changed.get(key)) for key in first)


@pytest.mark.parametrize("latent", ["prior", "posterior", "control"])
@pytest.mark.parametrize("name", ["vae", "dgd"])
def test_every_route_of_every_model_gives_counts_of_the_depth_asked_for(
    request, experiment, sampler, name, latent
):
    run = request.getfixturevalue(name)
    plan, wells, generator, _ = Wells.of(run, experiment, sampler, LABELS, latent=latent, seed=0)
    sums, _ = generator.drawn_sums(plan, wells, replicate=1)
    assert sums.dtype == np.int64
    assert sums.sum() == pytest.approx(sum(size.sum() for size in plan.libraries(1)), rel=0.2)
    expected = generator.expected_sums(plan, wells, replicate=1)
    np.testing.assert_allclose(
        expected.sum(axis=1), [size.sum() for size in plan.libraries(1)], rtol=1e-4
    )


def test_a_gaussian_model_generates_whole_numbers(experiment_file, experiment, sampler):
    model = {"kind": "gaussian_vae", "latent": 2, "decoder": {"hidden": [8]}}
    run = train(experiment_file.parent, data={"path": str(experiment_file)}, model=model)
    assert isinstance(run.model, GaussianVAE)
    plan, wells, generator, _ = Wells.of(run, experiment, sampler, LABELS, latent="prior", seed=0)
    cells = drawn(generator, plan, wells)
    assert sum(len(part) for part in cells.values()) == sum(map(len, plan.libraries(1)))
    assert all(part.dtype == np.int32 and (part >= 0).all() for part in cells.values())


def test_a_labelled_prior_gives_each_cell_type_its_own_component(dgd, experiment, sampler):
    dgd = copy.deepcopy(dgd)
    with torch.no_grad():
        dgd.model.mixture.means[:] = torch.tensor([[100.0, 0.0], [-100.0, 0.0]])
    _, wells, generator, _ = Wells.of(dgd, experiment, sampler, LABELS, latent="prior", seed=0)
    codes = torch.from_numpy(generator.codes(wells.assign(cell_type=["B", "T", "B"] * 3)))
    z = generator.latents.draw(wells.iloc[0], codes, np.random.default_rng(0))
    assert (z[:, 0] > 0).tolist() == [True, False, True] * 3


def test_control_latents_come_from_vehicle_cells_of_the_plate():
    labels = pd.DataFrame({"cell_type": ["B", "B", "T"], "plate": ["p0", "p1", "p0"]})
    bank = _BankLatents(np.arange(3.0)[:, None], labels, ("cell_type", "plate"))
    well = pd.Series({"cell_type": "B", "plate": "p1"})
    z = bank.draw(well, torch.zeros(20, 1), np.random.default_rng(0))
    assert z.flatten().tolist() == [1.0] * 20


def test_a_plate_without_controls_falls_back_with_a_warning(vae, experiment, sampler, caplog):
    bare = experiment[
        ~((experiment.obs["plate"] == "plate 1") & (experiment.obs["compound"] == "DMSO"))
    ].copy()
    with caplog.at_level(logging.WARNING):
        Wells.of(vae, bare, sampler, LABELS, latent="control", seed=0)
    assert "B | plate 1" in caplog.text


def test_no_control_at_all_is_an_error(vae, experiment, sampler):
    none = experiment[experiment.obs["compound"] != "DMSO"].copy()
    with pytest.raises(SchemaError, match="no cell of the vehicle 'DMSO'"):
        Wells.of(vae, none, sampler, LABELS, latent="control", seed=0)
    no_b = experiment[
        ~((experiment.obs["cell_type"] == "B") & (experiment.obs["compound"] == "DMSO"))
    ].copy()
    with pytest.raises(SchemaError, match="no cell of 'B' has a latent point"):
        Wells.of(vae, no_b, sampler, LABELS, latent="control", seed=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compound": "drug 99"}, "values that the run's file does not have: 'drug 99'"),
        ({"cell_type": "NK"}, "no well of cell type 'NK'"),
    ],
)
def test_conditions_that_were_never_seen_are_refused(vae, experiment, sampler, changes, words):
    wanted = read_wanted(WANTED.iloc[:1].assign(**changes))
    with pytest.raises(SchemaError, match=words):
        Wells.of(vae, experiment, sampler, wanted, latent="prior", seed=0)


def test_a_plate_that_the_run_never_saw_is_refused(vae, experiment):
    renamed = experiment.copy()
    renamed.obs["plate"] = renamed.obs["plate"].str.replace("plate 2", "plate 9")
    sampler = CellSampler.of(renamed, seed=0, settings=FEW_TREES)
    with pytest.raises(
        SchemaError, match="'plate' has values that the run's file does not have: 'plate 9'"
    ):
        Wells.of(vae, renamed, sampler, LABELS, latent="prior", seed=0)


def test_covariates_of_cells_cannot_be_given_to_wells(experiment, sampler):
    wells = Plan(sampler, WANTED, 0).wells
    experiment.obs["batch"] = np.arange(experiment.n_obs).astype(str)
    with pytest.raises(SchemaError, match="'batch', which differs within a well"):
        _add_covariates(wells, experiment.obs, ["batch"])
    with pytest.raises(SchemaError, match="'age', which neither"):
        _add_covariates(wells, experiment.obs, ["age"])
    experiment.obs["dose"] = experiment.obs["compound"].map(
        {name: str(i) for i, name in enumerate(COMPOUNDS)}
    )
    dose = _add_covariates(wells, experiment.obs.dropna(), ["dose"])
    assert dose.groupby("compound")["dose"].unique().map(list).to_dict() == {
        n: [n[-1]] for n in COMPOUNDS[3:]
    }


class Files:
    """A generation into a folder."""

    def __init__(self, run, cells, sampler) -> None:
        self.plan, self.wells, self.generator, _ = Wells.of(
            run, cells, sampler, LABELS, latent="control", seed=0
        )

    def write(self, folder, n=2, **about):
        about = {"seed": 0, **about}
        return ReplicateFolder(folder, about).write(
            self.generator, self.plan, self.wells, replicates=n
        )


@pytest.fixture
def files(vae, experiment, sampler):
    return Files(vae, experiment, sampler)


def test_an_interrupted_generation_goes_on_where_it_stopped(files, tmp_path, monkeypatch):
    whole = files.write(tmp_path / "whole")
    draw, blocks = CellGenerator.draw, []

    def broken(self, plan, wells, *, replicate):
        for cells in draw(self, plan, wells, replicate=replicate):
            if replicate == 2 and len(blocks) == 1:
                raise KeyboardInterrupt
            blocks.extend([replicate] * (replicate == 2))
            yield cells

    monkeypatch.setattr(CellGenerator, "draw", broken)
    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path / "parts")
    monkeypatch.undo()
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert names == ["generation.json", "replicate-0001.h5ad", "wells.csv"]
    before = (tmp_path / "parts" / "replicate-0001.h5ad").stat().st_mtime_ns
    resumed = files.write(tmp_path / "parts")
    assert resumed[0].stat().st_mtime_ns == before
    for one, other in zip(whole, resumed, strict=True):
        a, b = ad.read_h5ad(one), ad.read_h5ad(other)
        assert (a.X != b.X).nnz == 0
        pd.testing.assert_frame_equal(a.obs, b.obs)


def test_files_hold_raw_counts_and_labels_that_the_house_reads(files, tmp_path):
    from perturbgen.data import pseudobulk

    path, _ = files.write(tmp_path / "out")
    cells = ad.read_h5ad(path)
    assert np.issubdtype(cells.X.dtype, np.integer)
    assert list(cells.var_names) == GENES
    assert (cells.X.data > 0).all()
    sums, n = files.generator.drawn_sums(files.plan, files.wells, replicate=1)
    bulk = pseudobulk(cells, by=["cell_type", "compound", "plate", "well"])
    labels = files.wells[["cell_type", "compound", "plate", "well"]].agg("|".join, axis=1)[n > 0]
    np.testing.assert_array_equal(bulk[labels].X.toarray(), sums[n > 0].toarray())
    noted = pd.read_csv(tmp_path / "out" / "wells.csv")
    assert noted["replicate 1"].tolist() == n.tolist()


def test_wells_for_people_hold_no_formula(files, tmp_path):
    files.wells = files.wells.assign(well="=" + files.wells["well"].astype(str))
    files.write(tmp_path / "out", n=1)
    assert pd.read_csv(tmp_path / "out" / "wells.csv")["well"].str.startswith("'=").all()


def test_a_disk_that_fills_up_ends_with_a_word_and_the_finished_replicates(
    files, tmp_path, monkeypatch
):
    files.write(tmp_path / "out", n=1)
    usage = shutil.disk_usage(tmp_path)
    rooms = iter([1 << 30, 1 << 30, 0])  # the labels and a piece fit
    monkeypatch.setattr(
        "perturbgen.core.files.shutil.disk_usage", lambda _: usage._replace(free=next(rooms))
    )
    with pytest.raises(StorageError, match=r"replicate-0002\.h5ad: no space left"):
        files.write(tmp_path / "out", n=2)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.h5ad")) == [
        "replicate-0001.h5ad"
    ]


def test_a_folder_of_another_generation_is_refused(files, tmp_path):
    files.write(tmp_path / "out", n=1)
    with pytest.raises(InputError, match="seed was 0, and is 1 now"):
        ReplicateFolder(tmp_path / "out", {"seed": 1}).require()


def test_wells_without_cells_are_missing_and_noted(files, tmp_path, monkeypatch, caplog):
    libraries = Plan.libraries
    monkeypatch.setattr(Plan, "libraries", lambda self, k: [np.zeros(0), *libraries(self, k)[1:]])
    with caplog.at_level(logging.INFO):
        path = files.write(tmp_path / "out", n=1)[0]
    assert "no cell was drawn for 1 of 9 wells" in caplog.text
    assert pd.read_csv(tmp_path / "out" / "wells.csv")["replicate 1"].iat[0] == 0
    first = files.wells.iloc[0]
    obs = ad.read_h5ad(path).obs
    assert not ((obs["compound"] == first["compound"]) & (obs["plate"] == first["plate"])).any()
