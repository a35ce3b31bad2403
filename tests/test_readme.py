"""README and figures/headline.csv tell the same numbers.

A number that the README takes from the table stands in a row that begins with its name in back-ticks:

    | `disp.facts.after` | after purification | 0.985 [0.971, 0.993] | 1000 |

as `value [low, high]`, rounded as one likes; n, where a cell holds it, is an integer alone in it.
"""

import re
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

import pandas as pd
import pytest
from headline import COALITIONS, NAMES, READ

from lib.settings.paths import ROOT
from lib.studies.report import COLUMNS

NUMBER = r"[-−]?\d+(?:\.\d+)?"


def rows(text):
    """(name, [value, low, high], n or None) of every table row that begins with a headline's name."""
    found = []
    for line in text.splitlines():
        row = re.match(r"\|\s*`([a-z][\w-]*(?:\.[\w-]+)+)`\s*\|(.*)", line.strip())
        if row:
            cells = [cell.strip(" *") for cell in row[2].split("|")]
            values = [re.fullmatch(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]", cell) for cell in cells]
            (value,) = (match for match in values if match)  # one in a row
            count = [int(cell.replace(",", "")) for cell in cells if re.fullmatch(r"\d[\d,]*", cell)]
            found.append((row[1], [v.replace("−", "-") for v in value.groups()], count[0] if count else None))
    return found


def agrees(printed, exact):
    """Whether `printed` is `exact`, a text of the table, rounded to as many digits."""
    step = Decimal(1).scaleb(Decimal(printed).as_tuple().exponent)
    return Decimal(printed) in {Decimal(exact).quantize(step, how) for how in (ROUND_HALF_EVEN, ROUND_HALF_UP)}


def faults(text, table):
    """What a README says that the table does not."""
    wrong = []
    for name, printed, n in rows(text):
        if name not in table.index:
            wrong.append(f"{name} is not in the table")
            continue
        for column, value in zip(("value", "low", "high"), printed, strict=True):
            if not agrees(value, table.loc[name, column]):
                wrong.append(f"{column} of {name} is {value}, not {table.loc[name, column]}")
        if n is not None and n != int(table.loc[name, "n"]):
            wrong.append(f"n of {name} is {n}, not {table.loc[name, 'n']}")
    return wrong


@pytest.fixture(scope="module")
def headline():
    return pd.read_csv(ROOT / "figures" / "headline.csv", dtype=str, keep_default_na=False)


def test_the_table_has_every_headline_once(headline):
    assert list(headline) == COLUMNS and headline["name"].is_unique
    assert set(headline["name"]) >= NAMES


def test_the_tables_numbers_are_possible(headline):
    table = headline.set_index("name")
    numbers = table[["value", "low", "high"]].apply(pd.to_numeric)
    known = numbers["low"].notna()
    assert (known == ~table["interval"].isin(("", "none: one seed"))).all() and (known == numbers["high"].notna()).all()
    assert (numbers["low"] <= numbers["value"])[known].all() and (numbers["value"] <= numbers["high"])[known].all()
    assert (table["n"].replace("", "1").astype(int) > 0).all() and (table["seeds"].astype(int) > 0).all()
    shares = numbers[~numbers.index.str.contains(r"phi_|cti(?:\.|$)")]
    assert len(shares) >= 40 and not (shares < 0).any(axis=None) and not (shares > 1).any(axis=None)


def test_the_readme_says_what_the_table_says(headline):
    text = (ROOT / "README.md").read_text()
    assert {name for name, _, _ in rows(text)} >= READ
    assert not faults(text, headline.set_index("name"))


PAIRS = {"white box + mignneko": "white-box", "eyeglasses + anonymous": "eyeglasses"}
PAIRS |= {"stop sign + latte coffee": "stop-sign", "control, white box + mignneko": "control"}


def table_faults(text, table):
    """What the README's ASR and nulls say that the table does not, and how many were compared."""
    wrong, compared = [], 0
    for line in text.splitlines():
        first, *cells = [cell.strip().replace("−", "-") for cell in line.strip().strip("|").split("|")]
        pair, _, protocol = first.rpartition(", ")
        if pair in PAIRS and len(cells) == 5:
            start = f"collapse.{PAIRS[pair]}.{protocol.lower()}"
            told = {f"{start}.asr_{name}": cell for name, cell in zip(COALITIONS, cells, strict=False)}
            attacks = int(table["seeds"].get(f"{start}.phi_image", 0))
            if cells[4] != f"{attacks} of {table.loc[f'{start}.asr_both', 'seeds']}":
                wrong.append(f"{first}: {cells[4]}")
        elif first.startswith("`collapse.") and len(cells) == 5:
            told = {f"{first.strip('`')}.null": cells[3]}
        else:
            continue
        compared += len(told)
        wrong += [f"{name} is {cell}" for name, cell in told.items() if not agrees(cell, table.loc[name, "value"])]
    return wrong, compared


def test_the_readmes_asr_and_nulls_are_the_tables(headline):
    text, table = (ROOT / "README.md").read_text(), headline.set_index("name")
    wrong, compared = table_faults(text, table)
    assert not wrong and compared == 8 * len(COALITIONS) + 7 * 3
    asr, attacks, null = r"(OR \| )[\d.]+", r"(OR (?:\| [\d.]+ ){4}\| )\d", r"(or\.phi_text.* )\S+(?= \| \S* \|)"
    for part in (asr, attacks, null):
        assert table_faults(re.sub(part, r"\g<1>9", text, count=1), table)[0], part


EXAMPLE = """
| name | value | n |
| --- | --- | --- |
| `a.rate` | **0.99 [0.98, 1.00]** | 1,000 |
| `b-c.cti.null` | the interaction | −0.009 [-0.011, −0.007] |
| `lib/studies/report.py` | no number |
"""
TABLE = pd.DataFrame(
    [("a.rate", "0.985", "0.9801", "1", "1000"), ("b-c.cti.null", "-0.00892", "-0.0111", "-0.00712", "200")],
    columns=["name", "value", "low", "high", "n"],
).set_index("name")


def test_the_comparison_itself_finds_faults():
    assert faults(EXAMPLE, TABLE) == [] and len(rows(EXAMPLE)) == 2
    changes = {"0.99 ": "0.97 ", "1.00": "0.99", "1,000": "999", "−0.007": "0.007", "b-c.cti": "b-c.c"}
    for right, wrong in changes.items():
        assert len(faults(EXAMPLE.replace(right, wrong), TABLE)) == 1
    with pytest.raises(ValueError):
        rows("| `a.rate` | 0.99 |")
