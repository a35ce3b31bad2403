"""Low-rank adapters: what is trained, what is not, and that merging them changes nothing but their form."""

import pytest
import tiny
import tiny_llada_v
import torch

from lib.models.adapters import adapted, adapted_unet
from lib.models.llada_v import LladaV
from lib.models.mdlm import masked_diffusion_loss
from lib.runtime.seeds import generator
from lib.settings.sections import Lora

LORA = Lora(rank=4, alpha=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llada_v.write(tmp_path_factory.mktemp("llada-v"))


@pytest.fixture
def made(folder) -> LladaV:
    return LladaV.load(folder)


def given(made: LladaV) -> tuple:
    with torch.no_grad():
        vision = made.model.vision_tokens(torch.rand(2, 3, 28, 28, generator=generator(0)))
    return vision, made.prompts(["is it red?", "is it?"]), made.responses(["yes", "no"])


def step(made: LladaV, half: bool = False) -> list[float]:
    """Adam steps on one batch; the losses."""
    learning = [parameter for parameter in made.model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.Adam(learning, lr=0.02), []
    made.model.train()
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = masked_diffusion_loss(made.model, *given(made), generator(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    made.model.eval()
    return losses


@torch.no_grad()
def logits(made: LladaV) -> torch.Tensor:
    return made.model.logits(*given(made))


def test_at_first_the_adapters_change_nothing(made):
    before, names = logits(made), set(made.model.state_dict())
    with adapted(made.model, LORA, 0):
        assert logits(made).equal(before)
    assert logits(made).equal(before) and set(made.model.state_dict()) == names


def test_the_decoders_projections_learn_and_nothing_else(made):
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    with adapted(made.model, LORA, 0):
        learning = {name: p.numel() for name, p in made.model.named_parameters() if p.requires_grad}
        wide, inner = tiny_llada_v.WIDTH, tiny_llada_v.MLP
        assert sum(learning.values()) == 2 * 4 * (4 * 2 * wide + 3 * (wide + inner))
        losses = step(made)
        inside = logits(made)
    after = made.model.state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert losses[-1] < losses[0] and set(after) == set(before)
    ends = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layers = [f"model.layers.{k}." for k in range(tiny_llada_v.LAYERS)]
    expected = {n for n in before if n.startswith(tuple(layers)) and n.removesuffix(".weight").endswith(ends)}
    assert changed == expected and len(expected) == 7 * tiny_llada_v.LAYERS
    torch.testing.assert_close(logits(made), inside, rtol=0, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in made.model.parameters())
    for name in expected:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= LORA.rank


def test_the_same_seed_gives_the_same_training_and_leaves_the_global_numbers_alone(folder):
    ends = []
    for seed in (0, 0, 1):
        made = LladaV.load(folder)
        torch.manual_seed(7)
        with adapted(made.model, LORA, seed):
            step(made)
        ends.append((logits(made), torch.rand(())))
    assert ends[0][0].equal(ends[1][0]) and not ends[0][0].equal(ends[2][0])
    assert ends[0][1] == ends[2][1]


def test_in_bfloat16_the_adapters_are_in_float32(folder):
    made = LladaV.load(folder, dtype=torch.bfloat16)
    with adapted(made.model, LORA, 0):
        learning = [p for p in made.model.parameters() if p.requires_grad]
        assert {p.dtype for p in learning} == {torch.float32}
        losses = step(made, half=True)
    assert losses[-1] < losses[0] and {p.dtype for p in made.model.parameters()} == {torch.bfloat16}


def test_without_adapters_nothing_is_touched_and_our_own_model_takes_none(made):
    before = [parameter.requires_grad for parameter in made.model.parameters()]
    with adapted(made.model, None, 0):
        assert [parameter.requires_grad for parameter in made.model.parameters()] == before
    refusal = pytest.raises(ValueError, match="is for a published model: for MdlmModel it must be null")
    with refusal, adapted(tiny.mdlm().model, LORA, 0):
        pass


@pytest.mark.parametrize("lora", [LORA, None])
def test_activations_of_a_published_model_are_computed_again_within(made, lora):
    def flags() -> set[bool]:
        return {part.gradient_checkpointing for part in made.model.modules() if hasattr(part, "gradient_checkpointing")}

    assert flags() == {False}
    with adapted(made.model, lora, 0):
        assert True in flags()
    assert flags() == {False}
    own = tiny.mdlm()
    with adapted(own.model, None, 0):
        assert not getattr(own.model, "gradient_checkpointing", False)


def unet_output(unet) -> torch.Tensor:
    latents = torch.randn(2, 8, 16, 16, generator=generator(2))
    text = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator(3))
    return unet(latents, torch.tensor([5, 900]), encoder_hidden_states=text).sample


@pytest.mark.parametrize("lora", [LORA, None])
def test_of_a_unet_all_attention_learns_by_adapters_or_everything_without(lora):
    unet = tiny.editor().unet
    before, start = {name: value.clone() for name, value in unet.state_dict().items()}, unet_output(unet).detach()
    with adapted_unet(unet, lora, 0):
        torch.testing.assert_close(unet_output(unet), start, rtol=1e-4, atol=1e-5)
        optimizer = torch.optim.SGD([p for p in unet.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            unet_output(unet).square().mean().backward()
            optimizer.step()
        inside = unet_output(unet)
    torch.testing.assert_close(unet_output(unet), inside, rtol=1e-4, atol=1e-4)
    after = unet.state_dict()
    assert set(after) == set(before)
    changed = {name for name in before if not before[name].equal(after[name])}
    ends = tuple(f".attn{k}.to_{part}.weight" for k in (1, 2) for part in ("q", "k", "v", "out.0"))
    attention = {name for name in before if name.endswith(ends)}
    assert attention and changed > attention if lora is None else changed == attention
    for name in changed if lora else ():
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= lora.rank
