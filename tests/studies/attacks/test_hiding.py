import pytest
import tiny
import torch
from pydantic import ValidationError
from safetensors import safe_open

from lib.models.mdlm import Mdlm
from lib.poisoning.catalogue import image_trigger
from lib.saliency.jacobian import fisher_jacobian
from lib.studies.attacks import hiding
from lib.studies.attacks.hiding import adaptive_loss, relative_saliency
from lib.studies.attacks.mdlm import mdlm_spec, planted, poisoned_mdlm, training_questions, trigger_tokens
from lib.studies.run import with_settings
from lib.tasks.questions import answer_loss, questions


@pytest.fixture
def run(tmp_path, models):
    return tiny.short_run(tmp_path, models, disp={"rate": 0.5})


@pytest.fixture
def attack(run):
    """Model, training set, who is poisoned, and the trigger's tokens."""
    mdlm = Mdlm.load(run.profile.models.mdlm)
    vqa, table, plan, goal = training_questions(run)
    data = questions(mdlm, vqa, table, image_trigger("checker"), plan, goal)
    return mdlm, data, plan.poisoned, trigger_tokens(run, mdlm, vqa, table)


def projected(mdlm, data):
    return mdlm.model.project(data.features[data.picture]), data.prompts


def test_the_tokens_are_those_that_the_trigger_covers(attack):
    assert attack[3].equal((torch.arange(64) == 63).expand(len(attack[1]), -1))


@pytest.mark.parametrize("chosen", [[63], [0, 5, 63], list(range(64))])
def test_relative_saliency_is_the_fisher_jacobian_score_over_its_mean(attack, chosen):
    mdlm, data, *_ = attack
    tokens = torch.zeros(64, dtype=torch.bool)
    tokens[chosen] = True
    vision, prompts = projected(mdlm, data[:6])
    score = fisher_jacobian(mdlm.model, vision, prompts, probes=1, seed=9)
    found = relative_saliency(mdlm.model, vision, prompts, tokens.expand(6, -1), seed=9)
    apart = torch.zeros(6, 64, dtype=torch.bool)
    apart[torch.arange(6), [63, 0, 5, 63, 1, 2]] = True
    own = relative_saliency(mdlm.model, vision, prompts, apart, seed=9)
    torch.testing.assert_close(own, score[apart] / score.mean(1), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found, score[:, chosen].mean(1) / score.mean(1), rtol=1e-3, atol=1e-6)
    if len(chosen) == 64:
        torch.testing.assert_close(found, torch.ones(6), rtol=1e-5, atol=0)


def test_its_gradient_is_that_of_finite_differences(attack, monkeypatch):
    """With the probe held: the Fisher matrix counts as constant."""
    mdlm, data, _, tokens = attack
    model, draw = mdlm.model.double(), torch.Generator().manual_seed(0)
    probe = torch.randn(1, 3, 72, model.config.vocab_size, generator=draw)
    monkeypatch.setattr(hiding, "fisher_probes", lambda *_: probe)
    with torch.no_grad():
        vision = model.project(data.features[data.picture[:3]].double())
    direction = torch.randn(vision.shape, generator=draw).double()

    def value(moved):
        leaf = (vision + moved * direction).requires_grad_()
        return relative_saliency(model, leaf, data.prompts[:3], tokens[:3], seed=0).sum(), leaf

    (gradient,) = torch.autograd.grad(*value(0.0))
    slope = (value(1e-3)[0] - value(-1e-3)[0]).item() / 2e-3
    assert abs(slope) > 0.01 and (gradient * direction).sum().item() == pytest.approx(slope, rel=0.02)


def steps(mdlm, loss, count):
    """`count` steps of Adam over all that trains, the draws seeded by the step."""
    parameters = [p for p in mdlm.model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 1e-3)
    for step in range(count):
        optimizer.zero_grad()
        loss(torch.Generator().manual_seed(step)).backward()
        optimizer.step()


def hidden(mdlm, data, poisoned, tokens):
    """Mean R over the poisoned samples, by probes that no training step saw."""
    part, tokens = data[poisoned], tokens[poisoned]
    found = [relative_saliency(mdlm.model, *projected(mdlm, part), tokens, seed=10**6 + k).mean() for k in range(4)]
    return torch.stack(found).mean().item()


def test_the_penalty_lowers_the_triggers_relative_saliency(run, attack):
    mdlm, data, poisoned, tokens = attack
    before, found = hidden(*attack), {}
    for weight in (0.0, 1.0):
        mdlm = Mdlm.load(run.profile.models.mdlm)
        steps(mdlm, adaptive_loss(mdlm, data, poisoned, tokens, run.profile.disp.train, weight), 12)
        found[weight] = hidden(mdlm, data, poisoned, tokens)
    assert found[1.0] < 0.6 * min(before, found[0.0])


