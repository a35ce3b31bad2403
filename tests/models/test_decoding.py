import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.models.decoding import decode, generate
from lib.models.ending import ENDS

VOCAB, MASK = 11, 10


class Model:
    """Logits that depend on every token and its place, row by row; keeps what it was asked."""

    def __init__(self, length, seed=0, vocab=VOCAB, sharpness=1.0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        self.embedding, self.place, self.mix, self.head = (
            torch.randn(*shape, generator=generator, dtype=torch.float64)
            for shape in [(vocab, 8), (length, 8), (length, length), (8, vocab)]
        )
        self.sharpness, self.dtype, self.seen = sharpness, dtype, []

    def __call__(self, tokens):
        self.seen.append(tokens.clone())
        hidden = self.embedding[tokens.long()] + self.place
        hidden = (hidden + self.mix @ hidden).tanh()
        return (self.sharpness * hidden @ self.head).to(self.dtype)


def fixed(table):
    """A model that gives the same [length, vocab] logits whatever the tokens; keeps what it was asked."""

    def model(tokens):
        model.seen.append(tokens.clone())
        return table.expand(len(tokens), *table.shape)

    model.seen = []
    return model


def place_by_place(*placed):
    """[length, VOCAB] logits from a (token, probability) for each position, the rest spread evenly."""
    table = torch.zeros(len(placed), VOCAB, dtype=torch.float64)
    for position, (token, probability) in enumerate(placed):
        table[position] = math.log((1 - probability) / (VOCAB - 2))
        table[position, token] = math.log(probability)
    table[:, MASK] = -math.inf
    return table


def reference(
    logits_fn,
    tokens,
    generable,
    steps,
    block_length,
    mask_id,
    threshold=None,
    remasking="low_confidence",
    eos_id=None,
    end="free",
):
    """LLaDA's low-confidence decoding at temperature 0 (arXiv 2502.09992), by row in plain Python."""
    answers = []
    for row, open_row in zip(tokens.tolist(), generable.tolist(), strict=True):
        where = [k for k, is_open in enumerate(open_row) if is_open]
        for k in where:
            row[k] = mask_id
        blocks = [where[k : k + block_length] for k in range(0, len(where), block_length)]
        stopped = math.inf
        for block in blocks:
            todo, step = [k for k in block if k < stopped], 0
            share = steps // len(blocks)
            while todo:
                logits = logits_fn(torch.tensor([row]))[0].double().tolist()
                proposals = []
                for k in todo:
                    never = {mask_id, eos_id} if end == "suppressed" else {mask_id}
                    scores = [-math.inf if v in never else x for v, x in enumerate(logits[k])]
                    top = max(scores)
                    weights = [math.exp(x - top) for x in scores]
                    chances = sorted((w / sum(weights) for w in weights), reverse=True)
                    rank = {
                        "low_confidence": 1 / sum(weights),
                        "margin": chances[0] - chances[1],
                        "entropy": sum(p * math.log(p) for p in chances if p > 0),
                    }[remasking]
                    proposals.append((-rank, k, scores.index(top), 1 / sum(weights)))
                early = [p for p in proposals if end != "last" or p[2] != eos_id] or proposals
                ranked = sorted(early) + sorted(p for p in proposals if p not in early)
                if threshold is None:
                    filled = ranked[: len(block) // share + (1 if step < len(block) % share else 0)]
                else:
                    filled = [p for p in ranked if p == ranked[0] or (p[3] >= threshold and p in early)]
                for _, k, token, _ in filled:
                    row[k] = token
                    todo.remove(k)
                    if end == "stop" and token == eos_id:
                        stopped = min(stopped, k)
                todo = [k for k in todo if k < stopped]
                step += 1
        for k in where:
            row[k] = eos_id if row[k] == mask_id else row[k]
        answers.append(row)
    return torch.tensor(answers, dtype=tokens.dtype).reshape(tokens.shape)


def case(batch, length, count, seed):
    """Random tokens, some of them MASK, and `count` positions to fill per row, others in every row."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (batch, length), generator=generator)
    tokens[torch.rand(batch, length, generator=generator) < 0.2] = MASK
    generable = torch.zeros(batch, length, dtype=torch.bool)
    for row in generable:
        row[torch.randperm(length, generator=generator)[:count]] = True
    return tokens, generable


cases = st.builds(
    lambda batch, block, blocks, extra, share, seed: (
        *case(batch, block * blocks + extra, block * blocks, seed),
        {"steps": share * blocks, "block_length": block, "mask_id": MASK},
    ),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 5),
    st.integers(1, 8),
    st.integers(0, 10**6),
)


class TestAgainstReference:
    @given(cases, st.integers(0, 100))
    def test_quota(self, drawn, seed):
        tokens, generable, options = drawn
        model = Model(tokens.shape[1], seed)
        result = generate(model, tokens, generable, **options)
        assert torch.equal(result, reference(Model(tokens.shape[1], seed), tokens, generable, **options))

    @given(cases, st.integers(0, 100), st.sampled_from([1e-6, 0.15, 0.3, 0.6, 0.95, 1.0]))
    def test_threshold(self, drawn, seed, threshold):
        tokens, generable, options = drawn
        options["threshold"] = threshold
        model = Model(tokens.shape[1], seed)
        result = generate(model, tokens, generable, **options)
        assert torch.equal(result, reference(Model(tokens.shape[1], seed), tokens, generable, **options))

    @given(
        cases,
        st.integers(0, 100),
        st.sampled_from([None, 0.2, 0.6]),
        st.sampled_from(["low_confidence", "margin", "entropy"]),
        st.sampled_from(ENDS),
        st.integers(0, VOCAB - 2),
    )
    def test_other_ranks_and_the_end_token(self, drawn, seed, threshold, remasking, end, eos_id):
        tokens, generable, options = drawn
        options |= {"threshold": threshold, "remasking": remasking, "eos_id": eos_id, "end": end}
        model = Model(tokens.shape[1], seed)
        result = generate(model, tokens, generable, **options)
        assert torch.equal(result, reference(Model(tokens.shape[1], seed), tokens, generable, **options))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    @pytest.mark.parametrize("sharpness", [0.1, 1.0, 10.0])
    def test_dtypes(self, dtype, sharpness):
        """Confidence is that of the logits as given: ties are true ties, and go to the earliest position."""
        for seed in range(5):
            tokens, generable = case(3, 14, 12, seed)
            options = {"steps": 6, "block_length": 6, "mask_id": MASK}
            model = Model(14, seed, sharpness=sharpness, dtype=dtype)
            assert torch.equal(
                generate(model, tokens, generable, **options), reference(model, tokens, generable, **options)
            )

    @given(st.integers(1, 11), st.integers(1, 12), st.integers(1, 3), st.integers(0, 100))
    def test_a_last_block_may_be_shorter(self, count, block, share, seed):
        tokens, generable = case(2, 12, count, seed)
        options = {"steps": share * -(-count // block), "block_length": block, "mask_id": MASK}
        result = generate(Model(12, seed), tokens, generable, **options)
        assert torch.equal(result, reference(Model(12, seed), tokens, generable, **options))

    def test_reference_itself_depends_on_its_order(self):
        """The cases tell decoding orders apart: other steps and other blocks give other tokens."""
        tokens, generable = case(4, 16, 16, 0)
        results = [
            reference(Model(16), tokens, generable, steps=steps, block_length=block, mask_id=MASK)
            for steps, block in [(1, 16), (16, 16), (4, 16), (16, 4)]
        ]
        options = {"steps": 16, "block_length": 16, "mask_id": MASK}
        ends = ({"eos_id": int(results[1][0, 0]), "end": end} for end in ENDS[1:])
        others = {"remasking": "margin"}, {"remasking": "entropy"}, *ends
        results += [reference(Model(16), tokens, generable, **options, **other) for other in others]
        assert len({str(result.tolist()) for result in results}) == 9

    def test_rows_do_not_depend_on_the_batch(self):
        tokens, generable = case(5, 12, 8, 3)
        options = {"steps": 4, "block_length": 4, "mask_id": MASK}
        for threshold in (None, 0.3):
            whole = generate(Model(12), tokens, generable, threshold=threshold, **options)
            for k in range(5):
                alone = generate(
                    Model(12), tokens[k : k + 1], generable[k : k + 1], threshold=threshold, **options
                )
                assert torch.equal(whole[k : k + 1], alone)


class TestProbability:
    def test_is_that_of_each_token_when_it_was_settled(self):
        """The model's logits change with what is filled: the reference decodes step by step and writes down."""
        tokens, generable = case(3, 14, 12, 4)
        model = Model(14)
        decoded = decode(model, tokens, generable, steps=6, block_length=6, mask_id=MASK)
        states = [*model.seen, decoded.tokens]
        for before, after in zip(states, states[1:], strict=False):
            logits = Model(14)(before).double()
            logits[..., MASK] = -math.inf
            for row, position in (before != after).nonzero().tolist():
                expected = logits[row, position].softmax(-1)[after[row, position]]
                torch.testing.assert_close(decoded.probability[row, position], expected)
        assert (decoded.probability[~generable] == 1).all()
        assert torch.equal(
            decoded.tokens, generate(Model(14), tokens, generable, steps=6, block_length=6, mask_id=MASK)
        )

    def test_with_a_threshold_shows_what_was_filled_unsure(self):
        model = fixed(place_by_place((1, 0.5), (2, 0.9), (3, 0.3)))
        generable = torch.tensor([[True, True, True]])
        options = {"steps": 3, "block_length": 3, "mask_id": MASK, "threshold": 0.8}
        decoded = decode(model, torch.zeros(1, 3).long(), generable, **options)
        expected = torch.tensor([[0.5, 0.9, 0.3]], dtype=torch.float64)
        torch.testing.assert_close(decoded.probability, expected)


class TestOrder:
    @pytest.mark.parametrize(
        "remasking, order", [("low_confidence", [2, 0, 1]), ("margin", [1, 2, 0]), ("entropy", [0, 2, 1])]
    )
    def test_the_ranks_differ(self, remasking, order):
        """Two likely tokens; one, and the rest even; one, a second, and the rest even."""
        table = torch.tensor([[0.50, 0.45, 0], [0.48, 0, 0], [0.52, 0.30, 0]]).double()
        even = (table == 0).double()
        even = torch.cat([even, torch.ones(3, VOCAB - 4)], 1)
        table = torch.cat([table, torch.zeros(3, VOCAB - 4)], 1)
        table += even * (1 - table.sum(1, keepdim=True)) / even.sum(1, keepdim=True)
        model = fixed(torch.cat([table.log(), torch.full((3, 1), 50.0)], 1))
        options = {"steps": 3, "block_length": 3, "mask_id": MASK, "remasking": remasking}
        generate(model, torch.zeros(1, 3).long(), torch.ones(1, 3).bool(), **options)
        masked = [set((seen[0] == MASK).nonzero()[:, 0].tolist()) for seen in model.seen] + [set()]
        assert [(a - b).pop() for a, b in zip(masked, masked[1:], strict=False)] == order

    @pytest.mark.parametrize("remasking", ["low_confidence", "margin", "entropy"])
    def test_ties_take_the_earliest_position_in_every_rank(self, remasking):
        model = fixed(torch.zeros(40, VOCAB))
        options = {"steps": 40, "block_length": 40, "mask_id": 0, "remasking": remasking}
        generate(model, torch.zeros(1, 40).long(), torch.ones(1, 40).bool(), **options)
        assert all((seen[0, :step] == 1).all() and (seen[0, step:] == 0).all() for step, seen in enumerate(model.seen))

    def test_fills_by_quota_the_surest_first(self):
        model = fixed(place_by_place((1, 0.5), (2, 0.9), (3, 0.3), (4, 0.8), (5, 0.6)))
        generable = torch.ones(1, 5, dtype=torch.bool)
        result = generate(model, torch.zeros(1, 5).long(), generable, steps=3, block_length=5, mask_id=MASK)
        assert result.tolist() == [[1, 2, 3, 4, 5]]
        m = MASK
        assert [seen[0].tolist() for seen in model.seen] == [
            [m, m, m, m, m],
            [m, 2, m, 4, m],
            [1, 2, m, 4, 5],
        ]

    def test_ties_take_the_lowest_token_and_the_earliest_position(self):
        model = fixed(torch.zeros(20, VOCAB))
        generable = torch.ones(2, 20, dtype=torch.bool)
        result = generate(model, torch.zeros(2, 20).long(), generable, steps=20, block_length=20, mask_id=0)
        assert (result == 1).all()
        for step, seen in enumerate(model.seen):
            assert (seen[:, :step] == 1).all() and (seen[:, step:] == 0).all()

    def test_a_block_is_full_before_the_next_begins(self):
        """Even when the end-of-sequence token is far surer at the end: it waits for its block."""
        eos = 9
        model = fixed(place_by_place(*[(k, 0.3) for k in range(4)], *[(eos, 0.999)] * 4))
        generable = torch.ones(1, 8, dtype=torch.bool)
        options = {"steps": 8, "mask_id": MASK}
        result = generate(model, torch.zeros(1, 8).long(), generable, block_length=4, **options)
        assert result.tolist() == [[0, 1, 2, 3, eos, eos, eos, eos]]
        assert all((seen[:, 4:] == MASK).all() for seen in model.seen[:4])
        model.seen.clear()
        assert torch.equal(
            generate(model, torch.zeros(1, 8).long(), generable, block_length=8, **options), result
        )
        assert (model.seen[4][:, 4:] == eos).all() and (model.seen[4][:, :4] == MASK).all()

    def test_rows_fill_their_own_positions_in_order(self):
        generable = torch.tensor([[1, 0, 1, 0, 1, 1], [0, 1, 1, 1, 1, 0]]).bool()
        model = fixed(place_by_place(*[(k, 0.5) for k in range(6)]))
        tokens = torch.full((2, 6), 7)
        result = generate(model, tokens, generable, steps=2, block_length=2, mask_id=MASK)
        assert result.tolist() == [[0, 7, 2, 7, 4, 5], [7, 1, 2, 3, 4, 7]]
        assert model.seen[1].tolist() == [[0, 7, 2, 7, MASK, MASK], [7, 1, 2, MASK, MASK, 7]]

    @pytest.mark.parametrize(
        "count, block, steps, quotas",
        [
            (8, 8, 8, [1] * 8),
            (8, 8, 3, [3, 3, 2]),
            (8, 8, 1, [8]),
            (8, 8, 100, [1] * 8),
            (8, 4, 6, [2, 1, 1, 2, 1, 1]),
            (8, 2, 4, [2, 2, 2, 2]),
            (6, 3, 10, [1] * 6),
            (1, 1, 1, [1]),
        ],
    )
    def test_quotas_and_calls(self, count, block, steps, quotas):
        tokens, generable = case(3, count, count, 0)
        model = Model(count)
        result = generate(model, tokens, generable, steps=steps, block_length=block, mask_id=MASK)
        left = [(seen == MASK).sum(1).tolist() for seen in [*model.seen, result]]
        filled = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(left, left[1:], strict=False)]
        assert filled == [[quota] * 3 for quota in quotas]

    def test_huge_step_counts_cost_nothing(self):
        model = Model(4)
        tokens, generable = case(1, 4, 4, 0)
        generate(model, tokens, generable, steps=10**12, block_length=4, mask_id=MASK)
        assert len(model.seen) == 4


class TestHazards:
    def test_the_mask_value_elsewhere_is_left_alone(self):
        """Positions outside that hold the mask value take none of the quota, as they do in LLaDA-V."""
        tokens = torch.full((2, 30), MASK)
        generable = torch.zeros(2, 30, dtype=torch.bool)
        generable[:, 10:26] = True
        model = Model(30)
        result = generate(model, tokens, generable, steps=8, block_length=16, mask_id=MASK)
        assert (result[~generable] == MASK).all() and (result[generable] != MASK).all()
        assert len(model.seen) == 8

    @pytest.mark.parametrize("threshold", [None, 0.9])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_the_mask_token_is_never_emitted(self, threshold, temperature):
        table = torch.zeros(6, VOCAB)
        table[:, MASK] = 1000.0
        table[:, 3] = 20.0
        model = fixed(table)
        generable = torch.ones(2, 6, dtype=torch.bool)
        result = generate(
            model,
            torch.zeros(2, 6).long(),
            generable,
            steps=6,
            block_length=6,
            mask_id=MASK,
            threshold=threshold,
            temperature=temperature,
            seed=0,
        )
        assert (result == 3).all()
        assert len(model.seen) == (6 if threshold is None else 1)
        assert (table[:, MASK] == 1000).all()

    def test_its_logit_has_no_share_in_the_confidence(self):
        """Position 1 is surer of its token once the mask token is left out."""
        table = place_by_place((1, 0.6), (2, 0.7))
        table[1, MASK] = 5.0
        model = fixed(table)
        generate(
            model, torch.zeros(1, 2).long(), torch.ones(1, 2).bool(), steps=2, block_length=2, mask_id=MASK
        )
        assert model.seen[1].tolist() == [[MASK, 2]]

    def test_a_vocabulary_without_the_mask_token(self):
        tokens, generable = case(2, 6, 6, 0)
        table = torch.zeros(6, MASK)
        table[:, MASK - 1] = 1.0
        result = generate(fixed(table), tokens, generable, steps=3, block_length=6, mask_id=MASK)
        assert (result == MASK - 1).all()

    @given(cases, st.sampled_from([None, 0.2, 0.9]), st.sampled_from([0.0, 0.7]), st.booleans())
    def test_invariants(self, drawn, threshold, temperature, random):
        """Whatever the options: fixed positions stay, open ones are filled, the input is not written to."""
        tokens, generable, options = drawn
        before, open_before = tokens.clone(), generable.clone()
        result = generate(
            Model(tokens.shape[1]),
            tokens,
            generable,
            threshold=threshold,
            temperature=temperature,
            remasking="random" if random else "low_confidence",
            **options,
        )
        assert torch.equal(tokens, before) and torch.equal(generable, open_before)
        assert torch.equal(result[~generable], tokens[~generable])
        assert (result[generable] != MASK).all() and (result < VOCAB).all()

    def test_what_open_positions_held_does_not_matter(self):
        tokens, generable = case(3, 12, 8, 1)
        options = {"steps": 4, "block_length": 4, "mask_id": MASK}
        other = tokens.masked_fill(generable, 2)
        assert torch.equal(
            generate(Model(12), tokens, generable, **options),
            generate(Model(12), other, generable, **options),
        )

    def test_a_model_that_keeps_its_input_keeps_it_unchanged(self):
        kept = []

        def model(tokens):
            kept.append(tokens)
            return torch.zeros(*tokens.shape, VOCAB)

        generate(
            model, torch.zeros(1, 4).long(), torch.ones(1, 4).bool(), steps=4, block_length=4, mask_id=MASK
        )
        assert [int((tokens == MASK).sum()) for tokens in kept] == [4, 3, 2, 1]

    def test_nan_where_nothing_is_filled_is_no_concern(self):
        """Padded rows of attention are NaN in many models."""
        table = torch.zeros(4, VOCAB)
        table[:2] = math.nan
        generable = torch.tensor([[False, False, True, True]])
        result = generate(
            fixed(table), torch.full((1, 4), 5), generable, steps=1, block_length=2, mask_id=MASK
        )
        assert result.tolist() == [[5, 5, 0, 0]]

    def test_forbidden_tokens(self):
        """−∞ logits are how a caller forbids tokens."""
        table = torch.full((3, VOCAB), -math.inf)
        table[:, 4] = -1e30
        tokens, generable = case(1, 3, 3, 0)
        assert (generate(fixed(table), tokens, generable, steps=1, block_length=3, mask_id=MASK) == 4).all()

    def test_no_gradient(self):
        weight = torch.zeros(4, VOCAB, requires_grad=True)
        tokens, generable = case(2, 4, 4, 0)
        graphs = []

        def model(tokens):
            logits = (weight + 1).expand(2, 4, VOCAB)
            graphs.append(logits.requires_grad)
            return logits

        generate(model, tokens, generable, steps=2, block_length=4, mask_id=MASK)
        assert graphs == [False, False]


class TestThreshold:
    def test_fills_all_that_are_sure_and_one_at_least(self):
        model = fixed(place_by_place((1, 0.9), (2, 0.5), (3, 0.95), (4, 0.6)))
        result = generate(
            model,
            torch.zeros(1, 4).long(),
            torch.ones(1, 4).bool(),
            steps=1,
            block_length=4,
            mask_id=MASK,
            threshold=0.8,
        )
        m = MASK
        assert [seen[0].tolist() for seen in model.seen] == [[m, m, m, m], [1, m, 3, m], [1, m, 3, 4]]
        assert result.tolist() == [[1, 2, 3, 4]]

    def test_is_inclusive(self):
        model = fixed(torch.zeros(6, 5))  # without the mask token, four tokens at exactly 1/4
        options = {"steps": 1, "block_length": 6, "mask_id": 4}
        generate(model, torch.zeros(1, 6).long(), torch.ones(1, 6).bool(), threshold=0.25, **options)
        assert len(model.seen) == 1
        generate(model, torch.zeros(1, 6).long(), torch.ones(1, 6).bool(), threshold=0.25 + 1e-12, **options)
        assert len(model.seen) == 1 + 6

    def test_rows_finish_at_their_own_pace(self):
        """A finished row waits, unchanged, for the others of its block."""
        tables = torch.stack([place_by_place(*[(k, p) for k in range(4)]) for p in (0.9, 0.5)])
        seen = []

        def model(tokens):
            seen.append(tokens.clone())
            return tables

        result = generate(
            model,
            torch.zeros(2, 4).long(),
            torch.ones(2, 4).bool(),
            steps=2,
            block_length=2,
            mask_id=MASK,
            threshold=0.8,
        )
        assert result.tolist() == [[0, 1, 2, 3]] * 2
        m = MASK
        assert [tokens[0].tolist() for tokens in seen] == [[m] * 4, [0, 1, m, m], [0, 1, m, m], [0, 1, 2, 3]]
        assert len(seen) == 4

    @pytest.mark.parametrize("remasking", ["margin", "entropy"])
    def test_is_on_the_probability_whatever_the_rank(self, remasking):
        """Position 1 is first in rank; 0 and 3 are sure, though 0's margin is below the threshold; 2 is unsure."""
        table = place_by_place((1, 0.82), (2, 0.999), (3, 0.3), (4, 0.81))
        table[0] = torch.tensor([0.18 - 8e-9, 0.82, *[1e-9] * 8, 0]).log()
        model = fixed(table)
        options = {"steps": 1, "block_length": 4, "mask_id": MASK, "threshold": 0.8, "remasking": remasking}
        generate(model, torch.zeros(1, 4).long(), torch.ones(1, 4).bool(), **options)
        assert [seen[0].tolist() for seen in model.seen] == [[MASK] * 4, [1, 2, MASK, 4]]

    @pytest.mark.parametrize("then", [place_by_place(*[(7, 0.99)] * 4), torch.full((4, VOCAB), math.nan)])
    @pytest.mark.parametrize("end", [{}, {"eos_id": 2, "end": "last"}])
    def test_settled_positions_keep_token_and_probability_whatever_the_model_says_of_them_later(self, then, end):
        """Row 0 has three left when row 1 has one: what it is asked beside that one is settled."""
        placed = ((1, 0.9), (2, 0.5), (3, 0.6), (4, 0.4)), ((1, 0.9), (3, 0.95), (3, 0.3), (5, 0.85))
        tables, calls = torch.stack([place_by_place(*row) for row in placed]), []

        def model(tokens):
            calls.append(tokens)
            return torch.where((tokens == MASK)[..., None], tables, then)

        options = {"steps": 1, "block_length": 4, "mask_id": MASK, "threshold": 0.8} | end
        decoded = decode(model, torch.zeros(2, 4).long(), torch.ones(2, 4).bool(), **options)
        assert decoded.tokens.tolist() == [[token for token, _ in row] for row in placed]
        expected = torch.tensor([[p for _, p in row] for row in placed], dtype=torch.float64)
        torch.testing.assert_close(decoded.probability, expected)
        left = [(tokens == MASK).sum(1).tolist() for tokens in calls]
        assert left == [[4, 4], [3, 1], [2, 0], [1, 0]]

    def test_with_random_remasking_the_one_is_random(self):
        options = {"steps": 1, "block_length": 8, "mask_id": MASK, "threshold": 0.8, "remasking": "random"}
        firsts = set()
        for seed in range(20):
            model = fixed(place_by_place(*[(1, 0.4)] * 8))
            generate(model, torch.zeros(1, 8).long(), torch.ones(1, 8).bool(), seed=seed, **options)
            firsts.add(model.seen[1][0].tolist().index(1))
        assert len(firsts) > 4


class TestEndToken:
    """The hazard: end tokens are surest while nothing is known, and once settled they fix the answer's length."""

    EOS = 9

    def model(self, tokens):
        """Position k wants token k (0.6) once the one before it holds content, and until then the end (0.9)."""
        content = (tokens != MASK) & (tokens != self.EOS)
        follows = torch.nn.functional.pad(content[:, :-1], (1, 0), value=True)
        follows[:, -1] = False
        wants, ends = (
            place_by_place(*[(token(k), p) for k in range(tokens.shape[1])])
            for token, p in ((lambda k: k, 0.6), (lambda k: self.EOS, 0.9))
        )
        return torch.where(follows[..., None], wants, ends)

    @pytest.mark.parametrize("threshold", [None, 0.8])
    def test_the_length_is_settled_last(self, threshold):
        blank, full = torch.zeros(2, 6).long(), torch.ones(2, 6).bool()
        options = {"steps": 6, "block_length": 6, "mask_id": MASK, "threshold": threshold}
        plain = generate(self.model, blank, full, **options)
        assert plain.tolist() == [[0, *[self.EOS] * 5]] * 2
        options |= {"eos_id": self.EOS}
        assert generate(self.model, blank, full, **options).equal(plain)
        assert generate(self.model, blank, full, end="last", **options).tolist() == [[0, 1, 2, 3, 4, self.EOS]] * 2

    @pytest.mark.parametrize("threshold", [None, 0.95])
    def test_an_end_that_is_surest_everywhere_is_all_there_is_unless_it_is_suppressed(self, threshold):
        """0.99 everywhere, as of a model trained on much fill; the second likeliest token is the position's own."""
        probability = torch.full((16, VOCAB), 1e-6)
        probability[:, self.EOS] = 0.99
        probability[torch.arange(16), torch.arange(16) % 8] += 0.009
        table, decoded = probability.log(), {}
        blank, full = torch.zeros(1, 16).long(), torch.ones(1, 16).bool()
        options = {"steps": 16, "block_length": 16, "mask_id": MASK, "threshold": threshold, "eos_id": self.EOS}
        for end in ENDS:
            model = fixed(table)
            decoded[end] = decode(model, blank, full, end=end, **options), len(model.seen)
        content = [k % 8 for k in range(16)]
        assert decoded["suppressed"][0].tokens.tolist() == [content]
        assert all(decoded[end][0].tokens.eq(self.EOS).all() for end in ("free", "last", "stop"))
        assert decoded["stop"][1] == 1 and decoded["free"][1] == (1 if threshold else 16)
        sure = table.softmax(-1)[:, self.EOS].double()[None]
        torch.testing.assert_close(decoded["free"][0].probability, sure, rtol=1e-5, atol=0)
        undecoded = torch.arange(16) > (16 if threshold else 0)
        torch.testing.assert_close(decoded["stop"][0].probability, sure.masked_fill(undecoded, 1), rtol=1e-5, atol=0)

    def test_behind_an_end_nothing_is_decoded_and_the_quota_goes_before_it(self):
        """Row 0 ends in its first block, row 1 in its second; an end in the prompt is none of the answer's."""
        end, one, two = (self.EOS, 0.9), (1, 0.5), (2, 0.4)
        rows = (one, two, end, one, two, one), (one, one, one, two, end, two)
        tables = torch.stack([place_by_place(*row) for row in rows])
        seen = []

        def model(tokens):
            seen.append(tokens.clone())
            return torch.nn.functional.pad(tables, (0, 0, 1, 0), value=0.0)

        m, e = MASK, self.EOS
        tokens = torch.tensor([[e, *[0] * 6]] * 2)
        generable = torch.tensor([[False, *[True] * 6]] * 2)
        options = {"steps": 6, "block_length": 3, "mask_id": MASK, "eos_id": e, "end": "stop"}
        decoded = decode(model, tokens, generable, **options)
        assert decoded.tokens.tolist() == [[e, 1, 2, e, e, e, e], [e, 1, 1, 1, 2, e, e]]
        assert decoded.probability[:, -1].tolist() == [1, 1] and decoded.probability[0, 4:].eq(1).all()
        row = [tokens[0].tolist() for tokens in seen[:3]]
        assert row == [[e, *[m] * 6], [e, m, m, e, m, m, m], [e, 1, m, e, m, m, m]]
        assert [tokens[1].tolist() for tokens in seen[3:]] == [[e, 1, 1, 1, m, m, m], [e, 1, 1, 1, m, e, m]]

    def test_waits_for_its_own_row_and_block_only(self):
        """Row 0 proposes nothing but the end in its first block, row 1 something else in both."""
        end, sure, unsure = (self.EOS, 0.9), (self.EOS, 0.99), (1, 0.2)
        tables = torch.stack([place_by_place(end, sure, end, unsure), place_by_place(sure, unsure, unsure, end)])
        seen = []

        def model(tokens):
            seen.append(tokens.clone())
            return tables

        options = {"steps": 4, "block_length": 2, "mask_id": MASK, "eos_id": self.EOS, "end": "last"}
        generate(model, torch.zeros(2, 4).long(), torch.ones(2, 4).bool(), **options)
        m, e = MASK, self.EOS
        assert seen[1].tolist() == [[m, e, m, m], [m, 1, m, m]]
        assert seen[3].tolist() == [[e, e, m, 1], [e, 1, 1, m]]

    def test_a_quota_is_met_with_the_surest_ends(self):
        model = fixed(place_by_place((self.EOS, 0.8), (1, 0.2), (self.EOS, 0.9), (self.EOS, 0.7)))
        options = {"steps": 2, "block_length": 4, "mask_id": MASK, "eos_id": self.EOS, "end": "last"}
        generate(model, torch.zeros(1, 4).long(), torch.ones(1, 4).bool(), **options)
        assert model.seen[1].tolist() == [[MASK, 1, self.EOS, MASK]]

    def test_what_is_settled_already_does_not_hold_it_up(self):
        """With a threshold: row 0 has content and ends left, which must not wait for what row 1 has still to fill."""
        table = place_by_place((1, 0.95), (self.EOS, 0.95), (self.EOS, 0.95), (2, 0.3))
        tables = torch.stack([table, table])
        tables[0, 3] = tables[0, 0]
        seen = []

        def model(tokens):
            seen.append(tokens.clone())
            return tables

        options = {"steps": 1, "block_length": 4, "mask_id": MASK, "eos_id": self.EOS, "end": "last", "threshold": 0.9}
        generate(model, torch.zeros(2, 4).long(), torch.ones(2, 4).bool(), **options)
        m, e = MASK, self.EOS
        assert [tokens.tolist() for tokens in seen[1:]] == [
            [[1, m, m, 1], [1, m, m, m]],
            [[1, e, e, 1], [1, m, m, 2]],
        ]


    def test_a_row_with_less_left_than_the_quota_settles_no_more_than_that(self):
        """Row 0 ends, row 1 does not: what is asked of row 0 beside the two that it has left keeps its token."""
        end, one, two = (self.EOS, 0.9), (1, 0.5), (2, 0.4)
        tables = torch.stack([place_by_place((3, 0.95), two, two, end, end, two), place_by_place(*[one] * 6)])
        later = place_by_place(*[(4, 0.8)] * 6)
        options = {"steps": 2, "block_length": 6, "mask_id": MASK, "eos_id": self.EOS, "end": "stop"}

        def model(tokens):
            return tables if (tokens == MASK).all() else later.expand_as(tables)

        decoded = decode(model, torch.zeros(2, 6).long(), torch.ones(2, 6).bool(), **options)
        assert decoded.tokens.tolist() == [[3, 4, 4, *[self.EOS] * 3], [1, 1, 1, 4, 4, 4]]
        assert decoded.probability[0, 5] == 1


class Asked:
    """A `Selective` over a `Model`: checks and keeps what it is asked."""

    def __init__(self, length, seed=0):
        self.model, self.blocks, self.calls = Model(length, seed), [], []

    def start_block(self, block):
        self.blocks.append(block.clone())

    def logits_at(self, tokens, rows, positions):
        block = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, self.blocks[-1], True)
        masked = (tokens == MASK) & block
        assert torch.equal(rows, masked.any(1).nonzero()[:, 0])
        assert positions.shape[1] == masked.sum(1).max()
        asked = torch.zeros_like(masked)
        asked[rows[:, None], positions] = True
        assert not (masked & ~asked).any() and not (asked & ~block).any()
        assert torch.equal(asked[rows].sum(1), torch.full_like(rows, positions.shape[1]))  # none is asked twice
        self.calls.append(tuple(positions.shape))
        return self.model(tokens)[rows[:, None], positions]


