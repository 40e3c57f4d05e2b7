"""Penalties on features that tell batches apart: a reversed gradient, and CORAL by hand."""

import pytest
import torch

from perturbgen.images.network.model import _coral, _DomainHead, _Reversal


def test_a_reversed_gradient_teaches_the_reader_and_unteaches_the_writer() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    (_Reversal.apply(x) * 2).sum().backward()
    assert x.grad is not None
    assert x.grad.eq(-2).all()
    head = _DomainHead(3, 2)
    assert head(torch.rand(5, 3), torch.tensor([0, 1, 0, 1, 1])).shape == (5,)


def test_coral_by_hand_and_of_one_domain() -> None:
    features = torch.tensor([[0.0, 0], [2, 0], [1, 3], [1, 5], [9, 9]])
    domain = torch.tensor([0, 0, 1, 1, 2])  # domain 2 has one sample and no covariance
    # means (1, 0) and (1, 4); covariances diag(2, 0) and diag(0, 2)
    assert _coral(features, domain).item() == pytest.approx((0 + 16) / 2 + (4 + 4) / 4)
    assert _coral(features[:2], domain[:2]).item() == 0
