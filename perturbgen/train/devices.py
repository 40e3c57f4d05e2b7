"""Devices by name."""

from __future__ import annotations

from perturbgen.errors import ConfigError


def require_device(name: str) -> None:
    """Refuse a device that torch does not know or that this machine lacks."""
    import torch

    try:
        torch.zeros(1, device=name).sum().item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"--device {name}: {str(error).splitlines()[0]}", expected="cpu, or cuda where torch sees a GPU"
        ) from None