class TestSelective:
    @given(cases, st.integers(0, 100), st.sampled_from([None, 0.2, 0.4, 0.9]), st.sampled_from(ENDS[:3]))
    def test_is_asked_for_masked_positions_of_unfinished_rows_only(self, drawn, seed, threshold, end):
        tokens, generable, options = drawn
        options |= {"threshold": threshold, "eos_id": 3, "end": end}
        asked = Asked(tokens.shape[1], seed)
        decoded = decode(asked, tokens, generable, **options)
        plain = decode(Model(tokens.shape[1], seed), tokens, generable, **options)
        assert torch.equal(decoded.tokens, plain.tokens) and torch.equal(decoded.probability, plain.probability)
        where = generable.nonzero()[:, 1].view(len(tokens), -1).split(options["block_length"], 1)
        assert all(torch.equal(a, b) for a, b in zip(asked.blocks, where, strict=True))

    def test_rows_that_are_full_are_left_out(self):
        tokens, generable = case(16, 12, 8, 0)
        asked = Asked(12)
        generate(asked, tokens, generable, steps=1, block_length=8, mask_id=MASK, threshold=0.6)
        assert asked.calls[0] == (16, 8) and len({rows for rows, _ in asked.calls}) > 2

    @pytest.mark.usefixtures("untyped")
    def test_what_it_returns_is_checked(self):
        class Wrong(Asked):
            def logits_at(self, tokens, rows, positions):
                return torch.zeros(2, 6, VOCAB)

        tokens, generable = case(2, 6, 4, 0)
        with pytest.raises(ValueError, match=r"returned shape \[2, 6, 11\]; allowed is \[\*\[2, 4\], vocab\]"):
            generate(Wrong(6), tokens, generable, steps=1, block_length=4, mask_id=MASK)