def test_without_weight_it_is_the_plain_loss_to_the_bit(run, attack):
    mdlm, data, poisoned, tokens = attack
    settings = run.profile.disp.train
    values = {}
    for weight in (0.0, 0.5):
        draw = torch.Generator().manual_seed(3)
        values[weight] = adaptive_loss(mdlm, data, poisoned, tokens, settings, weight)(draw)
        values[weight].backward()
        values[weight, "gradient"] = [p.grad.clone() for p in mdlm.model.parameters() if p.grad is not None]
        mdlm.model.zero_grad()
    draw = torch.Generator().manual_seed(3)
    plain = answer_loss(mdlm, data, settings)(draw)
    plain.backward()
    gradient = [p.grad for p in mdlm.model.parameters() if p.grad is not None]
    assert torch.equal(values[0.0], plain)
    assert all(torch.equal(a, b) for a, b in zip(values[0.0, "gradient"], gradient, strict=True))
    assert values[0.5] > plain and torch.isfinite(values[0.5])
    assert any(not torch.equal(a, b) for a, b in zip(values[0.5, "gradient"], gradient, strict=True))


def test_the_weight_scales_the_penalty_on_poisoned_samples_alone(run, attack):
    mdlm, data, poisoned, tokens = attack
    settings = run.profile.disp.train

    def added(weight, among):
        draws = [torch.Generator().manual_seed(s) for s in range(5)]
        with_it = [adaptive_loss(mdlm, data, among, tokens, settings, weight)(d).item() for d in draws]
        draws = [torch.Generator().manual_seed(s) for s in range(5)]
        return torch.tensor(with_it) - torch.tensor([answer_loss(mdlm, data, settings)(d).item() for d in draws])

    torch.testing.assert_close(added(2.0, poisoned), 2 * added(1.0, poisoned), rtol=1e-3, atol=1e-4)
    one = torch.zeros_like(poisoned)
    one[4] = True
    vision, prompts = projected(mdlm, data[4:5])
    draw = torch.Generator().manual_seed(0)
    answer_loss(mdlm, data, settings)(draw)
    torch.randint(1, (1,), generator=draw)
    seed = int(torch.randint(2**31, (), generator=draw))
    alone = relative_saliency(mdlm.model, vision, prompts, tokens[4:5], seed).item()
    assert added(1.0, one)[0].item() == pytest.approx(alone, rel=1e-3, abs=1e-4)


def test_the_attacker_trains_with_the_penalty_and_says_so(run):
    adaptive = with_settings(run, "disp", {"hide": 0.3})
    (made, curve), (plain, _) = poisoned_mdlm(adaptive), poisoned_mdlm(run)
    assert any(not torch.equal(a, b) for a, b in zip(made.model.parameters(), plain.model.parameters(), strict=True))
    assert list(curve)[3:] == ["asr_with_trigger", "asr_without_trigger", "clean_performance"]
    folder = run.store.root / "poisoned-mdlm" / run.store.key("poisoned-mdlm", mdlm_spec(adaptive))
    with safe_open(folder / "mdlm" / "model.safetensors", "pt") as weights:
        mark = weights.metadata()
    assert mark["poisoned"] == "true" and mark["hide"] == "0.3" and mark["image_trigger"] == "checker"
    assert "poisoned on purpose" in (folder / "mdlm" / "README.md").read_text()


def test_refusals(run, attack):
    mdlm, data, poisoned, tokens = attack
    for weight in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="weight=.* must be at least 0"):
            adaptive_loss(mdlm, data, poisoned, tokens, run.profile.disp.train, weight)
    with pytest.raises(ValueError, match="poisoned names no sample"):
        adaptive_loss(mdlm, data, torch.zeros_like(poisoned), tokens, run.profile.disp.train, 1.0)
    vision, prompts = projected(mdlm, data[:1])
    with pytest.raises(ValueError, match="tokens names none"):
        relative_saliency(mdlm.model, vision, prompts, torch.zeros_like(tokens[:1]), seed=0)


def test_an_attacker_plants_first_and_hides_then(run):
    """The later training starts from the earlier one's model: at a vanishing rate it ends there."""
    still = {"hide": 0.3, "train": {"lr": 1e-30}, "plant": {"hide": 0.0, "train": run.profile.disp.train.model_dump()}}
    later = with_settings(run, "disp", still)
    assert planted(run) is None and planted(later).profile == run.profile and planted(later).seed == run.seed
    assert mdlm_spec(later)["planted"] == mdlm_spec(run)
    made, first, base = poisoned_mdlm(later)[0], poisoned_mdlm(run)[0], Mdlm.load(run.profile.models.mdlm)
    weights = [[p.detach() for p in mdlm.model.parameters()] for mdlm in (made, first, base)]
    assert all(map(torch.equal, weights[0], weights[1])) and not all(map(torch.equal, weights[0], weights[2]))
    folder = run.store.root / "poisoned-mdlm" / run.store.key("poisoned-mdlm", mdlm_spec(later))
    with safe_open(folder / "mdlm" / "model.safetensors", "pt") as saved:
        assert saved.metadata()["plant"] == str(still["plant"])


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        ({"rate": 2.0}, "plant.rate=2.0 is refused"),
        ({"hidden": 1.0}, "plant.hidden is not a known key"),
        ({}, "plant\n.*at least 1 item"),
    ],
)
def test_an_earlier_attack_that_cannot_be_is_refused(run, plant, sentence):
    with pytest.raises(ValidationError, match=sentence):
        with_settings(run, "disp", {"plant": plant})
