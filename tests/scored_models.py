"""Two models small enough that their token scores are known exactly, and samples of theirs."""

from types import SimpleNamespace

import torch

from lib.models.mdlm import MdlmConfig, MdlmModel

VISION, WIDTH, POSITIONS, VOCABULARY = 4, 3, 2, 5


class Linear:
    """Logits that are linear in the vision tokens; the second token is not seen."""

    def __init__(self):
        self.config = SimpleNamespace(mask_id=0, response_length=POSITIONS)
        draw = torch.Generator().manual_seed(0)
        self.weight = torch.randn(POSITIONS, VOCABULARY, VISION, WIDTH, generator=draw)
        self.weight[:, :, 1] = 0
        self.mask_embedding = torch.randn(WIDTH, generator=draw)
        self.blank = None

    def logits(self, vision, prompt, response):
        self.blank = response
        return torch.einsum("lvid,bid->blv", self.weight.to(vision.dtype), vision)


def mdlm(vocabulary=7):
    torch.manual_seed(0)
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shapes = {"vocab_size": vocabulary, "width": 8, "layers": 2, "prompt_length": 3, "response_length": 2}
    model = MdlmModel(MdlmConfig(vision | {"image_size": 16, "patch_size": 8}, **shapes)).eval()
    for parameter in model.blocks.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(model.head.weight)
    return model


def inputs(width=WIDTH, batch=3):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(batch, VISION, width, generator=draw), torch.tensor([[4, 5, 2]] * batch)
