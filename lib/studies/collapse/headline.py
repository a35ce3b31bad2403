"""The paper's table: every pair of triggers under OR and AND, over seeds, beside the paper's and the control's rows.

    rows = headline_rows(run)           # one attack a row
    table = headline_table(rows)        # one configuration a row, means over its seeds
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from typing import Any

import pandas as pd

from lib.metrics.intervals import ONE_CLUSTER, ONE_SEED, OVER_CLUSTERS, OVER_SEEDS, over_seeds
from lib.poisoning.plans import COALITIONS
from lib.runtime.keys import code_digest
from lib.studies.attacks.editor import editor_spec
from lib.studies.cases import Attack, headline_attacks, pair_text
from lib.studies.collapse.editor import PAPER_RATE, QUANTITIES, edits_spec, paper_values, values_spec
from lib.studies.collapse.rows import ENDS
from lib.studies.collapse.tables import attack_row
from lib.studies.further import Part, gathered
from lib.studies.run import Run

ASR = tuple(f"asr_{name}" for name in COALITIONS)
ADDED = tuple(f"added_{name}" for name in QUANTITIES)
KEYS = ["part", "label", "protocol"]
FURTHER = "further_seeds.csv"  # in the folder of figures


def headline_rows(run: Run) -> pd.DataFrame:
    """`attack_row` of every attack of the headline, after the columns made and key of `lib.studies.further`."""

    def part(attack: Attack) -> Part:
        here = run.store.has("poisoned-editor", editor_spec(attack.run(run), attack.protocol))
        return Part(row_key(run, attack), attack.further, here, lambda: pd.DataFrame([attack_row(run, attack)]))

    return gathered(map(part, headline_attacks(run.profile)), run.out / FURTHER)


def row_key(run: Run, attack: Attack) -> str:
    """Of all that the attack's row follows from."""
    case_run = attack.run(run)
    spec = values_spec(case_run, edits_spec(case_run, attack.protocol))
    code = code_digest("lib.studies.collapse.rows")
    return run.store.key("headline-row", {"values": spec, "code": code, "label": attack.label, "part": attack.part})


def headline_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a configuration: means over seeds with t-intervals, as name, name_low and name_high.

    asr_…: over all seeds. phi_…, cti, added_…: over the seeds whose attack succeeded; none where all failed.
    null_phi_… and null_cti: the base editor's, with intervals over test samples. paper_…: the paper's, at its rate.
    Columns besides: label, pair, protocol, rate, seeds, here (seeds that this run has computed), attacks (seeds that
    succeeded), n (samples a seed), verdict.
    """
    lines = []
    for (part, label, protocol), group in rows.groupby(KEYS, sort=False):
        first, done = group.iloc[0], group[group["is_attack"]]
        pair = first["image_trigger"], first["text_trigger"]
        row = {"part": part, "name": "control" if part == "control" else label, "protocol": protocol}
        row |= {"label": _title(part, label, pair, protocol, first["rate"]), "rate": first["rate"]}
        here = group["made"].eq("here").sum() if "made" in group else len(group)
        row |= {"seeds": len(group), "here": int(here), "attacks": len(done)}
        row |= {"n": int(first["n"]), "verdict": verdict(group)}
        for name in (*ASR, "fidelity"):
            row |= _ends(name, over_seeds(group[name].tolist(), row["n"] if name in ASR else None))
        for name in (*QUANTITIES, *ADDED):
            row |= _ends(name, over_seeds(done[name].tolist()) if len(done) else {})
        for name in ("null_phi_image", "null_phi_text", "null_cti", "null_fidelity"):
            row |= {name + end: first[name + end] for end in ENDS}
        papers = paper_values(pair, protocol, first["rate"]) if part == "pair" else dict.fromkeys(QUANTITIES)
        lines.append(row | {f"paper_{name}": value for name, value in papers.items()})
    return pd.DataFrame(lines)


def _title(part: str, label: str, pair: tuple[str, str], protocol: str, rate: float) -> str:
    """What a reader is told of a configuration: its triggers, or how it differs from the first pair's attack."""
    if part not in ("pair", "control", "grid"):
        return f"{label}, {protocol.upper()}"
    after = {"control": ", control encoder", "grid": f", {100 * rate:g} %"}.get(part, "")
    return f"{pair_text(pair)}, {protocol.upper()}{after}"


