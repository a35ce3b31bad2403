"""The collapse study in full: what each of its attacks gives, as tidy tables.

    for attack in attacks(run.profile):
        row = attack_row(run, attack)       # sampled, or from the store
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from lib.attacks.editor import poisoned_editor, trigger_pair
from lib.attribution import attribution, hierarchical_mean
from lib.collapse import QUANTITIES, Collapse, collapse, paper_values
from lib.config import Run
from lib.decision import decide
from lib.detection import detect, detection_table, localisation_table
from lib.evaluation import mean_with_interval, pixel_distance, rate
from lib.modalities import modality_table, three_modalities
from lib.poisoning import COALITIONS
from lib.profile import changed
from lib.studies import Attack, attacks
from lib.triggers import image_trigger


def prepare(run: Run, attack: Attack) -> None:
    """Train, sample and measure whatever the tables need of the attack: afterwards it is in the store."""
    if attack.part == "mask":
        three_modalities(attack.run(run), attack.protocol)
    elif attack.part == "detect":
        detect(attack.run(run), attack.protocol, run.profile.grid.detection)
    else:
        collapse(attack.run(run), attack.protocol)
        if attack.part == "size":
            guided(run, attack)


def guided(run: Run, attack: Attack) -> list[Collapse]:
    """The attack's held-out edits at every text-guidance scale of `grid.guidance`."""
    own = attack.run(run)
    sampling = own.profile.collapse.sampling
    scales = run.profile.grid.guidance
    return [collapse(own, attack.protocol, changed(sampling, {"text_guidance": scale})) for scale in scales]


def attack_row(run: Run, attack: Attack, embedding: str = "clip") -> dict[str, Any]:
    """One tidy row: the attack's settings, ASR and v of each coalition, φ, CTI, fidelity and the decision.

    Numbers come as name, name_low and name_high (95 %: Wilson for ASR, bootstrap over samples for the others).
    fidelity: RMS pixel distance of untriggered edits to the true ones.
    """
    own = attack.run(run)
    settings = own.profile.collapse
    kept = ("image_trigger", "text_trigger", "rate", "target", "trigger_size", "condition_dropout", "negatives")
    about = {"part": attack.part, "label": attack.label, "protocol": attack.protocol, "seed": own.seed}
    about |= {name: getattr(settings, name) for name in (*kept, "text_weight")}
    about |= {"steps": settings.train.steps, "batch": settings.train.batch, "embedding": embedding}
    result = collapse(own, attack.protocol, embedding=embedding)
    numbers = {f"asr_{name}": rate(result.success[:, k]) for k, name in enumerate(COALITIONS)}
    numbers |= {f"v_{name}": mean_with_interval(result.v[:, k], own.seed) for k, name in enumerate(COALITIONS)}
    numbers |= {name: mean_with_interval(x, own.seed) for name, x in attribution(result.v).items()}
    numbers["fidelity"] = mean_with_interval(pixel_distance(result.edited[:, 0], result.clean), own.seed)
    for name, number in numbers.items():
        about |= {name: number["value"], f"{name}_low": number["low"], f"{name}_high": number["high"]}
    return about | {"n": len(result.v)} | asdict(decide(result.phi, result.possible, own.seed))


def attack_table(run: Run, parts: tuple[str, ...], embedding: str = "clip") -> pd.DataFrame:
    """`attack_row` of every attack of those parts."""
    chosen = [attack for attack in attacks(run.profile) if attack.part in parts]
    return pd.DataFrame(attack_row(run, attack, embedding) for attack in tqdm(chosen, desc="attacks", leave=False))


def seeds_table(run: Run) -> pd.DataFrame:
    """φ_I, φ_T and CTI of the grid at the rate that has several seeds, one row a pair and protocol.

    Each as name, name_low, name_high and paper_name (at 5 %). Intervals are hierarchical: seeds are drawn
    with replacement, then samples within each.
    """
    grid, rows = run.profile.grid, []
    for (_, protocol), group in groupby(attacks(run.profile), lambda attack: (attack.label, attack.protocol)):
        found = list(group)
        settings = found[0].settings
        if found[0].part != "grid" or settings["rate"] != grid.seeded_rate:
            continue
        pair = settings["image_trigger"], settings["text_trigger"]
        drawn = [attribution(collapse(attack.run(run), protocol).v) for attack in found]
        paper = paper_values(pair, protocol)
        row = {"label": f"{' + '.join(pair)}, {protocol.upper()}", "pair": " + ".join(pair), "protocol": protocol}
        row |= {"rate": grid.seeded_rate, "seeds": len(drawn), "n": sum(len(one["cti"]) for one in drawn)}
        for name in QUANTITIES:
            value, low, high = hierarchical_mean([one[name] for one in drawn], seed=run.seed)
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
            row[f"paper_{name}"] = paper[name]
        rows.append(row)
    return pd.DataFrame(rows)


