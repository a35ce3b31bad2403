"""The device that is not there: it computes as the CPU does, and mixes with no other, as CUDA would not.

The studies run on it in test_paper_profile.
"""

import pytest
from other_process import python


def test_the_device_computes_as_a_cpu_and_mixes_with_none():
    """What is asserted below is asserted in the other process."""
    done = python("-c", "import test_second_device as t; t.check_the_device()")
    assert done.returncode == 0, done.stderr[-2000:]


def check_the_device() -> None:
    import torch
    from second_device import NAME, second_device
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    here, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)), torch.randn(3, 4)
    here(x).square().sum().backward()
    expected = here[0].weight.grad.clone()
    here.zero_grad()
    with second_device():
        there, y = here.to(NAME), x.to(NAME)
        checkpoint(there, y, use_reentrant=False).square().sum().backward()
        assert there[0].weight.grad.device.type == NAME and torch.equal(there[0].weight.grad.cpu(), expected)
        with torch.autocast(NAME, torch.bfloat16):
            assert there(y).dtype == torch.bfloat16 and there(y).softmax(-1).dtype == torch.float32
        place = torch.tensor([2, 0])
        assert torch.equal(y[place].cpu(), x[place]) and (y * torch.tensor(2.0)).sum().item() == (2 * x).sum().item()
        y[place] = 1
        assert y[:, 0].tolist() == [1, x[1, 0].item(), 1]
        drawn = torch.rand(3, device=NAME, generator=torch.Generator(NAME).manual_seed(1))
        assert torch.equal(drawn.cpu(), torch.rand(3, generator=torch.Generator().manual_seed(1)))
        for mixed in (
            lambda: y + x,
            lambda: there(x),
            lambda: x[place.to(NAME)],
            lambda: y.index_put_((place,), torch.ones(2, 4)),
            lambda: torch.cat([y, x]),
            lambda: torch.rand(3, device=NAME, generator=torch.Generator()),
            lambda: torch.rand(3, generator=torch.Generator(NAME)),
            lambda: y.numpy(),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                mixed()