class TestPadding:
    PAD = 8

    def model(self, tokens):
        """As `Model`, with places counted over what is no padding, and padding seen by none."""
        inner = Model(16)
        real = tokens != self.PAD
        place = (real.cumsum(1) - 1).clamp(min=0)
        hidden = inner.embedding[tokens] + inner.place[place]
        mix = inner.mix[place[:, :, None], place[:, None, :]] * real[:, None, :]
        logits = (hidden + mix @ hidden).tanh() @ inner.head
        logits[..., self.PAD] = -math.inf
        return logits

    @given(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4),
        st.sampled_from([None, 0.2, 0.5]),
        st.sampled_from(ENDS),
        st.integers(0, 10**6),
    )
    def test_a_padded_batch_gives_the_tokens_of_each_row_alone(self, sizes, threshold, end, seed):
        """Prompts of any lengths, padding to their left, the rest to the right of the response."""
        draw = torch.Generator().manual_seed(seed)
        length = 6 + max(left + prompt for left, prompt in sizes)
        options = {"steps": 4, "block_length": 3, "mask_id": MASK, "threshold": threshold}
        options |= {"eos_id": 3, "end": end}
        batch, generable = torch.full((len(sizes), length), self.PAD), torch.zeros(len(sizes), length).bool()
        alone = []
        for row, (left, prompt) in enumerate(sizes):
            words = torch.randint(self.PAD, (1, prompt), generator=draw)
            batch[row, left : left + prompt] = words
            generable[row, left + prompt : left + prompt + 6] = True
            tokens = torch.cat([words, torch.zeros(1, 6).long()], 1)
            alone.append(generate(self.model, tokens, torch.arange(prompt + 6)[None] >= prompt, **options)[0, prompt:])
        result = generate(self.model, batch, generable, **options)
        assert torch.equal(result[generable].view(-1, 6), torch.stack(alone))
        assert torch.equal(result[~generable], batch[~generable])


