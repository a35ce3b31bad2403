"""Questions about pictures that are read when asked for; the same shape as `EasyVqa`."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from lib.data.pictures import Pictures


@dataclass(frozen=True)
class PhotoQuestions:
    """One split. `table` has one row a question: image (its picture), question, answer, kind, and what a loader adds.

    `pictures(indices)` gives pictures as floats in [0, 1], `[batch, 3, size, size]`.
    """

    pictures: Pictures
    table: pd.DataFrame
