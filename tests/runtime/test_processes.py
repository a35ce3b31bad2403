"""What several processes share, in one; tests/slow/test_processes.py launches them."""

import pytest
import tiny
import torch
import worker
from accelerate.commands.config.config_args import load_config_from_file

from lib.models.mdlm import masked_diffusion_loss
from lib.runtime import processes
from lib.runtime.processes import share
from lib.settings.paths import PROFILES
from lib.studies.attacks.hiding import adaptive_loss


def as_processes(monkeypatch, count: int, call):
    """What `call()` gives in each of `count` processes, one after another."""
    results = []
    for rank in range(count):
        monkeypatch.setattr(processes, "_rank", rank)
        monkeypatch.setattr(processes, "_count", count)
        results.append(call())
    monkeypatch.undo()
    return results


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_shares_are_the_whole_in_order(monkeypatch, count):
    rows = torch.arange(12).view(6, 2)
    shares = as_processes(monkeypatch, count, lambda: share(rows))
    assert torch.equal(torch.cat(shares), rows) and {len(part) for part in shares} == {6 // count}


def test_a_batch_that_cannot_be_shared_evenly_is_refused(monkeypatch):
    mdlm = tiny.mdlm()
    loss = worker.answer_loss(mdlm, worker.samples(mdlm), worker.TRAIN)
    with pytest.raises(ValueError, match="^batch=8 must be a multiple of the 3 processes that share it$"):
        as_processes(monkeypatch, 3, lambda: loss(torch.Generator()))


def test_the_mean_of_the_shares_losses_is_the_loss_of_the_batch(monkeypatch):
    """Also where no token of a share is masked: the denominator is the batch's."""
    mdlm = tiny.mdlm()
    mdlm.model.double()
    data = worker.samples(mdlm)
    vision = mdlm.model.project(data.features[data.picture[:8]])
    given = vision, data.prompts[:8], data.responses[:8]

    def loss():
        parts = (share(part) for part in given)
        return masked_diffusion_loss(mdlm.model, *parts, torch.Generator().manual_seed(4)).item()

    whole = loss()
    for count in (2, 4, 8):
        parts = as_processes(monkeypatch, count, loss)
        assert sum(parts) / count == pytest.approx(whole, rel=1e-12) and len(set(parts)) == count


def test_an_attacker_who_hides_the_trigger_trains_in_one_process(monkeypatch):
    mdlm = tiny.mdlm()
    given = mdlm, worker.samples(mdlm), torch.ones(20, dtype=torch.bool), torch.ones(20, 64, dtype=torch.bool)
    given += (worker.TRAIN,)
    with pytest.raises(ValueError, match="disp.hide=0.5 is trained in one process: start it without `accelerate"):
        as_processes(monkeypatch, 2, lambda: adaptive_loss(*given, 0.5))
    as_processes(monkeypatch, 2, lambda: adaptive_loss(*given, 0.0))


@pytest.mark.parametrize(("name", "kind"), [("one-gpu", "NO"), ("ddp", "MULTI_GPU"), ("fsdp", "FSDP")])
def test_accelerate_reads_the_configurations(name, kind):
    """It refuses unknown keys. A port of 0 is a free one: the one of a launch that was just killed may not be."""
    read = load_config_from_file(str(PROFILES / "accelerate" / f"{name}.yaml"))
    assert read.distributed_type == kind and read.mixed_precision == "no"
    assert name == "one-gpu" or read.main_process_port == 0
    assert (read.fsdp_config == {"fsdp_version": 2}) == (name == "fsdp")