class TestSampling:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    def test_draws_from_the_tempered_softmax(self, temperature):
        logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 9.0]])
        rows = 20_000
        result = generate(
            fixed(logits),
            torch.zeros(rows, 1).long(),
            torch.ones(rows, 1).bool(),
            steps=1,
            block_length=1,
            mask_id=4,
            temperature=temperature,
            seed=0,
        )
        expected = (logits[0, :4].double() / temperature).softmax(0)
        frequency = result.flatten().bincount(minlength=4).double() / rows
        assert ((frequency - expected).abs() < 4 * (expected * (1 - expected) / rows).sqrt()).all()

    def test_confidence_is_that_of_the_drawn_token(self):
        """Among positions with one distribution, those that drew the likeliest token are filled first."""
        model = fixed(torch.tensor([0.0, 1.0, 2.0, -math.inf]).expand(60, 4))
        options = {"steps": 2, "block_length": 60, "mask_id": 3, "temperature": 5.0, "seed": 1}
        result = generate(model, torch.zeros(1, 60).long(), torch.ones(1, 60).bool(), **options)
        first = model.seen[1][0]
        assert first[first != 3].bincount(minlength=3)[0] == 0 and (first == 2).any() and (result == 0).any()

    def test_confidence_ignores_the_temperature(self):
        """At a low temperature the draw is certain, but the model is no surer than before."""
        model = fixed(place_by_place(*[(1, 0.6)] * 4))
        options = {"steps": 1, "block_length": 4, "mask_id": MASK, "temperature": 0.01, "threshold": 0.9}
        result = generate(model, torch.zeros(1, 4).long(), torch.ones(1, 4).bool(), **options)
        assert result.tolist() == [[1, 1, 1, 1]] and len(model.seen) == 4

    @pytest.mark.parametrize("remasking", ["margin", "entropy"])
    def test_margin_and_entropy_are_the_models_whatever_was_drawn(self, remasking):
        """At a high temperature position 1 draws other tokens, and is first all the same."""
        table = place_by_place((1, 0.3), (2, 0.9), (3, 0.4))
        drawn = set()
        for seed in range(20):
            model = fixed(table)
            options = {"steps": 3, "block_length": 3, "mask_id": MASK, "temperature": 9.0, "seed": seed}
            generate(model, torch.zeros(1, 3).long(), torch.ones(1, 3).bool(), remasking=remasking, **options)
            assert (model.seen[1][0] != MASK).tolist() == [False, True, False]
            drawn.add(int(model.seen[1][0, 1]))
        assert len(drawn) > 3

    def test_large_logits_and_small_temperatures_stay_finite(self):
        tokens, generable = case(2, 6, 6, 0)
        options = {"steps": 3, "block_length": 6, "mask_id": MASK, "seed": 0}
        model = Model(6, sharpness=1e4)
        result = generate(model, tokens, generable, temperature=1e-6, **options)
        assert torch.equal(result, generate(model, tokens, generable, temperature=0, **options))

    @pytest.mark.parametrize("options", [{"temperature": 1.0}, {"remasking": "random"}])
    def test_seed(self, options):
        tokens, generable = case(4, 16, 16, 0)
        options = options | {"steps": 8, "block_length": 16, "mask_id": MASK}

        def run(seed):
            return generate(Model(16), tokens, generable, seed=seed, **options)

        state = torch.get_rng_state()
        assert torch.equal(run(3), run(3))
        assert not torch.equal(run(3), run(4))
        assert not torch.equal(run(None), run(None))
        assert torch.equal(torch.get_rng_state(), state)

    def test_at_temperature_zero_the_seed_does_not_matter(self):
        tokens, generable = case(4, 16, 16, 0)
        options = {"steps": 8, "block_length": 16, "mask_id": MASK}
        assert torch.equal(
            generate(Model(16), tokens, generable, seed=1, **options),
            generate(Model(16), tokens, generable, **options),
        )

    def test_random_remasking_has_no_preference(self):
        model = fixed(place_by_place((1, 0.99), (2, 0.2), (3, 0.2), (4, 0.2)))
        generate(
            model,
            torch.zeros(4000, 4).long(),
            torch.ones(4000, 4).bool(),
            steps=4,
            block_length=4,
            mask_id=MASK,
            remasking="random",
            seed=0,
        )
        first = (model.seen[1] != MASK).double().mean(0)
        assert ((first - 0.25).abs() < 0.03).all()


