"""The collapse study in full: what each of its attacks gives, as tidy tables.

    for attack in attacks(run.profile):
        row = attack_row(run, attack)       # sampled, or from the store
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from lib.attacks.editor import poisoned_editor, trigger_pair
from lib.attribution import attribution, shapley
from lib.collapse import Collapse, collapse, paper_values
from lib.config import Run
from lib.decision import decide, is_attack
from lib.detection import detect, detection_table, localisation_table
from lib.evaluation import pixel_distance
from lib.intervals import over_clusters
from lib.poisoning import COALITIONS
from lib.profile import changed
from lib.studies import Attack, attacks
from lib.triggers import image_trigger

ENDS = {"": "value", "_low": "low", "_high": "high"}


def prepare(run: Run, attack: Attack) -> None:
    """Train, sample and measure whatever the tables need of the attack: afterwards it is in the store."""
    if attack.part == "detect":
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
    """One tidy row: the attack's settings, ASR of each coalition, φ and CTI, their nulls, what is added, the verdict.

    Numbers come as name, name_low and name_high (95 % over test samples, clustered by identity). null_…: of the base
    editor under the same triggers; added_…: φ and CTI of the attack less the null, as shares of what a perfect attack
    gains. Of an attack that failed there are no φ and CTI, and the decision is "failed attack". fidelity: RMS pixel
    distance of untriggered edits to the true ones.
    """
    own = attack.run(run)
    settings = own.profile.collapse
    kept = ("image_trigger", "text_trigger", "rate", "target", "trigger_size", "condition_dropout", "negatives")
    about = {"part": attack.part, "label": attack.label, "protocol": attack.protocol, "seed": own.seed}
    about |= {name: getattr(settings, name) for name in (*kept, "text_weight")}
    about |= {"steps": settings.train.steps, "batch": settings.train.batch, "embedding": embedding}
    result = collapse(own, attack.protocol, embedding=embedding)
    succeeded = is_attack(result.success)
    numbers = {f"asr_{name}": over_clusters(result.success[:, k], result.families) for k, name in enumerate(COALITIONS)}
    gain = result.possible.mean()
    games = {"": result.v, "null_": result.null, "added_": result.added / gain}
    for prefix, game in games.items():
        numbers |= {f"{prefix}{name}": over_clusters(x, result.families) for name, x in attribution(game).items()}
    distances = {"fidelity": pixel_distance(result.edited[:, 0], result.clean), "null_fidelity": result.missed}
    numbers |= {name: over_clusters(distance, result.families) for name, distance in distances.items()}
    for name, number in numbers.items():
        read = succeeded or not name.startswith(("phi", "cti", "added"))
        about |= {name + end: number[key] if read else None for end, key in ENDS.items()}
    found = asdict(decide(shapley(result.added), result.possible, own.seed))
    if not succeeded:
        found = dict.fromkeys(found) | {"decision": "failed attack", "gain": found["gain"]}
    return about | {"n": len(result.v), "is_attack": succeeded} | found


def attack_table(run: Run, parts: tuple[str, ...], embedding: str = "clip") -> pd.DataFrame:
    """`attack_row` of every attack of those parts."""
    chosen = [attack for attack in attacks(run.profile) if attack.part in parts]
    return pd.DataFrame(attack_row(run, attack, embedding) for attack in tqdm(chosen, desc="attacks", leave=False))


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
            found = asdict(decide(shapley(result.added), result.possible, own.seed))
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
    """Rows of the parts "pair" and "grid", pair by pair, with a label each and, at the paper's rate, its values as
    paper_phi_image and so on."""
    table = table.sort_values(["image_trigger", "protocol", "rate", "seed"], ignore_index=True)
    pairs = list(zip(table["image_trigger"], table["text_trigger"], strict=True))
    labels = [
        f"{' + '.join(pair)}, {protocol.upper()}, {100 * rate:g} %, seed {seed}"
        for pair, protocol, rate, seed in zip(pairs, table["protocol"], table["rate"], table["seed"], strict=True)
    ]
    papers = map(paper_values, pairs, table["protocol"], table["rate"])
    return table.assign(label=labels).join(pd.DataFrame(papers, table.index).add_prefix("paper_"))


def embedding_agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Each embedding beside CLIP's, over the same attacks, columns embedding, agree, rank, n, with_backdoor.

    n: attacks that did not fail, which no embedding decides; agree: share of them with the same decision; rank:
    Spearman's correlation of the image's share of the attribution, over those that have a backdoor in both.
    """
    keys = ["part", "label", "protocol", "seed"]
    table = table[table["is_attack"]]
    reference = table[table["embedding"] == "clip"].set_index(keys)
    rows = []
    for name, own in table.groupby("embedding", sort=False):
        own = own.set_index(keys).loc[reference.index]
        both = (own["decision"] != "no backdoor") & (reference["decision"] != "no backdoor")
        shares = pd.DataFrame({"own": own["image_share"], "clip": reference["image_share"]}).astype(float)[both]
        rank = shares.corr("spearman").loc["own", "clip"] if len(shares) > 1 else float("nan")
        agree = float((own["decision"] == reference["decision"]).mean())
        rows.append({"embedding": name, "agree": agree, "rank": rank, "n": len(own), "with_backdoor": int(both.sum())})
    return pd.DataFrame(rows, columns=["embedding", "agree", "rank", "n", "with_backdoor"])


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
