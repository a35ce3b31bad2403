"""Random draws of their own for each use."""

import torch

from lib.runtime.seeds import generator


def test_generators_are_streams_of_their_own():
    def draw(*key):
        return torch.randint(2**31, (4,), generator=generator(*key)).tolist()

    assert draw(0, "a", 1) == draw(0, "a", 1)
    assert len({str(draw(*key)) for key in [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1)]}) == 4
