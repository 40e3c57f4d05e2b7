import pytest
import torch

from perturbgen.models import Conditions, CountDecoder, Covariate


def test_it_starts_at_the_genes_shares_and_keeps_to_the_cells_depth():
    share = torch.tensor([0.7, 0.2, 0.1])
    decoder = CountDecoder(2, (8,), 3, share=share)
    torch.nn.init.zeros_(decoder.head.weight)
    log_mean, log_r = decoder(torch.randn(4, 2), None, torch.tensor([10.0, 20.0, 30.0, 40.0]))
    torch.testing.assert_close(
        log_mean.exp(), torch.tensor([10.0, 20.0, 30.0, 40.0])[:, None] * share
    )
    torch.testing.assert_close(log_r, torch.full((3,), 2.0).log())


@pytest.mark.parametrize(
    ("kind", "shape"), [("gene", (5,)), ("gene-category", (4, 5)), ("predicted", (4, 5))]
)
def test_dispersions_have_their_shapes(kind, shape):
    decoder = CountDecoder(2, (8,), 5, dispersion=kind, n_categories=3)
    category = torch.tensor([0, 2, 1, 0]) if kind == "gene-category" else None
    assert decoder(torch.randn(4, 2), None, torch.ones(4), category).log_r.shape == shape


def test_draws_of_latent_points_may_lead():
    conditions = Conditions([Covariate("cell_type", 3)])
    decoder = CountDecoder(2, (8,), 5, n_conditions=3, additive=True)
    z, features = torch.randn(6, 4, 2), conditions(torch.tensor([[0], [1], [2], [0]]))
    together = decoder(z, features, torch.full((4,), 9.0)).log_mean
    torch.testing.assert_close(together[3], decoder(z[3], features, torch.full((4,), 9.0)).log_mean)


def test_additive_conditions_move_log_means_directly():
    decoder = CountDecoder(2, (8,), 5, n_conditions=3, additive=True, scaling="max")
    features, z = torch.eye(3), torch.zeros(3, 2)
    before = decoder.head(decoder.activation(decoder.trunk(z, features)))
    with torch.no_grad():
        decoder.additive.weight.copy_(torch.arange(15.0).reshape(5, 3))
    after = decoder(z, features, torch.ones(3)).log_mean
    torch.testing.assert_close(
        after, torch.nn.functional.logsigmoid(before + decoder.additive.weight.T)
    )


@pytest.mark.parametrize("scaling", ["total", "max"])
@pytest.mark.parametrize("kind", ["gene-category", "predicted"])
def test_conditions_of_one_row_are_those_of_all_cells_and_shares_need_no_size(scaling, kind):
    torch.manual_seed(0)
    decoder = CountDecoder(
        2, (8,), 5, n_conditions=3, additive=True, scaling=scaling, dispersion=kind, n_categories=3
    ).eval()
    torch.nn.init.normal_(decoder.additive.weight)
    z, one, category = torch.randn(4, 2), torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([1])
    size = torch.tensor([1.0, 5.0, 9.0, 20.0])
    whole = decoder(z, one.expand(4, -1), size, category.expand(4))
    once = decoder(z, one, size, category)
    torch.testing.assert_close(once.log_mean, whole.log_mean)
    share, log_r = decoder.composition(z, one, category)
    mean = whole.log_mean.exp()
    torch.testing.assert_close(share, mean / mean.sum(-1, keepdim=True))
    torch.testing.assert_close(log_r.expand(4, 5), whole.log_r)
