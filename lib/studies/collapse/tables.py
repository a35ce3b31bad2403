"""The collapse study in full: what each of its attacks gives, as tidy tables.

    for attack in attacks(run.profile):
        row = attack_row(run, attack)       # sampled, or from the store
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from lib.metrics.tma import attribution
from lib.poisoning.plans import COALITIONS
from lib.settings.sections import changed
from lib.studies.attacks.editor import poisoned_editor, trigger_pair
from lib.studies.cases import Attack, attacks, first_attacks
from lib.studies.collapse.detection import detect, detection_table, localisation_table
from lib.studies.collapse.editor import collapse
from lib.studies.collapse.rows import measured_row
from lib.studies.run import Run


def prepare(run: Run, attack: Attack) -> None:
    """Train, sample and measure whatever the tables need of the attack: afterwards it is in the store."""
    if attack.part == "detect":
        detect(attack.run(run), attack.protocol, run.profile.grid.detection)
    else:
        collapse(attack.run(run), attack.protocol)


def attack_row(run: Run, attack: Attack, embedding: str = "clip") -> dict[str, Any]:
    """`measured_row` of an attack of the study."""
    return measured_row(attack.run(run), attack.protocol, attack.part, attack.label, embedding)


def attack_table(run: Run, parts: tuple[str, ...], embedding: str = "clip") -> pd.DataFrame:
    """`attack_row` of every attack of those parts."""
    chosen = [attack for attack in attacks(run.profile) if attack.part in parts]
    return pd.DataFrame(attack_row(run, attack, embedding) for attack in tqdm(chosen, desc="attacks", leave=False))


def sampling_table(run: Run) -> pd.DataFrame:
    """`measured_row` of the first pair's attacks of the first seed, sampled as the profile says and by each of
    `grid.samplings`."""
    own, rows = run.profile.collapse.sampling, []
    ways = {"as trained and shown": own} | {way.label: changed(own, way.settings) for way in run.profile.grid.samplings}
    chosen = [attack for attack in first_attacks(run.profile) if attack.model == "editor"]
    for attack, (label, sampling) in tqdm(list(product(chosen, ways.items())), desc="samplers", leave=False):
        row = measured_row(attack.run(run), attack.protocol, attack.part, label, sampling=sampling)
        rows.append(row | sampling.model_dump(mode="json", exclude={"batch"}, exclude_none=True))
    return pd.DataFrame(rows)


def dynamics_table(run: Run) -> pd.DataFrame:
    """ASR, mean v, φ and CTI along the trainings of the part "steps", one row a seed and watched step."""
    tables = []
    for attack in attacks(run.profile):
        if attack.part == "steps":
            curve = poisoned_editor(attack.run(run), attack.protocol)[1].dropna().reset_index(drop=True)
            v = torch.tensor(curve[[f"v_{name}" for name in COALITIONS]].to_numpy())
            games = {name: x.numpy() for name, x in attribution(v).items()}
            watched = attack.run(run).profile.collapse.watch_samples
            tables.append(curve.assign(label=attack.label, seed=attack.seed, **games, n=watched))
    return pd.concat(tables, ignore_index=True)


def embedding_agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Each embedding beside CLIP's, over the same attacks, columns embedding, agree, rank, n, with_backdoor.

    n: attacks that did not fail, which no embedding decides; agree: share of them with the same decision; rank:
    Spearman's correlation of the image's share of the attribution, over those that have a backdoor in both.
    """
    keys = ["part", "label", "protocol", "seed"]
    table = table[table["is_attack"]]
    reference = table[table["embedding"] == "clip"].set_index(keys)
    rows = []
    for name, other in table.groupby("embedding", sort=False):
        other = other.set_index(keys).loc[reference.index]
        both = (other["decision"] != "no backdoor") & (reference["decision"] != "no backdoor")
        shares = pd.DataFrame({"own": other["image_share"], "clip": reference["image_share"]}).astype(float)[both]
        rank = shares.corr("spearman").loc["own", "clip"] if len(shares) > 1 else float("nan")
        agree = float((other["decision"] == reference["decision"]).mean())
        counts = {"n": len(other), "with_backdoor": int(both.sum())}
        rows.append({"embedding": name, "agree": agree, "rank": rank} | counts)
    return pd.DataFrame(rows, columns=["embedding", "agree", "rank", "n", "with_backdoor"])


def detection_tables(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AUROC of every score, and how often the trigger's word and patch are found, on the part "detect"."""
    scores, places = [], []
    for attack in attacks(run.profile):
        if attack.part == "detect":
            case_run = attack.run(run)
            target = case_run.profile.collapse.target
            detection = detect(case_run, attack.protocol, run.profile.grid.detection)
            scores.append(detection_table(detection, run.seed).assign(target=target))
            places.append(localisation_table(detection, trigger_pair(case_run)[1]).assign(target=target))
    return pd.concat(scores, ignore_index=True), pd.concat(places, ignore_index=True)
