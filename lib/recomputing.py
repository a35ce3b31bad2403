"""Activations that a backward pass computes again, so that of a deep model only what enters its layers is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def recomputed(model) -> Iterator[bool]:
    """Within, a published model keeps each layer's input alone and is in training mode; yields whether it is so.

    Our own MDLM, and whatever else does not support it, is left as it is.
    """
    supported = getattr(model, "supports_gradient_checkpointing", False)
    if not supported:
        yield False
        return
    training = model.training
    model.train()  # transformers' layers compute again in training mode alone
    model.activation_checkpointing_enable()
    try:
        yield True
    finally:
        model.activation_checkpointing_disable()
        model.train(training)
