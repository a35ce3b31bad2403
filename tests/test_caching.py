"""Exact logits in less work, and the approximate caches against a slow reference that computes everything."""

import pytest
import tiny
import torch

from lib.caching import CACHES, ResponseLogits
from lib.config import generator
from lib.decoding import decode
from lib.models.mdlm import ATTENTION

LENGTH = 12


def model(seed=0, attention="bidirectional"):
    """With large weights and three layers, so that positions matter to one another and errors would spread."""
    made, draw = tiny.mdlm(seed, attention=attention, layers=3).model, generator(seed)
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


class AnewEachStep(ResponseLogits):
    def logits_at(self, tokens, rows, positions):
        self.anew = True
        return super().logits_at(tokens, rows, positions)


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


@pytest.mark.parametrize("attention", ATTENTION)
class TestExact:
    @pytest.mark.parametrize("threshold", [None, 0.3, 0.7])
    @pytest.mark.parametrize("block", [4, 12])
    @pytest.mark.parametrize("seed", range(3))
    def test_tokens_are_those_of_the_models_logits(self, attention, threshold, block, seed):
        made = model(seed, attention)
        given = inputs(made, seed=seed)
        options = {"block_length": block, "threshold": threshold}
        decoded = fill(ResponseLogits(made, *given), made, **options)
        expected = fill(plain(made, *given), made, **options)
        assert torch.equal(decoded.tokens, expected.tokens)
        torch.testing.assert_close(decoded.probability, expected.probability, rtol=1e-4, atol=0)
        assert len(decoded.tokens.unique()) > 8 and len(decoded.tokens.unique(dim=0)) == 5

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_logits_of_any_rows_and_positions(self, attention, dtype):
        made = model(0, attention).to(dtype)
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

    def test_a_shorter_response_than_the_model_takes(self, attention):
        made = model(0, attention)
        given = inputs(made)
        options = {"length": 7, "block_length": 3, "steps": 9}
        decoded = fill(ResponseLogits(made, *given), made, **options)
        assert torch.equal(decoded.tokens, fill(plain(made, *given), made, **options).tokens)

    def test_a_padded_batch_gives_the_tokens_of_each_row_alone(self, attention):
        made = model(0, attention)
        vision, prompt = inputs(made)
        together = fill(ResponseLogits(made, vision, prompt), made, threshold=0.5).tokens
        for row in range(5):
            words = prompt[row : row + 1, : prompt.shape[1] - 2 * row]
            alone = fill(ResponseLogits(made, vision[row : row + 1], words), made, batch=1, threshold=0.5)
            assert torch.equal(alone.tokens[0], together[row])

    def test_rows_that_fill_other_positions(self, attention):
        made = model(0, attention)
        given = inputs(made)
        draw = generator(4)
        tokens = torch.randint(4, made.config.vocab_size, (5, LENGTH), generator=draw)
        where = torch.rand(5, LENGTH, generator=draw).argsort(1).argsort(1) < 6
        options = {"steps": 6, "block_length": 3, "mask_id": made.config.mask_id}
        decoded = decode(ResponseLogits(made, *given), tokens, where, **options)
        assert torch.equal(decoded.tokens, decode(plain(made, *given), tokens, where, **options).tokens)

    def test_behind_the_last_attention_only_masked_positions_are_computed(self, attention, computed):
        made = model(0, attention)
        given = inputs(made)
        computed.clear()
        fill(ResponseLogits(made, *given), made)
        before = made.config.vision_length + made.config.prompt_length
        if attention == "prefix":
            assert computed[:2] == [(5, before)] * 2  # once; the last block's keys and values need no MLP
            del computed[:2]
        through = LENGTH + (before if attention == "bidirectional" else 0)
        assert computed == [(5, n) for left in range(LENGTH, 0, -1) for n in (through, through, left)]


