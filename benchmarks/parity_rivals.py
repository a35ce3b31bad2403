"""Are our CleanSight and BYE the authors'? Their functions and ours on the same random attention and entropies.

    python -m benchmarks.parity_rivals --cleansight ../cleansight --bye ../BYE

takes checkouts of zhangzf01/cleansight and XuankunRong/BYE and writes `benchmarks/results/parity-rivals.txt`. What
needs none of their models runs as it is: CleanSight's detector and pruner, BYE's choice of layers and of samples. BYE's
entropy stands within a script that loads its model, and how CleanSight reads attention within a patch of an older
transformers' Llama: neither runs here.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.parity_llada_v import main
from lib.defences.attention_stealing import PRUNED, attention_ratio, calibrated, thieves, watched_layers
from lib.defences.filters import SEPARATION, low_entropy_cluster, separation
from lib.runtime.seeds import generator

SYSTEM, WORDS, QUERIES = 35, 40, 2  # positions before and behind the picture; theirs reads the last query
CLEAN, TESTED = 200, 100
SEEN = ((576, 32, 4, torch.float32), (576, 32, 4, torch.float64), (64, 4, 4, torch.float32))  # tokens, layers, heads
SETS = (("a tenth", 400, 40, 0.5), ("half", 400, 200, 0.5), ("a tenth, near", 400, 40, 0.07), ("none", 400, 0, 0.5))


def compare(cleansight: Path, bye: Path) -> Iterator[str]:
    """What each pair of functions makes of the same numbers."""
    detector, pruner = (loaded(cleansight / "cleansight" / f"{name}.py") for name in ("detector", "pruner"))
    layers = list(watched_layers(32))
    yield f"\nCleanSight: layers {layers[0]} to {layers[-1]} of 32, more than {PRUNED / 576:g} of 576 tokens in both"
    yield f"{CLEAN} clean samples, {TESTED} others of which half have one token that draws attention in a head"
    yield "  tokens layers heads  numbers    ratios  threshold   scores  poisoned: theirs ours the same"
    pruned = []
    for case in SEEN:
        row, tokens = stolen(detector, pruner, *case)
        yield row
        pruned.append(tokens)
    yield "  greatest relative differences; then the tokens pruned in all poisoned samples, and the greatest difference"
    yield "  of any weight once the scores are pruned"
    yield from pruned
    yield "  64 tokens: theirs is given our threshold, 11.52 even shares; its own of 0.02 is 1.28 of them."
    theirs = loaded(bye / "bye.py")
    yield "\nBYE: four layers, samples planted lower in two of them"
    yield f"  {'planted':>14} samples  sensitive: theirs ours  dropped: theirs ours the same"
    for name, samples, planted, depth in SETS:
        entropies = 4 + 0.02 * torch.randn(samples, 4, generator=generator(0, name), dtype=torch.float64)
        entropies[:planted, 2:] -= depth
        yield filtered(theirs, name, entropies)
    equal, low = torch.full((20, 1), 4.0).double(), torch.tensor([[1.0, 2.0]] * 10 + [[2.0, 1.0]] * 10).double()
    for name, entropies in (("one sample", equal[:1]), ("all equal", equal), ("mean equal", low)):
        yield filtered(theirs, name, entropies)
    yield "  Without a sensitive layer theirs ends without a filter; ours drops nothing."


def loaded(file: Path) -> ModuleType:
    """A file of theirs as a module, without the package around it."""
    spec = importlib.util.spec_from_file_location(f"theirs_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def attention(
    samples: int, steal: bool, tokens: int, layers: int, heads: int, dtype: torch.dtype
) -> Iterator[Float[Tensor, "layer head query position"]]:
    """Random scores before the softmax, [instructions | picture | words]; in half of the samples a token steals."""
    draw = generator(0, "attention", steal)
    for k in range(samples):
        scores = torch.randn(layers, heads, QUERIES, SYSTEM + tokens + WORDS, generator=draw, dtype=torch.float64)
        if steal and k % 2:
            scores[:, 0, :, SYSTEM + k % tokens] += 6
        yield scores.to(dtype)


def stolen(
    detector: ModuleType, pruner: ModuleType, tokens: int, depth: int, heads: int, dtype: torch.dtype
) -> tuple[str, str]:
    """Two rows: ratios, scores and verdicts of their detector and ours, and what their pruner and ours prune."""
    layers, end = watched_layers(depth), SYSTEM + tokens
    text = torch.arange(SYSTEM + WORDS)[None] >= SYSTEM
    theirs = detector.AttentionAnomalyDetector(list(layers))
    features, ratios = {False: [], True: []}, {False: [], True: []}
    masks, weights = [], 0.0
    for steal, count in ((False, CLEAN), (True, TESTED)):
        for scores in attention(count, steal, tokens, len(layers), heads, dtype):
            weight = scores.softmax(-1)
            made = [theirs.compute_attention_ratio(layer[None], SYSTEM, end) for layer in weight]
            features[steal].append(torch.cat(made).numpy())
            last = weight[:, :, -1].double()
            ordered = torch.cat([last[..., SYSTEM:end], last[..., :SYSTEM], last[..., end:]], -1)
            ratios[steal].append(torch.cat([attention_ratio(layer[None], tokens, text) for layer in ordered], 1)[0])
            if steal:
                mask, difference = cut(pruner, scores[-1], weight[-1], tokens)
                masks.append(mask)
                weights = max(weights, difference)
    for feature in features[False]:
        theirs.collect(feature)
    theirs.fit()
    ours = calibrated(torch.stack(ratios[False]))
    found = ours.distance(torch.stack(ratios[True]))
    expected = torch.tensor([theirs.score(feature) for feature in features[True]], dtype=torch.float64)
    verdicts = torch.tensor([theirs.is_poisoned(feature) for feature in features[True]]), found > ours.threshold
    far = relative(torch.tensor(np.stack(features[True])), torch.stack(ratios[True]))
    about = f"  {tokens:6} {depth:6} {heads:5}  {str(dtype)[6:]}"
    row = f"{about} {far:9.1e} {abs(theirs.threshold / ours.threshold - 1):10.1e}"
    row += f" {relative(expected, found):8.1e}  {int(verdicts[0].sum()):16} {int(verdicts[1].sum()):4}"
    row += f" {int((verdicts[0] == verdicts[1]).sum()):4} of {TESTED}"
    both = torch.stack([torch.stack(part)[verdicts[0]] for part in zip(*masks, strict=True)])
    counts = f"{int(both[0].sum()):4} theirs, {int(both[1].sum()):4} ours, {int(both.all(0).sum()):4} the same"
    return row, f"{about} {counts}; {weights:.1e}"


def cut(
    pruner: ModuleType, scores: Float[Tensor, "head query position"], weight: Tensor, tokens: int
) -> tuple[tuple[Tensor, Tensor], float]:
    """Which vision tokens theirs and ours prune, and how far the weights differ that are left, where any is."""
    theirs = pruner.AttentionPruner(prune_threshold=PRUNED / tokens)
    theirs.build_mask(weight[None], SYSTEM, SYSTEM + tokens)
    mask = theirs._token_mask[0, SYSTEM : SYSTEM + tokens]
    own = thieves(weight[:, -1, SYSTEM : SYSTEM + tokens].amax(0)[None].double())[0]
    hidden = torch.nn.functional.pad(own, (SYSTEM, WORDS))
    left = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return (mask, own), float((theirs.apply(scores[None])[0].softmax(-1) - left).abs().max())


def filtered(theirs: ModuleType, name: str, entropies: Float[Tensor, "sample layer"]) -> str:
    """A row: which layers are sensitive and which samples dropped, by their functions and by ours."""
    own = low_entropy_cluster(entropies.T)
    sensitive = [k for k, layer in enumerate(entropies.T) if separation(layer) > SEPARATION]
    matrix, ids = entropies.numpy(), list(range(len(entropies)))
    try:
        with warnings.catch_warnings(action="ignore"):  # of two clusters sought among equal values
            chosen = theirs.get_layerwise_kl(matrix)[1]
            dropped = theirs.detect_suspicious_samples(matrix, ids, chosen)[0] if chosen else []
    except ValueError as error:
        return f"  {name:>14} {len(entropies):7}  theirs ends with {type(error).__name__}; ours drops {int(own.sum())}"
    mask = torch.zeros(len(entropies), dtype=torch.bool).index_fill(0, torch.tensor(dropped, dtype=torch.long), True)
    layers = f"{len(chosen):18} {len(sensitive):4}{'' if chosen == sensitive else ' (others)'}"
    same = f"{int((mask == own).sum())} of {len(own)}"
    return f"  {name:>14} {len(entropies):7} {layers} {int(mask.sum()):16} {int(own.sum()):4} {same:>10}"


def relative(expected: Tensor, found: Tensor) -> float:
    """The greatest difference of any number, over what it should be."""
    return float(((found - expected).abs() / expected.abs()).max())


if __name__ == "__main__":
    repositories = {"cleansight": "zhangzf01/cleansight", "bye": "XuankunRong/BYE"}
    main(__doc__, "rivals", repositories, compare)
