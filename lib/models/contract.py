"""What a model of one's own must give, checked by one call that names all that is missing.

    left_out = check_mdlm(Mine())  # raises ValueError, or says what cannot be used without the rest
    check_editor(pipe)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lib.models.mdlm import Mdlm

INTEGERS = ("mask_id", "response_length", "vision_length")
CALLS = ("logits", "response_logits", "project")
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
OPTIONAL = {  # what may be left out, and what needs it
    "model.features": "questions",
    "model.config.prompt_length": "questions",
    "model.config.vision_features": "questions",
    "model.tokens_of": "figures, the trigger's rank",
    "model.blocks": "the score attention, CleanSight, attention pruning",
    "model.config.pad_id": "masking of words, unless question_tokens is its own",
    "tokenizer": "questions, unless prompts and responses are its own",
}


def check_mdlm(mdlm: Mdlm, batch: int = 2) -> dict[str, str]:
    """Ask a masked-diffusion vision-language model all that the library will ask, on random vision tokens.

    Returns what it leaves out, by name, with what cannot be used without. Raises ValueError that lists every part of
    the contract (`docs/extending.md`) that is missing or gives something else.
    """
    if isinstance(mdlm, nn.Module):
        raise ValueError(f"{type(mdlm).__name__} is a network: give an Mdlm that holds it, as docs/template.py does")
    model = getattr(mdlm, "model", None)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {type(model).__name__}: it must be a torch module, the network of the Mdlm")
    faults = list(_parts(model))
    if not faults:
        given = _inputs(mdlm, batch)
        faults = [*_answers(mdlm, *given), *_learns(mdlm, *given)]
    if faults:
        raise ValueError(f"{type(mdlm).__name__} does not keep the contract: {'; '.join(faults)}.")
    return {name: need for name, need in OPTIONAL.items() if _missing(mdlm, name)}


def check_editor(pipe: Any) -> None:
    """Whether an image editor has the parts of diffusers' InstructPix2Pix pipeline, of widths that fit one another.

    Raises ValueError that lists all that is missing or does not fit.
    """
    parts = ("unet", "vae", "scheduler", "tokenizer")
    faults = [f"{name} is missing" for name in parts if not getattr(pipe, name, None)]
    if not faults:
        asked, given = pipe.unet.config.in_channels, 2 * pipe.vae.config.latent_channels
        if asked != given:
            faults.append(f"unet takes {asked} channels: it must take {given}, noisy latent and source's side by side")
        kind = pipe.scheduler.config.prediction_type
        if kind not in ("v_prediction", "epsilon"):
            faults.append(f"scheduler.prediction_type={kind!r} must be 'v_prediction' or 'epsilon'")
        text = getattr(pipe, "text_encoder", None)
        width, states = pipe.unet.config.cross_attention_dim, text and text.config.hidden_size
        if text is not None and width != states:
            faults.append(f"text_encoder gives states of width {states}: unet takes {width}")
    if faults:
        raise ValueError(f"{type(pipe).__name__} does not keep the contract of an editor: {'; '.join(faults)}.")


def _missing(holder: Any, name: str) -> bool:
    for part in name.split("."):
        holder = getattr(holder, part, None)
        if holder is None:
            return True
    return False


def _parts(model: nn.Module) -> Iterator[str]:
    for name in INTEGERS:
        value = getattr(getattr(model, "config", None), name, None)
        if not isinstance(value, int):
            yield f"model.config.{name} is {'missing' if value is None else repr(value)}: it must be an integer"
    for name in CALLS:
        if not callable(getattr(model, name, None)):
            yield f"model.{name} is missing"
    if not isinstance(getattr(model, "device", None), torch.device):
        yield "model.device is missing"
    vector = getattr(model, "mask_embedding", None)
    if not isinstance(vector, Tensor) or vector.dim() != 1:
        yield "model.mask_embedding must be a tensor [dim]"


def _answers(mdlm: Mdlm, vision: Tensor, prompt: Tensor, response: Tensor) -> Iterator[str]:
    """Shapes of the logits, whether samples stay apart, and whether both ways to ask for them agree."""
    model, (batch, length) = mdlm.model, response.shape
    with torch.no_grad():
        logits = _tried(lambda: model.logits(vision, prompt, response))
    if isinstance(logits, str):
        yield f"model.logits fails ({logits})"
        return
    if logits.dim() != 3 or logits.shape[:2] != (batch, length) or logits.dtype != torch.float32:
        yield f"model.logits gives {logits.dtype} {[*logits.shape]}: it must give float32 [{batch}, {length}, vocab]"
        return
    if not logits.isfinite().all():
        yield "model.logits gives values that are not finite"
    with torch.no_grad():
        alone = model.logits(vision[:1], prompt[:1], response[:1])
        calls = _tried(lambda: model.response_logits(vision, prompt))
    if not torch.allclose(alone, logits[:1], **CLOSE):
        yield "model.logits of a sample depend on the samples beside it"
    if isinstance(calls, str):
        yield f"model.response_logits fails ({calls})"
    elif not callable(calls) and not hasattr(calls, "logits_at"):
        yield f"model.response_logits gives {type(calls).__name__}: it must give a call from responses to their logits"
    elif not _agree(model, calls, response, logits):
        yield "model.response_logits gives other logits than model.logits"
    if not (_missing(model, "states") or _missing(model, "head")):
        with torch.no_grad():
            own = _tried(lambda: model.head(model.states(vision, prompt, response)).float())
        if isinstance(own, str):
            yield f"model.head(model.states(…)) fails ({own})"
        elif own.shape != logits.shape or not torch.allclose(own, logits, **CLOSE):
            yield "model.head(model.states(…)) gives other logits than model.logits"
    texts = _tried(lambda: mdlm.texts(response))
    if not isinstance(texts, list) or len(texts) != batch or not all(isinstance(text, str) for text in texts):
        said = f" ({texts})" if isinstance(texts, str) else ""
        yield f"texts must give one string for each of {batch} responses{said}"


def _agree(model: nn.Module, calls: Any, response: Tensor, logits: Tensor) -> bool:
    """Whether decoding is given the same logits, of a `Selective`, which may denoise in its own way, the same shape."""
    if not hasattr(calls, "logits_at"):
        with torch.no_grad():
            again = _tried(lambda: calls(response).float())
        return not isinstance(again, str) and again.shape == logits.shape and torch.allclose(again, logits, **CLOSE)
    rows, places = (torch.arange(count, device=model.device) for count in response.shape)
    calls.start_block(places.expand(len(rows), -1))
    return calls.logits_at(response, rows, places.expand(len(rows), -1)).shape == logits.shape


def _learns(mdlm: Mdlm, vision: Tensor, prompt: Tensor, response: Tensor) -> Iterator[str]:
    """Whether gradients reach the vision tokens (a saliency) and the parameters (fine-tuning)."""
    model = mdlm.model
    logits = _tried(lambda: model.logits(vision.requires_grad_(), prompt, response))
    if not isinstance(logits, str) and not _reaches(logits.float().square().sum(), vision):
        yield "no gradient of model.logits reaches the vision tokens"
    given = vision.detach(), prompt, torch.zeros_like(response)
    loss = _tried(lambda: mdlm.loss(model, *given, torch.Generator().manual_seed(0)))
    if isinstance(loss, str):
        yield f"loss(model, vision, prompt, response, draw) fails ({loss})"
    elif loss.dim() or not loss.isfinite():
        yield f"loss gives {[*loss.shape]}: it must give one finite number"
    elif not any(_reaches(loss, part) for part in model.parameters() if part.requires_grad):
        yield "no gradient of loss reaches a parameter"


def _inputs(mdlm: Mdlm, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random vision tokens, prompts (of the token 0 where there is no tokenizer), and responses that are all masked."""
    model, config = mdlm.model, mdlm.model.config
    size = batch, config.vision_length, len(model.mask_embedding)
    vision = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(model.device)
    blank = torch.zeros(batch, getattr(config, "prompt_length", 1), dtype=torch.long)
    prompt = (blank if _missing(mdlm, "tokenizer") else mdlm.prompts(["what is it?"] * batch)).to(model.device)
    response = torch.full((batch, config.response_length), config.mask_id, device=model.device)
    return vision, prompt, response


def _reaches(value: Tensor, part: Tensor) -> bool:
    if not value.requires_grad:
        return False
    (found,) = torch.autograd.grad(value, part, retain_graph=True, allow_unused=True)
    return found is not None and bool(found.isfinite().all() and found.any())


def _tried(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001, whatever the user's code raises is told
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