def _ends(name: str, number: dict) -> dict[str, Any]:
    return {name + end: number.get(key, float("nan")) for end, key in ENDS.items()}


def verdict(group: pd.DataFrame) -> str:
    """What the seeds of a configuration decided, where they agree; else each decision with its seeds."""
    counts = group["decision"].value_counts(sort=False)
    if len(counts) == 1:
        return counts.index[0]
    return ", ".join(f"{decision} ({count} of {len(group)} seeds)" for decision, count in counts.items())


def headline_numbers(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """What `Report.number` takes: collapse.<pair>.<protocol>.<quantity>, and its null as ….null.

    Of a failed attack there is no φ, CTI or share.
    """
    for row in table.to_dict("records"):
        start = f"collapse.{row['name']}.{row['protocol']}"
        for name in (*ASR, *QUANTITIES, *ADDED):
            seeds = row["seeds"] if name in ASR else row["attacks"]
            if seeds:
                kind = OVER_SEEDS if seeds > 1 else ONE_SEED
                yield _number(f"{start}.{name}", row, name, row["n"] * seeds, seeds, kind)
        for name in QUANTITIES:
            kind = ONE_CLUSTER if isnan(row[f"null_{name}_low"]) else OVER_CLUSTERS
            yield _number(f"{start}.{name}.null", row, f"null_{name}", row["n"], 1, kind)


def _number(title: str, row: dict, name: str, n: int, seeds: int, interval: str) -> dict[str, Any]:
    value, low, high = (row[name + end] for end in ENDS)
    return {"name": title, "value": value, "low": low, "high": high, "n": n, "seeds": seeds, "interval": interval}


def paper_table(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's columns, ours beside theirs, to be read: one row a configuration, numbers as texts with intervals."""
    shown = table[["label", "seeds", "here", "attacks"]].copy()
    for name in QUANTITIES:
        shown[name] = [_text(row, name) for row in table.to_dict("records")]
        shown[f"{name}, paper"] = ["" if pd.isna(x) else f"{x:.4f}" for x in table[f"paper_{name}"].astype(float)]
        shown[f"{name}, null"] = [_text(row, f"null_{name}") for row in table.to_dict("records")]
    return shown.assign(verdict=table["verdict"])


def _text(row: dict, name: str) -> str:
    value, low, high = (row[name + end] for end in ENDS)
    if pd.isna(value):
        return "failed attack"
    return f"{value:.3f}" if pd.isna(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def conclusion(table: pd.DataFrame) -> str:
    """What follows from the table, in a few sentences."""
    pairs, control = (table[table["part"] == part] for part in ("pair", "control"))
    done = pairs[pairs["attacks"] > 0]
    text = f"Under the pre-trained text encoder {len(done)} of {len(pairs)} configurations are attacks. "
    if len(done):
        low, high = done.min(numeric_only=True), done.max(numeric_only=True)
        text += (
            "Of a perfect attack's gain, beyond the null, the text trigger carries "
            f"{low['added_phi_text']:.2f} to {high['added_phi_text']:.2f}, the image trigger "
            f"{low['added_phi_image']:.2f} to {high['added_phi_image']:.2f}; CTI lies between {low['cti']:.3f} and "
            f"{high['cti']:.3f}. "
        )
        agree, rate = int((done["added_phi_text"] > done["added_phi_image"]).sum()), pairs["rate"].iloc[0]
        place = "at the paper's rate" if rate == PAPER_RATE else f"at {rate:.0%} (the paper: {PAPER_RATE:.0%})"
        text += f"The text carries more than the image in {agree} of {len(done)}, {place}; in the paper in all six. "
    done = control[control["attacks"] > 0]
    for row in done.to_dict("records"):
        text += (
            f"Under an encoder that knows the edit instructions alone, {row['protocol'].upper()}: text "
            f"{row['added_phi_text']:.2f}, image {row['added_phi_image']:.2f}. "
        )
    if len(control) > len(done):
        text += f"{len(control) - len(done)} of {len(control)} attacks on that encoder failed. "
    return text.strip()
