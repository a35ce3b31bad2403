"""DiSP to click through: pick an attack and a question, move ρ, see what is masked and how the answer comes about.

    DispExplorer(run)           # the last expression of a notebook's cell
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import ipywidgets as widgets
import torch
from torch import Tensor

from lib.figures.followed import slider
from lib.figures.menus import Menus
from lib.figures.style import render
from lib.models.decoding import Selective, decode
from lib.models.mdlm import Mdlm
from lib.runtime.devices import autocast
from lib.saliency.by_name import directional
from lib.saliency.masking import mask_top
from lib.studies.attacks.mdlm import mdlm_spec, poisoned_mdlm, test_questions, trigger_pair
from lib.studies.cases import Case, cases
from lib.studies.disp.figures import answer_view
from lib.studies.disp.purification import scoring
from lib.studies.held import Held
from lib.studies.questions import question_data
from lib.studies.run import Run
from lib.tasks.questions import Questions, hide

FIELDS = ("target", "trigger", "rate", "picture")
QUESTIONS = 24
COMMAND = "make figures STUDY=disp FULL=1"


class DispExplorer(Menus):
    """Menus over the attacks whose compromised model is in the store, and sliders of the question and of ρ.

    The model answers when a slider is moved; the store is read then, and nothing is trained. Raises ValueError where
    there is no such model yet.
    """

    def __init__(self, run: Run):
        self._run = run = replace(run, store=Held(run.store, COMMAND))
        found = {}
        for case in cases(run.profile):
            if run.store.has("poisoned-mdlm", mdlm_spec(case.run(run))):
                settings = case.run(run).profile.disp
                for shown in ("triggered", "clean"):
                    found.setdefault((settings.target, settings.image_trigger, settings.rate, shown), case)
        self._load = lru_cache(maxsize=2)(self._loaded)
        self._scores = lru_cache(maxsize=256)(self._scored)
        last = min(QUESTIONS, run.profile.disp.curve_questions) - 1
        self.question = slider(widgets.IntSlider, 0, last, "question")
        self.ratio = slider(widgets.FloatSlider, 0, 0.9, "ρ", step=0.02)
        nothing = f"the store holds no poisoned MDLM yet: `{COMMAND}` makes them"
        super().__init__(found, FIELDS, (self.question, self.ratio), nothing)

    def draw(self) -> bytes:
        """The chosen question's picture, saliency, masked tokens and answer, step by step.

        Of a model that sees a picture as a whole and in tiles, the tokens of the whole alone are drawn.
        """
        mdlm, data, pictures = self._load(self.fields)
        k = self.question.value
        scores = self._scores(self.fields, k)
        masked, whole = mask_top(scores, self.ratio.value), slice(mdlm.model.whole)
        steps = answer_steps(mdlm, data[k : k + 1], masked, self.chosen.run(self._run).profile.disp.threshold)
        target, trigger, rate, shown = self.fields
        title = f"{target}, {trigger}, {100 * rate:g} %, {shown} picture, question {k}, ρ = {self.ratio.value:g}"
        told = data.table["question"].iloc[k], steps, data.answers[k], title
        return render(answer_view(pictures[k], scores[0, whole], masked[0, whole], *told), "png")

    def _loaded(self, fields: tuple) -> tuple[Mdlm, Questions, Tensor]:
        case: Case = self.found[fields]
        case_run = case.run(self._run)
        mdlm, hit = poisoned_mdlm(case_run)[0], fields[-1] == "triggered"
        data = test_questions(case_run, mdlm, self.question.max + 1)[int(hit)]
        vqa = question_data(case_run, "test")
        trigger = trigger_pair(case_run, "image")[0] if hit else None
        return mdlm, data, vqa.pictures(torch.tensor(data.table["image"].to_numpy()), trigger)

    def _scored(self, fields: tuple, question: int) -> Tensor:
        mdlm, data, _ = self._load(fields)
        case_run = self.found[fields].run(self._run)
        return directional(mdlm, data[question : question + 1], **scoring(case_run))


@torch.no_grad()
def answer_steps(mdlm: Mdlm, data: Questions, masked: Tensor, threshold: float) -> list[str]:
    """The response of one question before every step and after the last, as text; a token not yet settled is "_".

    Decoded as `lib.tasks.questions.respond` does.
    """
    model, device = mdlm.model, mdlm.model.device
    config, seen = model.config, []
    with autocast(device):
        vision = hide(model.project(data.features[data.picture].to(device)), masked.to(device), model.mask_embedding)
        source = _Watched(model.response_logits(vision, data.prompts.to(device)), seen)
        blank = torch.full((1, config.response_length), config.mask_id, device=device)
        every = torch.ones_like(blank, dtype=torch.bool)
        length = config.response_length
        options = {"steps": length, "block_length": length, "mask_id": config.mask_id, "threshold": threshold}
        options |= {"eos_id": config.eos_id, "end": mdlm.end}
        seen.append(decode(source, blank, every, **options).tokens)
    return [" ".join("_" if token == config.mask_id else mdlm.texts(token[None, None])[0] for token in row[0]).rstrip()
            for row in seen]


class _Watched:
    """Logits of `source`, with the tokens that they were asked for kept in `seen`."""

    def __init__(self, source: Selective, seen: list[Tensor]):
        self._source, self._seen = source, seen

    def start_block(self, block: Tensor) -> None:
        self._source.start_block(block)

    def logits_at(self, tokens: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        self._seen.append(tokens.clone())
        return self._source.logits_at(tokens, rows, positions)
