"""The training loop: resumed to the bit, its schedule, what it watches and what it refuses."""

import json
import math

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import nn

from lib.runtime.training import fit, learning_rate, stacked
from lib.settings.sections import Train

DATA = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


def settings(**changes) -> Train:
    given = {"steps": 12, "batch": 8, "lr": 1e-2, "warmup": 3, "precision": "no", "save_every": 4, "watch_every": 5}
    return Train(**given | changes)


def module() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
    net[0].bias.requires_grad_(False)
    return net


def denoising(net: nn.Module, batch: int = 8, kill_at: int | None = None, seen: list | None = None):
    """A loss whose batch and noise come from the generator; raises KeyboardInterrupt at its call `kill_at`."""
    calls = []

    def loss(draw: torch.Generator):
        if len(calls) == kill_at:
            raise KeyboardInterrupt
        calls.append(None)
        rows = torch.randint(len(DATA), (batch,), generator=draw)
        if seen is not None:
            seen.append(rows.tolist())
        noise = torch.randn(batch, 6, generator=draw)
        return (net(DATA[rows] + 0.1 * noise) - DATA[rows]).square().mean()

    return loss


def watching(net: nn.Module):
    return lambda step: {"norm": net[2].weight.norm().item()}


class Scaling(Accelerator):
    """What accelerate does on a GPU without bfloat16, on a CPU. The scale grows every third step."""

    def __init__(self, mixed_precision: str, cpu: bool):
        super().__init__(mixed_precision=mixed_precision, cpu=cpu)
        assert mixed_precision == "fp16"
        self.scaler, self.native_amp = torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=3), True


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("kills", [(2,), (4,), (7,), (11,), (5, 2, 4)])
def test_killed_and_resumed_is_the_uninterrupted_run_to_the_bit(tmp_path, monkeypatch, kills, precision):
    """Killed before the first save, right after a save (4), between saves, in the last step, and three times."""
    if precision == "fp16":
        monkeypatch.setattr("lib.runtime.training.half", lambda device: torch.float16)
        monkeypatch.setattr("lib.runtime.training.Accelerator", Scaling)
    chosen = settings(precision="no" if precision == "no" else "bf16")
    whole = module()
    seen: list = []
    expected = fit(whole, denoising(whole, seen=seen), chosen, label="x", seed=5, watch=watching(whole))
    for kill in kills:
        net = module()
        with pytest.raises(KeyboardInterrupt):
            fit(net, denoising(net, kill_at=kill), chosen, label="x", seed=5, work=tmp_path, watch=watching(net))
    net, after = module(), []
    loss = denoising(net, seen=after)
    curve = fit(net, loss, chosen, label="x", seed=5, work=tmp_path, watch=watching(net))
    for name, value in whole.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    pd.testing.assert_frame_equal(curve, expected, check_exact=True)
    start = {(2,): 0, (4,): 4, (7,): 4, (11,): 8, (5, 2, 4): 8}[kills]
    assert after == seen[start:], "it must go on from the last save with the batches still to come"


def test_float16_scales_gradients_keeps_the_scale_and_learns_what_float32_does(tmp_path, monkeypatch):
    plain = module()
    expected = fit(plain, denoising(plain), settings(), label="x", seed=5)
    monkeypatch.setattr("lib.runtime.training.half", lambda device: torch.float16)
    monkeypatch.setattr("lib.runtime.training.Accelerator", Scaling)
    net, seen = module(), []
    net[2].register_forward_hook(lambda layer, given, out: seen.append(out.dtype))
    curve = fit(net, denoising(net), settings(precision="bf16"), label="x", seed=5, work=tmp_path)
    assert set(seen) == {torch.float16}
    assert curve["loss"].tolist() == pytest.approx(expected["loss"].tolist(), rel=5e-3)
    with safe_open(tmp_path / "progress.safetensors", "pt") as saved:
        assert json.loads(saved.metadata()["scaler"])["scale"] == 512.0 * 2**4, "12 steps, doubled every third"


def test_a_save_between_two_rows_of_the_curve_keeps_the_losses_since(tmp_path):
    """205 steps: a row every second step, a save at step 5."""
    chosen = settings(steps=205, save_every=5)
    whole, net = module(), module()
    expected = fit(whole, denoising(whole), chosen, label="x", seed=5)
    with pytest.raises(KeyboardInterrupt):
        fit(net, denoising(net, kill_at=5), chosen, label="x", seed=5, work=tmp_path)
    net = module()
    curve = fit(net, denoising(net), chosen, label="x", seed=5, work=tmp_path)
    pd.testing.assert_frame_equal(curve, expected, check_exact=True)


