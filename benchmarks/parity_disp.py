"""Is our DiSP the authors'? Scores, masked tokens and answers of one tiny random LLaDA-V in their function and in ours.

    python -m benchmarks.parity_disp --disp ../Diffusion_Self_Purification

takes a checkout of bigglesworthnotacat/Diffusion_Self_Purification and writes `benchmarks/results/parity-disp.txt`.
Their `generate_prompt_mask_kl_approx` runs as it is. It is given our noise by `torch.randn_like`, its scores are read
where it sorts them, and the tokens it masks where its model is called next.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from benchmarks.parity_llada_v import CONFIG, MASK, authors, decoded, main, ours
from lib.kernels.fisher import fisher_probe
from lib.models.llada import IMAGE
from lib.models.llada_v import LladaV, LladaVModel
from lib.runtime.seeds import generator
from lib.saliency.jacobian import add_curvature, fisher_jacobian, to_mask
from lib.saliency.masking import mask_top, masked_count, masked_response
from lib.tasks.questions import hide

PROBES, TOP, RATIO, ANSWER = 6, 5, 0.3, 16
SCORED = ((20, 8, 5), (37, 16, 5), (37, 16, 7), (101, 16, 5), (37, 8, 126464))  # vision tokens, response, top logits
MASKED = ((20, 0.3), (37, 0.1), (37, 0.3), (37, 0.6), (101, 0.3), (101, 0.45), (100, 0.29))
DECODED = ((16, 16), (16, 8), (8, 16), (4, 4))  # steps, length of a block
PROMPTS = 4  # for every line of the answers
PLACE = 9  # of the picture in the prompt


class Run(NamedTuple):
    """What their function made."""

    scores: Float[Tensor, " vision"]
    masked: Bool[Tensor, " vision"]
    answer: Int[Tensor, "1 response"]


def their_run(
    theirs,
    vision: Float[Tensor, "1 vision dim"],
    ids: Int[Tensor, "1 prompt"],
    noise: Float[Tensor, "probe 1 response top"],
    *,
    constant: bool = False,
    ratio: float = RATIO,
    steps: int = 1,
    block: int | None = None,
    length: int | None = None,
) -> Run:
    """Their function on given noise. constant: the square root of p, by which alone p enters a probe, is detached."""
    words, root, sort = theirs.model.embed_tokens(ids.clamp(min=0)), torch.sqrt, torch.argsort
    prompt = torch.cat([words[:, :PLACE], vision, words[:, PLACE + 1 :]], 1)
    sorted_scores, seen = [], []

    def watched(scores: Tensor, **settings) -> Tensor:
        sorted_scores.append(scores.detach().clone())
        return sort(scores, **settings)

    def called(module, given, named: dict) -> None:
        seen.append(named["inputs_embeds"].detach()[:, PLACE : PLACE + vision.shape[1]].clone())

    hook = theirs.model.register_forward_pre_hook(called, with_kwargs=True)
    length = length or noise.shape[2]
    settings = {"steps": steps, "gen_length": length, "block_length": block or noise.shape[2], "mask_id": MASK}
    settings |= {"topk_vocab": noise.shape[3], "fisher_num_probes": len(noise), "fisher_dtype": "float64"}
    with ExitStack() as patches:
        patches.callback(hook.remove)
        patches.enter_context(patch.object(torch, "randn_like", side_effect=list(noise)))
        patches.enter_context(patch.object(torch, "argsort", watched))
        if constant:
            patches.enter_context(patch.object(torch, "sqrt", lambda x: root(x).detach()))
        answer = theirs.generate_prompt_mask_kl_approx(
            prompt, img_mask_ratio=ratio, input_ids=ids, image_token_index=IMAGE, **settings
        )
    embedding = theirs.model.embed_tokens(torch.tensor([MASK]))
    return Run(sorted_scores[0], (seen[1] == embedding).all(-1)[0], answer)


def our_scores(
    model, vision: Float[Tensor, "1 vision dim"], ids: Int[Tensor, "1 prompt"], noise: Float[Tensor, "probe 1 _ top"]
) -> Float[Tensor, " vision"]:
    """`fisher_jacobian` with the authors' settings on given noise."""

    def given(logits: Tensor, *settings) -> Tensor:
        return fisher_probe(logits.softmax(-1, torch.float64), noise).to(logits)

    with patch("lib.saliency.jacobian.fisher_probes", given):
        return fisher_jacobian(model, vision, ids, probes=len(noise), noise="normal", top_logits=noise.shape[3])[0]


