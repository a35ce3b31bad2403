"""Exact logits in less work than computing everything."""

import pytest
import tiny
import torch

from lib.models.decoding import decode
from lib.models.mdlm import ResponseLogits
from lib.runtime.seeds import generator

LENGTH = 12


def model(seed=0):
    """With large weights and three layers, so that positions matter to one another and errors would spread."""
    made, draw = tiny.mdlm(seed, layers=3).model, generator(seed)
    for weight in [p for p in made.blocks.parameters() if p.ndim == 2]:
        torch.nn.init.normal_(weight, std=0.3, generator=draw)
    torch.nn.init.normal_(made.head.weight, generator=draw)
    return made


def inputs(made, batch=5, seed=1):
    """Pictures, and prompts of different lengths."""
    config, draw = made.config, generator(seed)
    vision = torch.randn(batch, config.vision_length, config.width, generator=draw)
    prompt = torch.randint(4, config.vocab_size, (batch, config.prompt_length), generator=draw)
    for row in range(batch):
        prompt[row, config.prompt_length - 2 * row :] = config.pad_id
    return vision, prompt


def fill(logits_fn, made, batch=5, length=LENGTH, **options):
    """Decoded by the option's settings, the whole response to fill."""
    blank = torch.zeros(batch, length).long()
    options = {"steps": length, "block_length": length, "mask_id": made.config.mask_id} | options
    return decode(logits_fn, blank, torch.ones_like(blank, dtype=torch.bool), **options)


def plain(made, vision, prompt):
    return lambda tokens: made.logits(vision, prompt, tokens)


@pytest.fixture
def computed(monkeypatch):
    """[row, position] shapes that went through each MLP, call by call, and the blocks' number of calls."""
    seen = []
    through = torch.nn.GELU.forward

    def spy(self, x):
        seen.append(tuple(x.shape[:2]))
        return through(self, x)

    monkeypatch.setattr(torch.nn.GELU, "forward", spy)
    return seen


@pytest.mark.parametrize("threshold", [None, 0.3, 0.7])
@pytest.mark.parametrize("block", [4, 12])
@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_those_of_the_models_logits(threshold, block, seed):
    made = model(seed)
    given = inputs(made, seed=seed)
    options = {"block_length": block, "threshold": threshold}
    decoded = fill(ResponseLogits(made, *given), made, **options)
    expected = fill(plain(made, *given), made, **options)
    assert torch.equal(decoded.tokens, expected.tokens)
    torch.testing.assert_close(decoded.probability, expected.probability, rtol=1e-4, atol=0)
    assert len(decoded.tokens.unique()) > 8 and len(decoded.tokens.unique(dim=0)) == 5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_logits_of_any_rows_and_positions(dtype):
    made = model().to(dtype)
    vision, prompt = inputs(made)
    vision = vision.to(dtype)
    response = torch.randint(4, made.config.vocab_size, (5, LENGTH), generator=generator(2))
    expected = made.logits(vision, prompt, response)
    own, tolerance = ResponseLogits(made, vision, prompt), 0.5 if dtype == torch.bfloat16 else 1e-4
    own.start_block(torch.arange(LENGTH).expand(5, -1))
    for rows in ([0, 1, 2, 3, 4], [0, 2, 3], [2]):
        rows = torch.tensor(rows)
        positions = torch.rand(len(rows), LENGTH, generator=generator(3)).argsort(1)[:, :4]
        got = own.logits_at(response, rows, positions)
        torch.testing.assert_close(got, expected[rows[:, None], positions], rtol=0, atol=tolerance)


def test_a_shorter_response_than_the_model_takes():
    made = model()
    given = inputs(made)
    options = {"length": 7, "block_length": 3, "steps": 9}
    decoded = fill(ResponseLogits(made, *given), made, **options)
    assert torch.equal(decoded.tokens, fill(plain(made, *given), made, **options).tokens)


def test_a_padded_batch_gives_the_tokens_of_each_row_alone():
    made = model()
    vision, prompt = inputs(made)
    together = fill(ResponseLogits(made, vision, prompt), made, threshold=0.5).tokens
    for row in range(5):
        words = prompt[row : row + 1, : prompt.shape[1] - 2 * row]
        alone = fill(ResponseLogits(made, vision[row : row + 1], words), made, batch=1, threshold=0.5)
        assert torch.equal(alone.tokens[0], together[row])


def test_rows_that_fill_other_positions():
    made = model()
    given = inputs(made)
    draw = generator(4)
    tokens = torch.randint(4, made.config.vocab_size, (5, LENGTH), generator=draw)
    where = torch.rand(5, LENGTH, generator=draw).argsort(1).argsort(1) < 6
    options = {"steps": 6, "block_length": 3, "mask_id": made.config.mask_id}
    decoded = decode(ResponseLogits(made, *given), tokens, where, **options)
    assert torch.equal(decoded.tokens, decode(plain(made, *given), tokens, where, **options).tokens)


def test_behind_the_last_attention_only_masked_positions_are_computed(computed):
    made = model()
    given = inputs(made)
    computed.clear()
    fill(ResponseLogits(made, *given), made)
    before = made.config.vision_length + made.config.prompt_length
    assert computed == [(5, n) for left in range(LENGTH, 0, -1) for n in (before + LENGTH, before + LENGTH, left)]


def test_no_gradient_and_no_argument_is_written_on():
    made = model()
    vision, prompt = inputs(made)
    copies, weights = (vision.clone(), prompt.clone()), [p.clone() for p in made.parameters()]
    logits = ResponseLogits(made, vision, prompt)
    logits.start_block(torch.arange(LENGTH).expand(5, -1))
    tokens = torch.full((5, LENGTH), made.config.mask_id)
    assert not logits.logits_at(tokens, torch.arange(5), torch.zeros(5, 1).long()).requires_grad
    assert (tokens == made.config.mask_id).all()
    assert torch.equal(vision, copies[0]) and torch.equal(prompt, copies[1])
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), weights, strict=True))
