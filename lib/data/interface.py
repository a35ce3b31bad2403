"""What the studies need of their data, whatever it is made of."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class EditData(Protocol):
    """Edit triples over numbered pictures.

    triples: columns source, target (picture indices), instruction, edit, value, family (its pictures are one
             cluster), split.
    """

    triples: pd.DataFrame

    def pictures(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch 3 size size"]:
        """Pictures as floats in [0, 1]."""
        ...


@runtime_checkable
class QuestionData(Protocol):
    """Questions about numbered pictures: `table` has columns image (picture index), question, answer, kind."""

    table: pd.DataFrame

    def pictures(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch 3 size size"]:
        """Pictures as floats in [0, 1]."""
        ...