def through_the_probe(
    model,
    vision: Float[Tensor, "batch vision dim"],
    prompt: Int[Tensor, "batch prompt"],
    noise: Float[Tensor, "probe batch response top"],
) -> Float[Tensor, "batch vision"]:
    """½ mean_k (∇⟨q_k(z), z⟩ · δ_i)², with q's own derivative in ∇, as the authors' code has it, not as the score is.

    Their q ~ N(0, F) is made of p, which is made of z, and is not detached.
    """
    score = vision.new_zeros(vision.shape[:2])
    with torch.enable_grad():
        token = vision.detach().clone().requires_grad_()
        logits = model.logits(token, prompt, masked_response(model, vision))
        logits = logits.gather(-1, logits.topk(noise.shape[3], dim=-1).indices).double()
        p = logits.softmax(-1)
        for drawn in noise.double():
            along = (fisher_probe(p, drawn) * logits).sum()
            add_curvature(score, torch.autograd.grad(along, token, retain_graph=True)[0], to_mask(model, vision))
    return score / len(noise)


@contextmanager
def in_float64(*models: torch.nn.Module) -> Iterator[None]:
    """Models, and all that their code casts to float32, in float64."""
    default = torch.get_default_dtype()
    for model in models:
        model.double()
    try:
        torch.set_default_dtype(torch.float64)
        with patch.object(torch, "float32", torch.float64), patch.object(Tensor, "float", Tensor.double):
            yield
    finally:
        torch.set_default_dtype(default)
        for model in models:
            model.float()


Drawn = tuple[Float[Tensor, "1 vision dim"], Int[Tensor, "1 prompt"], Float[Tensor, "probe 1 response top"]]


def drawn(tokens: int, response: int, top: int, draw: torch.Generator) -> Drawn:
    """Vision tokens, a prompt and noise."""
    ids = torch.randint(126000, (1, 30), generator=draw)
    ids[0, PLACE] = IMAGE
    vision = 5 * torch.randn(1, tokens, CONFIG["hidden_size"], generator=draw)
    return vision, ids, torch.randn(PROBES, 1, response, top, generator=draw, dtype=torch.float64)


def apart(one: Tensor, two: Tensor) -> str:
    """The greatest difference of any token, relative to `two`."""
    return f"{float((one.double() / two.double() - 1).abs().max()):9.1e}"


def compare(checkout: Path) -> Iterator[str]:
    """Lines of the report, one at a time."""
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        theirs = authors(checkout / "LLaDA-V")[0]
        own, count = ours(theirs, Path(name), CONFIG, LladaV)
    own.requires_grad_(False)
    theirs.requires_grad_(False)
    yield f"{count} weights under the authors' names, all loaded; {own.num_parameters():,} parameters"
    yield from scores(theirs, own)
    yield from masks(theirs, own)
    yield from answers(theirs, own)


def scores(theirs, own: LladaVModel) -> Iterator[str]:
    yield f"\nscores, {PROBES} probes of the same normal noise: the greatest relative difference of any token's"
    yield "  (1) theirs, the probe held constant, and ours"
    yield "  (2) theirs as it is, and ours differentiated through the probe"
    yield "  (3) theirs as it is, and ours"
    yield f"  {'weights':8} {'tokens':>6} {'response':>8} {'top':>6} {'(1)':>9} {'(2)':>9} {'(3)':>9}"
    for weights in ("float32", "float64"):
        for tokens, response, top in SCORED if weights == "float64" else SCORED[:-1]:
            vision, ids, noise = drawn(tokens, response, top, generator(0, "scores"))
            own.config.response_length = response
            with in_float64(theirs, own) if weights == "float64" else ExitStack():
                vision = vision.to(own.dtype)
                fixed = their_run(theirs, vision, ids, noise, constant=True).scores
                as_is = their_run(theirs, vision, ids, noise).scores
                made, through = our_scores(own, vision, ids, noise), through_the_probe(own, vision, ids, noise)[0]
            row = f"  {weights:8} {tokens:6} {response:8} {top:6}"
            yield f"{row} {apart(made, fixed)} {apart(through, as_is)} {apart(made, as_is)}"
    yield "  Their probe q ~ N(0, F) is made of p and not detached: what they take for J'q holds the derivative of q"
    yield "  as well, and their scores are not the estimate of the score that they name. That is all of (3)."
    yield "  float64: with all that either casts to float32, RMS norms, attention and logits, left in float64. All"
    yield "  logits only so: in float32 rounding changes their order, and by that which noise each gets."


