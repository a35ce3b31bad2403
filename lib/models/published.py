"""What all published models share: loading with every weight accounted for, saving, and prompts with a picture."""

from __future__ import annotations

from os.path import commonprefix
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lib.models.mdlm import Mdlm
from lib.models.strict import strict, strict_words
from lib.settings.paths import pretrained


class Published(Mdlm):
    """A model with its tokenizer: texts in, texts out, in the model's own conversation template.

    A kind of model gives what follows, and `_prompt`. tokens: what the config's special ids must be. names: patterns of
    the stored weights' names where they are not ours, and ours.
    """

    kind: ClassVar[str]
    config_kind: ClassVar[type[PreTrainedConfig]]
    model_kind: ClassVar[type[PreTrainedModel]]
    tokens: ClassVar[dict[str, str]]
    names: ClassVar[dict[str, str]] = {}
    padding: ClassVar[str] = "right"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast):
        self.model, self.tokenizer = model, tokenizer
        for field, token in self.tokens.items():
            configured, expected = getattr(model.config, field), tokenizer.convert_tokens_to_ids(token)
            if configured != expected:
                raise ValueError(f"{field}={configured} must be {expected}, the tokenizer's {token}")
        self.template = len(self._prompt("?"))

    @classmethod
    def load(
        cls, name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, **settings
    ) -> Published:
        """From a local folder or the hub, safetensors only, no code of theirs; `settings` go to the config.

        Raises ValueError for weights that are missing, unknown or of another shape.
        """
        source = pretrained(name)
        config = cls.config_kind.from_pretrained(**source, **settings)
        model = strict(cls.model_kind, source, cls.kind, config=config, dtype=dtype, key_mapping=cls.names or None)
        model.tower.requires_grad_(False)
        return cls(model.to(device).eval(), strict_words(PreTrainedTokenizerFast, source))

    def save(self, folder: str) -> None:
        """In the published layout: weights as bfloat16 safetensors, in shards of 5 GB; tied ones once."""
        halves: dict[int, Tensor] = {}
        weights = {
            name: halves.setdefault(value.data_ptr(), value.to(torch.bfloat16))
            for name, value in self.model.state_dict().items()
        }
        self.model.save_pretrained(folder, state_dict=weights, max_shard_size="5GB")
        self.tokenizer.save_pretrained(folder)

    def prompts(self, questions: list[str]) -> Int[Tensor, "batch prompt"]:
        """Conversations up to the model's turn, the picture's place in them, padded; too long ones are refused."""
        rows, most = [self._prompt(text) for text in questions], self.model.config.prompt_length + self.template
        for text, row in zip(questions, rows, strict=True):
            if sum(token < 0 for token in row) != 1:
                raise ValueError(f"question={text!r} holds <image>: the picture has its place before the question")
            if len(row) > most:
                over = f"{len(row)} tokens, {self.template} of them the template's"
                raise ValueError(f"question={text!r} makes {over}: the model takes at most {most}")
        fill = [[self.model.config.pad_id] * (most - len(row)) for row in rows]
        padded = [pad + row if self.padding == "left" else row + pad for row, pad in zip(rows, fill, strict=True)]
        return torch.tensor(padded, dtype=torch.long).view(len(questions), most)

    def question_tokens(self, prompts: Int[Tensor, "batch prompt"]) -> Bool[Tensor, "batch prompt"]:
        """Which tokens of prompts are the question's: neither padding nor the conversation around it."""
        text = super().question_tokens(prompts)
        before, after = self.around
        place, length = text.cumsum(1) - 1, text.sum(1, keepdim=True)
        return text & (place >= before) & (place < length - after)

    @property
    def around(self) -> tuple[int, int]:
        """How many tokens of a prompt stand before the question, and how many behind it."""
        pair = self._prompt("a"), self._prompt("b")
        return len(commonprefix(pair)), len(commonprefix([row[::-1] for row in pair]))

    def _prompt(self, question: str) -> list[int]:
        """Ids of the conversation, `IMAGE` for the picture."""
        raise NotImplementedError