class TestApproximate:
    @pytest.mark.parametrize("attention", ATTENTION)
    @pytest.mark.parametrize("cache", CACHES)
    @pytest.mark.parametrize("block", [1, 3, 12])
    def test_one_step_a_block_is_exact(self, cache, attention, block):
        made = model(0, attention)
        given = inputs(made)
        options = {"block_length": block, "steps": LENGTH // block}
        decoded = fill(ResponseLogits(made, *given, cache), made, **options)
        assert torch.equal(decoded.tokens, fill(plain(made, *given), made, **options).tokens)

    @pytest.mark.parametrize("attention", ATTENTION)
    @pytest.mark.parametrize("cache", CACHES)
    @pytest.mark.parametrize("threshold", [None, 0.5])
    def test_computed_anew_at_every_step_it_is_exact(self, cache, attention, threshold):
        made = model(0, attention)
        given = inputs(made)
        options = {"block_length": 4, "threshold": threshold}
        decoded = fill(AnewEachStep(made, *given, cache), made, **options)
        assert torch.equal(decoded.tokens, fill(plain(made, *given), made, **options).tokens)

    @torch.no_grad()
    @pytest.mark.parametrize("attention", ATTENTION)
    @pytest.mark.parametrize("cache", CACHES)
    def test_logits_are_those_with_stale_keys_and_values(self, cache, attention):
        """A forward pass of everything in which those of positions outside are put back to the first step's."""
        made = model(0, attention).double()
        vision, prompt = inputs(made)
        vision, before = vision.double(), vision.shape[1] + prompt.shape[1]
        draw, whole = generator(5), before + LENGTH
        block = torch.arange(4, 8).expand(5, -1)
        first, later = (torch.randint(4, made.config.vocab_size, (5, LENGTH), generator=draw) for _ in range(2))
        visible = torch.ones(5, 1, whole, whole, dtype=torch.bool)
        visible[:, :, :, before - prompt.shape[1] : before] &= (prompt != made.config.pad_id)[:, None, None]
        if attention == "prefix":
            visible[:, :, :before, before:] = False
        stale = torch.ones(whole, dtype=torch.bool)
        stale[before + 4 : before + 8 if cache == "dual" else whole] = False

        def forward(response, kept):
            x = torch.cat([vision, made.embedding(prompt), made.embedding(response)], 1) + made.position
            layers = []
            for k, layer in enumerate(made.blocks):
                normed = layer.before_attention(x)
                parts = layer.qkv(normed).view(5, whole, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
                queries, keys, values = parts.unbind()
                if kept:
                    keys, values = (
                        torch.where(stale[:, None], old, new) for old, new in zip(kept[k], (keys, values), strict=True)
                    )
                layers.append((keys, values))
                scores = (queries @ keys.transpose(-1, -2)) / keys.shape[-1] ** 0.5
                mixed = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ values
                x = x + layer.out(mixed.transpose(1, 2).reshape(5, whole, -1))
                x = x + layer.mlp(layer.before_mlp(x))
            return made.head(made.norm(x[:, before:])), layers

        expected, layers = forward(first, None)
        cached = ResponseLogits(made, vision, prompt, cache)
        cached.start_block(block)
        got = cached.logits_at(first, torch.arange(5), block)
        torch.testing.assert_close(got, expected[:, 4:8].float(), rtol=0, atol=1e-4)
        for rows in (torch.arange(5), torch.tensor([1, 3, 4])):
            expected = forward(later, layers)[0]
            got = cached.logits_at(later, rows, block[rows].flip(1))
            torch.testing.assert_close(got, expected[rows, 4:8].flip(1).float(), rtol=0, atol=1e-4)
        assert (got - forward(later, None)[0][rows, 4:8].flip(1)).abs().max() > 0.1  # and not the exact ones

    @pytest.mark.parametrize("cache", CACHES)
    @pytest.mark.parametrize("threshold", [None, 0.5])
    @pytest.mark.parametrize("attention", ATTENTION)
    def test_fills_everything_and_never_with_the_mask_token(self, cache, threshold, attention):
        made = model(0, attention)
        made.head.weight.data[made.config.mask_id] += 3
        tokens = fill(ResponseLogits(made, *inputs(made), cache), made, block_length=4, threshold=threshold).tokens
        assert (tokens != made.config.mask_id).all() and (tokens < made.config.vocab_size).all()

    @pytest.mark.parametrize("cache", CACHES)
    def test_only_the_block_and_what_may_change_is_computed(self, cache, computed):
        made = model()
        given = inputs(made)
        whole = made.config.vision_length + made.config.prompt_length + LENGTH
        fill(ResponseLogits(made, *given, cache), made, block_length=4)
        steps = [(first, left) for first in (0, 4, 8) for left in (4, 3, 2, 1)]
        later = {"dual": lambda first: 4, "prefix": lambda first: LENGTH - first}[cache]
        assert computed == [
            (5, n) for first, left in steps for n in [*[whole if left == 4 else later(first)] * 2, left]
        ]

    @pytest.mark.parametrize("cache", CACHES)
    def test_is_near_the_exact_tokens_where_positions_hardly_matter_to_one_another(self, cache):
        """Weights of first initialisation: what goes stale is then of little weight."""
        made = tiny.mdlm(layers=3).model
        given = inputs(made)
        tokens = [fill(ResponseLogits(made, *given, kind), made, block_length=4).tokens for kind in (None, cache)]
        assert (tokens[0] == tokens[1]).double().mean() > 0.9


def test_no_gradient_and_no_argument_is_written_on():
    made = model(attention="prefix")
    vision, prompt = inputs(made)
    copies, weights = (vision.clone(), prompt.clone()), [p.clone() for p in made.parameters()]
    logits = ResponseLogits(made, vision, prompt, "dual")
    logits.start_block(torch.arange(LENGTH).expand(5, -1))
    tokens = torch.full((5, LENGTH), made.config.mask_id)
    assert not logits.logits_at(tokens, torch.arange(5), torch.zeros(5, 1).long()).requires_grad
    assert (tokens == made.config.mask_id).all()
    assert torch.equal(vision, copies[0]) and torch.equal(prompt, copies[1])
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), weights, strict=True))


def test_an_unknown_cache_is_refused():
    made = model()
    with pytest.raises(ValueError, match="cache='both' must be None or one of prefix, dual"):
        ResponseLogits(made, *inputs(made), "both")
