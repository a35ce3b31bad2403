"""What does the directional score cost at LLaDA-V's length, in time and memory, beside its authors' own function?

    python -m benchmarks.saliency_cost --disp ../Diffusion_Self_Purification --rounds 3

On the same weights and noise, a quarter of LLaDA-V's width and vocabulary, 1 and 2 layers in bfloat16, carried on to
its 32 by what the second adds. Authors' settings: 6 normal probes, 5 logits, a response of 32. Their function is
stopped where it sorts its scores; its probe is held constant, or these are not the score (`parity_disp`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
from torch import Tensor

from benchmarks.activations import peak_bytes
from benchmarks.full_size import llada_v
from benchmarks.harness import main, milliseconds
from benchmarks.parity_disp import our_scores
from benchmarks.parity_llada_v import CONFIG, TOWER, authors
from lib.models.llada import IMAGE
from lib.models.llada_v import LladaVModel
from lib.saliency.jacobian import fisher_jacobian
from lib.saliency.masking import mask_top

DEPTHS, LAYERS = (1, 2), 32
PROBES, TOP, RATIO, RESPONSE, PROMPT, PLACE = 6, 5, 0.3, 32, 30, 9
TOKENS = {"full": 3699, "toy": 40}  # of a picture of 512 × 512 pixels
WIDTH = {"full": (1024, 3072, 8, 31616), "toy": (32, 48, 4, 512)}  # states, MLP, heads, vocabulary
AT_ONCE = 2  # tokens in a pass of forward mode
THEIRS, EXACT = "the authors' function", "exact, all tokens"
KEPT = "kept, probe after probe"
WAYS = {"computed again, batched": True, KEPT: False}


class Sorted(Exception):
    """Their scores, where they sort them."""


class Enough(Exception):
    """One pass of forward mode was made."""


def rows(chosen: argparse.Namespace, size: str = "full") -> list[dict]:
    """A row a way of ours and depth: `overlap`, of the tokens masked, with the authors'; GB beside the weights.

    In bfloat16 rounding changes the order of logits, and by that which noise each gets. The exact score has no ratio.
    """
    if chosen.disp is None:
        print("No --disp: the authors' function is left out, and ours is compared with activations kept.", flush=True)
    spent, held, same = {}, {}, {}
    found: dict[str, Tensor] = {}
    for depth in DEPTHS:
        ways = made_ways(chosen, size, depth)
        for name, way in ways.items():
            held[name, depth] = peak_bytes(lambda name=name, way=way: found.update({name: way()})) / 1e9
        masked = {name: mask_top(found[name][None].float(), RATIO)[0] for name in ways if name != EXACT}
        peer = masked[next(iter(ways))]
        same |= {name: float((masked[name] & peer).sum() / peer.sum()) for name in masked}
        for name in ways:
            spent[name, depth] = []
        for _ in range(chosen.rounds):
            for name, way in ways.items():
                factor = TOKENS[size] / AT_ONCE if name == EXACT else 1
                spent[name, depth].append(factor * milliseconds(way, chosen.device))
    names = list(dict.fromkeys(name for name, _ in spent))
    few, more = DEPTHS
    for name in names:
        pairs = zip(spent[name, few], spent[name, more], strict=True)
        spent[name, LAYERS] = [carried(*both) for both in pairs]
        both = held[name, few], held[name, more]
        held[name, LAYERS] = carried(*both) if both[1] > both[0] else float("nan")  # the peak is not in the layers
    peer = names[0]
    return [
        compared(f"{depth} layer" + "s" * (depth > 1), name, peer, spent, held, depth) | {"overlap": same.get(name)}
        for depth in (*DEPTHS, LAYERS)
        for name in names[1:]
    ]


def carried(few: float, more: float) -> float:
    """Of `LAYERS` layers by those of both `DEPTHS`."""
    return more + (LAYERS - DEPTHS[1]) * (more - few) / (DEPTHS[1] - DEPTHS[0])


def compared(case: str, name: str, peer: str, spent: dict, held: dict, depth: int) -> dict:
    own, theirs = (pd.Series(spent[way, depth]) for way in (name, peer))
    ratios = theirs / own if name != EXACT else own * float("nan")  # no other way of doing the same
    return {
        "case": case,
        "ratio": ratios.median(),
        "ratio_low": ratios.quantile(0.25),
        "ratio_high": ratios.quantile(0.75),
        "ours": name,
        "peer": peer,
        "ours_ms": own.median(),
        "peer_ms": theirs.median(),
        "rounds": len(own),
        "ours_gb": held[name, depth],
        "peer_gb": held[peer, depth],
    }


def made_ways(chosen: argparse.Namespace, size: str, depth: int) -> dict[str, Callable[[], Tensor]]:
    """By name what gives the scores of one picture; the authors' first, where their checkout is given."""
    own = model(size, depth, chosen.device)
    draw = torch.Generator().manual_seed(0)
    vision = torch.randn(1, TOKENS[size], own.config.hidden_size, generator=draw).to(own.mask_embedding)
    ids = torch.randint(4, 100, (1, PROMPT), generator=draw).to(chosen.device)
    ids[0, PLACE] = IMAGE
    noise = torch.randn(PROBES, 1, RESPONSE, TOP, generator=draw, dtype=torch.float64).to(chosen.device)

    def ours(again: bool) -> Tensor:
        with patch.object(LladaVModel, "supports_gradient_checkpointing", again):
            return our_scores(own, vision, ids, noise)

    ways = {name: lambda again=again: ours(again) for name, again in WAYS.items()}
    ways[EXACT] = lambda: first_pass(own, vision, ids)
    if chosen.disp is None:
        return {name: ways[name] for name in (KEPT, *ways)}
    theirs = their_model(chosen.disp, own)
    return {THEIRS: lambda: their_scores(theirs, vision, ids, noise)} | ways


