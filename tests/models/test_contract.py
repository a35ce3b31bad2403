"""One call that names what a model of one's own does not give."""

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from tiny_mdlms import ADAPTERS

from lib.models import Mdlm, check_editor, check_mdlm
from lib.settings.paths import ROOT

TEMPLATE = ROOT / "docs" / "template.py"


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_kind_keeps_the_contract(kind, tmp_path):
    left_out = set(check_mdlm(ADAPTERS[kind](tmp_path)))
    assert left_out <= {"model.blocks", "model.config.pad_id", "model.config.vision_features"}


@pytest.fixture(scope="module")
def template():
    return runpy.run_path(str(TEMPLATE))


@pytest.fixture
def mine(template):
    torch.manual_seed(0)
    return template["Mine"]()


def test_the_template_says_what_it_leaves_out(mine):
    left_out = check_mdlm(mine)
    assert left_out["model.features"] == "questions" and len(left_out) == 7


def replaced(name, call):
    return lambda network: setattr(network, name, call(network))


def removed(name):
    return lambda network: delattr(network.config, name)


def unstated(network):
    """Its logits stay as they are."""
    states = network.states
    network.logits = lambda *given: network.head(states(*given))
    network.states = lambda *given: {}["states"]


FAULTS = {
    "model.project is missing": replaced("project", lambda _: None),
    "model.config.mask_id is missing: it must be an integer": removed("mask_id"),
    "model.device is missing": replaced("device", lambda _: None),
    r"float64 \[2, 2, 7\]: it must give": replaced("logits", lambda n: lambda *a: n.head(n.states(*a)).double()),
    r"gives torch.float32 \[1, 2, 7\]": replaced("logits", lambda n: lambda *a: type(n).logits(n, *a)[:1]),
    "not finite": replaced("logits", lambda n: lambda *a: type(n).logits(n, *a) / 0),
    "depend on the samples beside it": replaced("logits", lambda n: lambda *a: type(n).logits(n, *a) - len(a[0])),
    r"model.logits fails \(KeyError: 'vision'\)": replaced("logits", lambda _: lambda *a: {}["vision"]),
    "other logits than": replaced("response_logits", lambda n: lambda *a: lambda r: 1 + n.logits(*a, r)),
    "gives Tensor: it must give a call": replaced("response_logits", lambda n: lambda *a: torch.zeros(2, 2, 7)),
    r"head\(model.states\(…\)\) gives other logits": replaced("logits", lambda n: lambda *a: 2 * type(n).logits(n, *a)),
    r"head\(model.states\(…\)\) fails \(KeyError": unstated,
    "reaches the vision tokens": replaced("logits", lambda n: lambda v, *a: type(n).logits(n, v.detach(), *a)),
    "reaches a parameter": replaced("states", lambda n: lambda *a: type(n).states(n, *a).detach() * 0),
}


@pytest.mark.parametrize("sentence", FAULTS)
def test_what_is_missing_is_named(mine, sentence):
    FAULTS[sentence](mine.model)
    with pytest.raises(ValueError, match=f"Mine does not keep the contract: .*{sentence}"):
        check_mdlm(mine)


def test_all_that_is_missing_is_named_at_once(mine):
    mine.model.project, mine.model.device = None, None
    with pytest.raises(ValueError, match=r"model\.project is missing; model\.device is missing\.$"):
        check_mdlm(mine)


def test_a_loss_of_a_row_per_sample_is_refused(mine):
    mine.loss = lambda model, vision, *_: model.project(torch.zeros(len(vision), 8, 5)).sum((1, 2))
    with pytest.raises(ValueError, match=r"loss gives \[2\]: it must give one finite number"):
        check_mdlm(mine)


def test_texts_that_are_none_are_named(mine, template):
    mine.texts = lambda responses: responses
    with pytest.raises(ValueError, match=r"texts must give one string for each of 2 responses\.$"):
        check_mdlm(mine)
    untold = object.__new__(type("Untold", (Mdlm,), {}))
    untold.model = mine.model
    with pytest.raises(ValueError, match=r"one string for each of 2 responses \(AttributeError: .*eos_id"):
        check_mdlm(untold)


def test_a_bare_network_is_to_be_wrapped(mine, untyped):
    with pytest.raises(ValueError, match="Network is a network: give an Mdlm that holds it"):
        check_mdlm(mine.model)


def test_what_is_no_network_is_refused(mine):
    mine.model = None
    with pytest.raises(ValueError, match="model is NoneType: it must be a torch module"):
        check_mdlm(mine)


def test_the_template_runs_as_it_stands_and_is_short(capsys):
    runpy.run_path(str(TEMPLATE), run_name="__main__")
    told = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    before, found, after = (float(told[k]) for k in ("attack success", "trigger found", "attack success after DiSP"))
    assert before > 0.9 and found > 0.9 and after < 0.1
    assert len(Path(TEMPLATE).read_text().splitlines()) < 80


@pytest.fixture(scope="module")
def editor():
    return tiny.editor()


def test_an_editor_keeps_the_contract(editor):
    check_editor(editor)


def test_what_an_editor_lacks_is_named(editor):
    pipe = SimpleNamespace(unet=editor.unet, vae=None, scheduler=editor.scheduler, tokenizer=None)
    with pytest.raises(ValueError, match=r"contract of an editor: vae is missing; tokenizer is missing\.$"):
        check_editor(pipe)


def test_parts_of_an_editor_that_do_not_fit_are_named(editor):
    unet = SimpleNamespace(config=SimpleNamespace(in_channels=5, cross_attention_dim=3))
    scheduler = copy.deepcopy(editor.scheduler)
    scheduler.register_to_config(prediction_type="sample")
    text = SimpleNamespace(config=SimpleNamespace(hidden_size=4))
    parts = {"tokenizer": editor.tokenizer, "vae": editor.vae, "scheduler": scheduler, "text_encoder": text}
    with pytest.raises(ValueError, match="unet takes 5 channels: .*prediction_type='sample' must be.*of width 4: unet"):
        check_editor(SimpleNamespace(unet=unet, **parts))
