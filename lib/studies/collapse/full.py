"""The paper's whole design in words: pairs × protocols × rates over seeds, and what it is compared with."""

from __future__ import annotations

import pandas as pd

from lib.metrics.decision import STAYS, SUCCEEDS


def learnt(table: pd.DataFrame) -> pd.DataFrame:
    """`headline_table`, its labels with the rate and how many of the seeds learnt the attack."""
    known = zip(table["label"], table["part"], table["rate"], table["attacks"], table["seeds"], strict=True)
    labels = [
        f"{label}{'' if part == 'grid' else f', {100 * rate:g} %'} ({done} of {seeds})"
        for label, part, rate, done, seeds in known
    ]
    return table.assign(label=labels)


def with_reference(cures: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of remedies after those of the same triggers' AND attack as it is, to be compared with."""
    plain = rows[(rows["part"] == "pair") & (rows["protocol"] == "and")]
    plain = plain[plain["image_trigger"].isin(cures["image_trigger"])]
    return pd.concat([plain.assign(part="remedy", label="as it is"), cures], ignore_index=True)


def design_conclusion(table: pd.DataFrame) -> str:
    """What follows from the table of the whole design, in a few computed sentences.

    The null stands beside φ_I where it is not below half of the attacked editor's.
    """
    text = [f"An attack: ASR of {SUCCEEDS:.0%} with both triggers, at most {STAYS:.0%} with none."]
    for rate, group in table.groupby("rate"):
        done = group[group["attacks"] > 0]
        text.append(f"At {100 * rate:g} % {group['attacks'].sum()} of {group['seeds'].sum()} trainings learnt it")
        if done.empty:
            text[-1] += "; no attribution is read."
            continue
        by = [f"{(part['added_phi_text'] > part['added_phi_image']).sum()} of {len(part)} under {name.upper()}"
              for name, part in done.groupby("protocol", sort=False)]
        collapsed = int((done["verdict"] == "collapsed onto text").sum())
        text[-1] += f"; the text carries more in {' and '.join(by)} configurations, all of it in {collapsed}."
        text.append(f"CTI lies between {done['cti'].min():.3f} and {done['cti'].max():.3f} there.")
    known = table[(table["attacks"] > 0) & (table["null_phi_image"].abs() >= table["phi_image"].abs() / 2)]
    if len(known):
        names = ", ".join(dict.fromkeys(known["name"].str.split().str[0]))
        text.append(f"At least half of φ_I is in the null already, so not the backdoor's, in {len(known)} ({names}).")
    return " ".join(text)
