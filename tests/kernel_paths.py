"""What the tests of the kernels share."""

import pytest
import torch


def both_paths(module):
    """A fixture `path`, "torch" and "triton" in turn behind the functions of `module`.

    Triton's runs on CPU tensors where there is no GPU, else on the GPU, which is then the default device.
    """

    @pytest.fixture(params=["torch", "triton"])
    def path(request, monkeypatch):
        if request.param == "triton":
            pytest.importorskip("triton")
        monkeypatch.setattr(module, "on_gpu", lambda x: request.param == "triton")
        device = "cuda" if request.param == "triton" and torch.cuda.is_available() else "cpu"
        with torch.device(device):
            yield request.param

    return path


def draw(*shape, dtype=torch.float32, seed=0, spread=3):
    """Normal numbers of that standard deviation on the default device."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    return (numbers * spread).to(torch.get_default_device(), dtype)