def model(size: str, depth: int, device: str) -> LladaVModel:
    width, inner, heads, vocabulary = WIDTH[size]
    ids = {"mask_id": vocabulary - 1, "eos_id": vocabulary - 2, "pad_id": vocabulary - 3, "forbidden": ()}
    shape = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads, "vocab_size": vocabulary}
    tower = TOWER | {"num_hidden_layers": 2}
    made = llada_v("full", device, num_hidden_layers=depth, vision=tower, **shape, **ids)
    made.config.response_length = RESPONSE
    return made


def their_model(checkout: Path, own: LladaVModel):
    """The authors' model with the weights of ours, attention as they run it."""
    kept = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    shape = {name: getattr(own.config, name) for name in kept}
    with patch.dict(CONFIG, shape | {"num_key_value_heads": shape["num_attention_heads"]}), torch.no_grad():
        theirs = authors(checkout / "LLaDA-V", "sdpa")[0].to(own.dtype)
    decoder = {name: value for name, value in own.state_dict().items() if "vision_tower" not in name}
    missing, unexpected = theirs.load_state_dict(decoder, strict=False)
    if unexpected or any("vision_tower" not in name for name in missing):
        raise ValueError(f"the authors' decoder has other weights than ours: {missing}, {unexpected}")
    return theirs.requires_grad_(False)


def their_scores(theirs, vision: Tensor, ids: Tensor, noise: Tensor) -> Tensor:
    """Of `generate_prompt_mask_kl_approx`, stopped behind them."""
    words, root = theirs.model.embed_tokens(ids.clamp(min=0)), torch.sqrt
    prompt = torch.cat([words[:, :PLACE], vision, words[:, PLACE + 1 :]], 1)

    def stopped(scores: Tensor, **settings) -> None:
        raise Sorted(scores)

    with ExitStack() as patches:
        patches.enter_context(patch.object(torch, "randn_like", side_effect=list(noise)))
        patches.enter_context(patch.object(torch, "sqrt", lambda x: root(x).detach()))
        patches.enter_context(patch.object(torch, "argsort", stopped))
        settings = {"steps": 1, "gen_length": RESPONSE, "block_length": RESPONSE, "topk_vocab": TOP}
        settings |= {"fisher_num_probes": PROBES, "mask_id": theirs.config.vocab_size - 1}
        try:
            theirs.generate_prompt_mask_kl_approx(
                prompt, img_mask_ratio=RATIO, input_ids=ids, image_token_index=IMAGE, **settings
            )
        except Sorted as found:
            return found.args[0]


def first_pass(own: LladaVModel, vision: Tensor, ids: Tensor) -> None:
    """Forward mode of `AT_ONCE` tokens."""
    calls, logits = count(), own.logits

    def once(*given: Tensor) -> Tensor:
        if next(calls):
            raise Enough
        return logits(*given)

    with patch("lib.saliency.exact.VARIANTS", AT_ONCE), patch.object(own, "logits", once):
        try:
            fisher_jacobian(own, vision, ids, exact=True, top_logits=TOP)
        except Enough:
            return


main(__name__, rows, __file__)
