"""How fast are Shapley values and interactions of M modalities, beside one loop per index and beside shapiq?

`difference` is the largest one between the two results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import combinations
from math import comb

import numpy as np
import torch
from shapiq.game_theory.exact import ExactComputer
from torch import Tensor

from benchmarks.harness import main, pair
from lib.metrics.coalitions import interactions

GAMES = {"cpu": 96, "cuda": 10_000}


def rows(chosen: argparse.Namespace) -> list[dict]:
    made = []
    for modalities in (2, 4, 7, 10):
        draw = torch.Generator().manual_seed(modalities)
        games = torch.randn(GAMES[chosen.device], 2**modalities, generator=draw).to(chosen.device)
        for what, peer_name, ours, peer in cases(games, modalities):
            count = 1 if peer_name == "shapiq" else len(games)
            facts = {"modalities": modalities, "games": count, "difference": float((ours() - peer()).abs().max())}
            case = f"{what}, M = {modalities}, {count} games"
            made.append(pair(case, ours, peer, chosen, ("ours", peer_name), **facts))
    return made


def cases(games: Tensor, modalities: int) -> list[tuple[str, str, Callable[[], Tensor], Callable[[], Tensor]]]:
    """What is made, the peer's name, ours and the peer."""
    singles = tuple(1 << i for i in range(modalities))
    pairs = tuple(1 << i | 1 << j for i, j in combinations(range(modalities), 2))
    one, every = games[0], tuple(range(2**modalities))
    return [
        ("values", "loop", lambda: interactions(games, singles), lambda: values_by_loop(games, modalities)),
        ("pairs", "loop", lambda: interactions(games, pairs), lambda: pairs_by_loop(games, modalities)),
        ("values", "shapiq", lambda: interactions(one, singles), lambda: by_shapiq(one, modalities, "SV", 1)),
        ("all", "shapiq", lambda: interactions(one, every), lambda: by_shapiq(one, modalities, "SII", modalities)),
    ]


def values_by_loop(games: Tensor, modalities: int) -> Tensor:
    """Shapley values as weighted mean differences, one modality after another."""
    exact = games.double()
    return torch.stack([mean_as_others_join(difference(exact, i)) for i in range(modalities)], -1).float()


def pairs_by_loop(games: Tensor, modalities: int) -> Tensor:
    """Interactions as weighted mean second differences, one pair after another."""
    exact = games.double()
    pairs = combinations(range(modalities), 2)
    return torch.stack([mean_as_others_join(difference(difference(exact, j), i)) for i, j in pairs], -1).float()


def difference(games: Tensor, i: int) -> Tensor:
    """v(S ∪ i) − v(S) for the coalitions S of the other modalities."""
    pairs = games.unflatten(-1, (-1, 2, 2**i))
    return (pairs[..., 1, :] - pairs[..., 0, :]).flatten(-2)


def mean_as_others_join(differences: Tensor) -> Tensor:
    m = differences.shape[-1].bit_length() - 1
    weights = [1 / ((m + 1) * comb(m, coalition.bit_count())) for coalition in range(2**m)]
    return differences @ differences.new_tensor(weights)


def by_shapiq(game: Tensor, modalities: int, index: str, order: int) -> Tensor:
    """shapiq's exact computer on one game, in the order of bit masks; the values alone for order 1."""
    values = game.double().cpu().numpy()
    bits = 1 << np.arange(modalities)
    found = ExactComputer(lambda coalitions: values[np.asarray(coalitions, dtype=int) @ bits], modalities)(index, order)
    masks = [1 << i for i in range(modalities)] if order == 1 else range(2**modalities)
    members = (tuple(i for i in range(modalities) if mask >> i & 1) for mask in masks)
    return torch.tensor([found.dict_values[member] for member in members], device=game.device)


main(__name__, rows, __file__)