def test_killed_while_saving_keeps_the_save_before(tmp_path, monkeypatch):
    net = module()
    with pytest.raises(KeyboardInterrupt):
        fit(net, denoising(net, kill_at=5), settings(), label="x", seed=5, work=tmp_path)
    before = (tmp_path / "progress.safetensors").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(module(), denoising(module()), settings(), label="x", seed=5, work=tmp_path)
    assert (tmp_path / "progress.safetensors").read_bytes() == before


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: flipped(content, len(content) - 1),
        lambda content: flipped(content, len(content) // 2),
        lambda content: content.replace(b'"step":"4"', b'"step":"8"'),
        lambda content: content.replace(b"parameter/0.weight", b"parameter/2.weight"),
        lambda content: content.replace(b'"sha256"', b'"sha255"'),
    ],
)
def test_damaged_progress_is_told_and_the_training_begins_again(tmp_path, damage):
    """Cut, emptied, a flipped bit, another step: none of it may give another model."""
    plain, net = module(), module()
    expected = fit(plain, denoising(plain), settings(), label="x", seed=5)
    with pytest.raises(KeyboardInterrupt):
        fit(net, denoising(net, kill_at=5), settings(), label="x", seed=5, work=tmp_path)
    file = tmp_path / "progress.safetensors"
    before = file.read_bytes()
    file.write_bytes(damage(before))
    assert file.read_bytes() != before
    net = module()
    with pytest.warns(UserWarning, match="progress.safetensors is damaged; this training begins again"):
        curve = fit(net, denoising(net), settings(), label="x", seed=5, work=tmp_path)
    pd.testing.assert_frame_equal(curve, expected, check_exact=True)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in plain.state_dict().items())


def test_seed_and_label_choose_the_batches():
    def batches(seed, label):
        net, seen = module(), []
        fit(net, denoising(net, seen=seen), settings(), label=label, seed=seed)
        return seen

    assert batches(0, "a") == batches(0, "a")
    assert batches(0, "a") != batches(1, "a")
    assert batches(0, "a") != batches(0, "b")
    assert len({str(rows) for rows in batches(0, "a")}) == 12


def test_only_parameters_that_require_gradients_move():
    net, start = module(), module().state_dict()
    fit(net, denoising(net), settings(), label="x", seed=0)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == {"0.weight", "2.weight", "2.bias"}
    assert not net.training


def test_first_step_is_adamw_by_hand():
    """Step 1 of Adam moves each parameter by lr·sign(gradient), after decoupled decay."""
    weight = nn.Parameter(torch.tensor([2.0, -3.0]))
    net = nn.ParameterDict({"w": weight})
    chosen = settings(steps=1, warmup=0, lr=0.1, weight_decay=0.5)
    fit(net, lambda draw: (weight * torch.tensor([0.3, 0.2])).sum(), chosen, label="x", seed=0)
    expected = torch.tensor([2.0, -3.0]) * (1 - 0.1 * 0.5) - 0.1
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-5)


def test_learning_rate_warms_up_linearly_then_falls_as_a_cosine():
    chosen = settings(steps=104, warmup=4, lr=0.4)
    assert [learning_rate(k, chosen) for k in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert learning_rate(54, chosen) == pytest.approx(0.2)
    assert learning_rate(29, chosen) == pytest.approx(0.4 * math.cos(math.pi / 8) ** 2)
    assert learning_rate(104, chosen) == pytest.approx(0)


def test_curve_holds_mean_losses_and_the_rate_used():
    """250 steps give a row every second step; the values 0, 1, 2, … make each row's mean known."""
    weight = nn.Parameter(torch.ones(1))
    values = iter(range(250))
    chosen = settings(steps=250, warmup=10, lr=1e-6, watch_every=None)
    curve = fit(
        nn.ParameterDict({"w": weight}), lambda draw: weight.sum() * 0 + next(values), chosen, label="x", seed=0
    )
    assert curve["step"].tolist() == list(range(2, 251, 2))
    assert curve["loss"].tolist() == pytest.approx([k + 0.5 for k in range(0, 250, 2)])
    assert curve["lr"].tolist() == [learning_rate(k - 1, chosen) for k in range(2, 251, 2)]


@pytest.mark.parametrize(("every", "steps"), [(5, [5, 10, 12]), (6, [6, 12]), (None, [])])
def test_watch_is_called_every_so_often_and_at_the_end(every, steps):
    net, calls = module(), []

    def watch(step: int) -> dict[str, float]:
        calls.append((step, net.training))
        return {"asr": step / 100}

    loss = denoising(net)

    def checked(draw):
        assert net.training
        return loss(draw)

    curve = fit(net, checked, settings(watch_every=every), label="x", seed=0, watch=watch)
    assert calls == [(step, False) for step in steps]
    watched = curve.dropna(subset="asr") if steps else curve.iloc[:0].assign(asr=[])
    assert watched["step"].tolist() == steps and watched["asr"].tolist() == [step / 100 for step in steps]
    assert ("asr" in curve) == bool(steps)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(bad):
    net = module()
    loss, count = denoising(net), iter(range(99))
    with pytest.raises(FloatingPointError, match=f"probe: the loss at step 3 is {bad}; lower lr=0.01"):
        fit(net, lambda d: loss(d) * (bad if next(count) == 3 else 1), settings(), label="probe", seed=0)


def test_stacked_curves_are_told_apart():
    a, b = pd.DataFrame({"loss": [1.0]}), pd.DataFrame({"loss": [2.0, 3.0]})
    assert stacked({"or": a, "and": b})["run"].tolist() == ["or", "and", "and"]