def masks(theirs, own: LladaVModel) -> Iterator[str]:
    """Which tokens they mask, and which `mask_top` does."""
    yield f"\nmasked tokens; 8 positions of the response, top {TOP}"
    yield f"  {'tokens':>6} {'rho':>5} {'theirs':>7} {'ours':>5} {'the same, probe constant':>25} {'as it is':>9}"
    own.config.response_length = 8
    for tokens, ratio in MASKED:
        vision, ids, noise = drawn(tokens, 8, TOP, generator(tokens, "masks"))
        made = mask_top(our_scores(own, vision, ids, noise)[None], ratio)[0]
        both = [their_run(theirs, vision, ids, noise, constant=c, ratio=ratio).masked for c in (True, False)]
        same = [int((masked & made).sum()) for masked in both]
        row = f"  {tokens:6} {ratio:5} {int(both[1].sum()):7} {masked_count(ratio, tokens):5}"
        yield f"{row} {same[0]:25} {same[1]:9}"
    yield "  0.29 × 100 is 28.999… in floating point: theirs rounds that down, ours takes the ratio as it is written."


def answers(theirs, own: LladaVModel) -> Iterator[str]:
    """Decoded with the tokens masked that they masked."""
    own.config.response_length = ANSWER
    yield f"\n{PROMPTS} answers of {ANSWER} tokens, 11 of 37 vision tokens masked; LLaDA-V: `generate_with_embeds`"
    yield f"  {'':34} {'tokens the same':>19} {'left masked by':>22}"
    yield f"  {'':34} {'DiSP = ours':>19} {'DiSP':>8} {'LLaDA-V':>8} {'ours':>4}"
    for steps, block in DECODED:
        yield counted(theirs, own, f"{steps:2} steps, blocks of {block:2}", steps, block)
    for name, token in (("an end token made the likeliest", own.config.forbidden[0]), ("the mask token so", MASK)):
        favour(theirs, own, token)
        yield counted(theirs, own, name, 16, 16)
    yield "  DiSP's loop takes its quota over the block and ranks no position before the answer: none stays masked."
    yield "  LLaDA-V's ranks masked vision tokens too and fills these in the answer's place. Neither rules out the mask"
    yield "  token as an answer's, which ours does. End tokens are ruled out in all three: the same four."


def counted(theirs, own: LladaVModel, name: str, steps: int, block: int) -> str:
    """A row: tokens that DiSP's loop and ours share, and how many each of three loops leaves masked."""
    same, left = 0, [0, 0, 0]
    for k in range(PROMPTS):
        vision, ids, noise = drawn(37, block, TOP, generator(k, "answers"))
        run = their_run(theirs, vision, ids, noise, steps=steps, block=block, length=ANSWER)
        made, plain = decoded(theirs, own, hide(vision, run.masked[None], own.mask_embedding), ids, steps, block)
        same += int((run.answer == made).sum())
        left = [n + int((tokens == MASK).sum()) for n, tokens in zip(left, (run.answer, plain, made), strict=True)]
    whole = f"{same} of {PROMPTS * ANSWER}"
    return f"  {name:34} {whole:>19} {left[0]:8} {left[1]:8} {left[2]:4}"


def favour(theirs, own: LladaVModel, token: int) -> None:
    """The head's row of a token becomes what all first states of the answers have in common."""
    states = []
    for k in range(PROMPTS):
        vision, ids, _ = drawn(37, ANSWER, TOP, generator(k, "answers"))
        states.append(own.states(vision, ids, masked_response(own, vision))[0])
    states = torch.cat(states)
    with torch.no_grad():
        for head in (theirs.lm_head, own.lm_head):
            head.weight[token] = 12 * states.sum(0) / states.square().sum(1).mean()


if __name__ == "__main__":
    main(__doc__, "disp", {"disp": "bigglesworthnotacat/Diffusion_Self_Purification"}, compare)
