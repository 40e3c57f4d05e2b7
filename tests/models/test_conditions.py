import pytest
import torch

from perturbgen.core.errors import ConfigError
from perturbgen.models import Conditions, Covariate, Draws


def test_features_stand_side_by_side_and_a_withheld_category_is_zero():
    table = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    layer = Conditions(
        [Covariate("cell_type", 3), Covariate("compound", 2, "descriptors", 4, descriptors=table)]
    )
    features = layer(torch.tensor([[2, 0], [-1, 1], [0, -1]]))
    assert layer.width == 7
    assert features[:, :3].tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert features[2, 3:].tolist() == [0, 0, 0, 0]
    # standardised; a constant gives 0
    expected = layer.layers[1].linear(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(features[:2, 3:], expected)


def test_labels_and_no_covariates_give_no_features():
    assert (
        Conditions([Covariate("cell_type", 3, "label")])(torch.zeros(4, 1, dtype=torch.int64))
        is None
    )
    assert Conditions([])(torch.zeros(4, 0, dtype=torch.int64)) is None
    mixed = Conditions([Covariate("cell_type", 3, "label"), Covariate("compound", 2)])
    assert mixed(torch.tensor([[2, 1]])).tolist() == [[0, 1]]


def test_dropout_withholds_each_covariate_at_its_own_rate():
    layer = Conditions([Covariate("cell_type", 3, dropout=0.25), Covariate("compound", 2)])
    codes = layer.withhold(
        torch.zeros(20_000, 2, dtype=torch.int64), Draws(torch.Generator().manual_seed(0))
    )
    assert (codes[:, 0] == -1).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert (codes[:, 1] == 0).all()


@pytest.mark.parametrize(
    ("encoding", "table"),
    [("onehot", torch.zeros(2, 3)), ("descriptors", None), ("descriptors", torch.zeros(5, 3))],
)
def test_descriptors_that_do_not_fit_are_refused(encoding, table):
    with pytest.raises(ConfigError, match="covariate 'x'"):
        Covariate("x", 2, encoding, descriptors=table)


def test_the_shares_of_two_processes_are_what_one_draws():
    whole = Draws(torch.Generator().manual_seed(3)).normal(5, 2)
    parts = [
        Draws(torch.Generator().manual_seed(3), rank=rank, ranks=2, total=5) for rank in (0, 1)
    ]
    torch.testing.assert_close(parts[0].normal(3, 2), whole[0::2])
    torch.testing.assert_close(parts[1].normal(2, 2), whole[1::2])