def guidance_table(run: Run) -> pd.DataFrame:
    """The part "size" sampled at every text-guidance scale of `grid.guidance`: φ_I, φ_T, CTI, ASR and image share."""
    rows = []
    chosen = [attack for attack in attacks(run.profile) if attack.part == "size"]
    for attack in tqdm(chosen, desc="guidance", leave=False):
        own = attack.run(run)
        size = image_trigger(own.profile.collapse.image_trigger, own.profile.collapse.trigger_size).size
        for scale, result in zip(run.profile.grid.guidance, guided(run, attack), strict=True):
            means = {name: float(x.mean()) for name, x in attribution(result.v).items()}
            asr = {f"asr_{name}": float(result.success[:, k].float().mean()) for k, name in enumerate(COALITIONS)}
            found = asdict(decide(result.phi, result.possible, own.seed))
            about = {"label": attack.label, "size": size, "text_guidance": scale}
            rows.append(about | means | asr | found | {"n": len(result.v)})
    return pd.DataFrame(rows)


def dynamics_table(run: Run) -> pd.DataFrame:
    """ASR, mean v, φ and CTI along the trainings of the part "steps", one row a watched step."""
    tables = []
    for attack in attacks(run.profile):
        if attack.part == "steps":
            curve = poisoned_editor(attack.run(run), attack.protocol)[1].dropna().reset_index(drop=True)
            v = torch.tensor(curve[[f"v_{name}" for name in COALITIONS]].to_numpy())
            found = {name: x.numpy() for name, x in attribution(v).items()}
            watched = attack.run(run).profile.collapse.watch_samples
            tables.append(curve.assign(label=attack.label, **found, n=watched))
    return pd.concat(tables, ignore_index=True)


def grid_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the part "grid" with a label each and, at the paper's rate, its values as paper_phi_image and so on."""
    pairs = list(zip(table["image_trigger"], table["text_trigger"], strict=True))
    labels = [
        f"{' + '.join(pair)}, {protocol.upper()}, {100 * rate:g} %, seed {seed}"
        for pair, protocol, rate, seed in zip(pairs, table["protocol"], table["rate"], table["seed"], strict=True)
    ]
    papers = map(paper_values, pairs, table["protocol"], table["rate"])
    return table.assign(label=labels).join(pd.DataFrame(papers, table.index).add_prefix("paper_"))


def embedding_agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Each embedding beside CLIP's, over the same attacks, columns embedding, agree, rank, n, with_backdoor.

    agree: share with the same decision; rank: Spearman's correlation of the image's share of the attribution, over
    those that have a backdoor in both.
    """
    keys = ["part", "label", "protocol", "seed"]
    reference = table[table["embedding"] == "clip"].set_index(keys)
    rows = []
    for name, own in table.groupby("embedding", sort=False):
        own = own.set_index(keys).loc[reference.index]
        both = (own["decision"] != "no backdoor") & (reference["decision"] != "no backdoor")
        shares = pd.DataFrame({"own": own["image_share"], "clip": reference["image_share"]})[both]
        rank = shares.corr("spearman").loc["own", "clip"] if len(shares) > 1 else float("nan")
        agree = float((own["decision"] == reference["decision"]).mean())
        rows.append({"embedding": name, "agree": agree, "rank": rank, "n": len(own), "with_backdoor": int(both.sum())})
    return pd.DataFrame(rows)


def modalities_table(run: Run) -> pd.DataFrame:
    """`lib.modalities.modality_table` of the part "mask"; without a row where the profile has no such attack."""
    none = pd.DataFrame(columns=["protocol", "quantity", "coalition", "value", "low", "high", "n"])
    chosen = [attack for attack in attacks(run.profile) if attack.part == "mask"]
    made = [modality_table(three_modalities(a.run(run), a.protocol), a.protocol, run.seed) for a in chosen]
    return pd.concat(made) if made else none


def detection_tables(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AUROC of every score, and how often the trigger's word and patch are found, on the part "detect"."""
    scores, places = [], []
    for attack in attacks(run.profile):
        if attack.part == "detect":
            own = attack.run(run)
            found = detect(own, attack.protocol, run.profile.grid.detection)
            scores.append(detection_table(found, run.seed).assign(target=own.profile.collapse.target))
            places.append(localisation_table(found, *trigger_pair(own)).assign(target=own.profile.collapse.target))
    return pd.concat(scores, ignore_index=True), pd.concat(places, ignore_index=True)