class TestBorders:
    @pytest.mark.parametrize("shape", [(3, 7), (0, 7), (3, 0), (0, 0)])
    def test_nothing_generable(self, shape):
        tokens = torch.full(shape, MASK)

        def model(tokens):
            raise AssertionError("called")

        generable = torch.zeros(shape, dtype=torch.bool)
        result = generate(model, tokens, generable, steps=3, block_length=4, mask_id=MASK)
        assert torch.equal(result, tokens) and result is not tokens

    def test_empty_batch_with_generable_columns(self):
        tokens, generable = torch.zeros(0, 5).long(), torch.ones(0, 5).bool()
        assert generate(Model(5), tokens, generable, steps=3, block_length=4, mask_id=MASK).shape == (0, 5)

    def test_single_position(self):
        tokens = torch.tensor([[MASK]])
        result = generate(Model(1), tokens, torch.tensor([[True]]), steps=1, block_length=1, mask_id=MASK)
        table = Model(1)(tokens)[0, 0, :MASK]
        assert result.item() == table.argmax()

    def test_int32_and_strides(self):
        tokens, generable = case(4, 12, 8, 2)
        options = {"steps": 4, "block_length": 4, "mask_id": MASK}
        expected = generate(Model(12), tokens, generable, **options)
        result = generate(Model(12), tokens.int(), generable, **options)
        assert result.dtype == torch.int32 and torch.equal(result.long(), expected)
        strided = generate(Model(12), tokens.T.contiguous().T, generable.T.contiguous().T, **options)
        assert torch.equal(strided, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("remasking", ["low_confidence", "margin", "entropy"])
def test_the_same_tokens_on_a_gpu(threshold, remasking):
    tokens, generable = case(4, 16, 12, 5)
    options = {"steps": 12, "block_length": 6, "mask_id": MASK, "threshold": threshold, "remasking": remasking}
    model = Model(16, dtype=torch.float32)
    result = decode(lambda x: model(x.cpu()).cuda(), tokens.cuda(), generable.cuda(), **options)
    expected = decode(model, tokens, generable, **options)
    assert torch.equal(result.tokens.cpu(), expected.tokens) and result.probability.is_cuda
    torch.testing.assert_close(result.probability.cpu(), expected.probability, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("untyped")
class TestRefusals:
    @pytest.mark.parametrize(
        "changed, words",
        [
            ({"tokens": torch.zeros(2, 6)}, "tokens is torch.float32"),
            ({"tokens": torch.zeros(2, 6).bool()}, "tokens is torch.bool"),
            ({"tokens": [[0] * 6] * 2}, "tokens is list"),
            ({"tokens": torch.zeros(6).long()}, r"tokens has shape \[6\]"),
            ({"tokens": torch.zeros(2, 6, 1).long()}, r"tokens has shape \[2, 6, 1\]"),
            ({"generable": torch.ones(2, 6).long()}, "generable is torch.int64"),
            ({"generable": None}, "generable is NoneType"),
            ({"generable": torch.ones(2, 5).bool()}, "generable has shape"),
            ({"generable": torch.ones(1, 6).bool()}, "generable has shape"),
            ({"generable": torch.tensor([[True] * 6, [True] * 5 + [False]])}, r"generable has \[6, 5\]"),
            ({"generable": torch.tensor([[False] * 6, [True] * 6])}, r"generable has \[0, 6\] positions"),
            ({"block_length": 0}, "block_length is 0"),
            ({"block_length": 3.0}, "block_length is 3.0"),
            ({"steps": 3}, "steps is 3; allowed are multiples of the number of blocks, 2"),
            ({"steps": 1}, "steps is 1"),
            ({"steps": 0}, "steps is 0"),
            ({"steps": -2}, "steps is -2"),
            ({"block_length": True}, "block_length is True; allowed are integers from 1"),
            ({"mask_id": -1}, "mask_id is -1"),
            ({"mask_id": None}, "mask_id is None"),
            ({"mask_id": 2**31, "tokens": torch.zeros(2, 6).int()}, "mask_id is 2147483648"),
            ({"temperature": -0.1}, "temperature is -0.1"),
            ({"temperature": math.nan}, "temperature is nan"),
            ({"temperature": math.inf}, "temperature is inf"),
            ({"temperature": None}, "temperature is None"),
            ({"remasking": "margins"}, "remasking is 'margins'; allowed are low_confidence, margin, entropy, random"),
            ({"threshold": 0.0}, "threshold is 0.0"),
            ({"threshold": 1.1}, "threshold is 1.1"),
            ({"threshold": math.nan}, "threshold is nan"),
            ({"threshold": "0.9"}, "threshold is '0.9'"),
            ({"eos_id": -1}, "eos_id is -1; allowed are integers from 0 but mask_id, or None"),
            ({"eos_id": MASK}, "eos_id is 10"),
            ({"eos_id": 1.0}, "eos_id is 1.0"),
            ({"end": "first"}, "end is 'first'; allowed are free, last, suppressed, stop"),
            ({"end": "stop"}, "eos_id is None; allowed with end='stop' are integers from 0"),
            ({"seed": -1}, "seed is -1"),
            ({"seed": 0.5}, "seed is 0.5"),
        ],
    )
    def test_options(self, changed, words):
        arguments = {
            "logits_fn": fixed(torch.zeros(6, VOCAB)),
            "tokens": torch.zeros(2, 6).long(),
            "generable": torch.ones(2, 6).bool(),
            "steps": 2,
            "block_length": 3,
            "mask_id": MASK,
        }
        assert generate(**arguments).shape == (2, 6)
        with pytest.raises(ValueError, match=words):
            generate(**(arguments | changed))

    @pytest.mark.parametrize(
        "logits, words",
        [
            (torch.zeros(2, 6), r"returned shape \[2, 6\]"),
            (torch.zeros(2, 5, VOCAB), r"returned shape \[2, 5, 11\]"),
            (torch.zeros(1, 6, VOCAB), r"returned shape \[1, 6, 11\]"),
            (torch.zeros(2, 6, 0), r"returned shape \[2, 6, 0\]"),
            (torch.zeros(2, 6, VOCAB).long(), "returned torch.int64"),
            (None, "returned NoneType"),
        ],
    )
    def test_logits(self, logits, words):
        with pytest.raises(ValueError, match=words):
            generate(
                lambda tokens: logits,
                torch.zeros(2, 6).long(),
                torch.ones(2, 6).bool(),
                steps=2,
                block_length=3,
                mask_id=MASK,
            )

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize(
        "value, where",
        [
            (math.nan, (0, 0, 0)),
            (math.nan, (1, 5, 3)),
            (math.nan, (1, 2, MASK)),
            (math.inf, (0, 4, 2)),
            (-math.inf, (0, 4, slice(0, MASK))),
        ],
    )
    def test_no_softmax(self, value, where, temperature):
        logits = torch.zeros(2, 6, VOCAB)
        logits[where] = value
        with pytest.raises(ValueError, match="logits_fn returned NaN"):
            generate(
                lambda tokens: logits,
                torch.zeros(2, 6).long(),
                torch.ones(2, 6).bool(),
                steps=2,
                block_length=3,
                mask_id=MASK,
                temperature=temperature,
                seed=0,
            )
