"""README.md and the pages of docs/ state what their sources hold, and no number without a source (see `stated`)."""

import re

import pandas as pd
import pytest
from headline import NAMES, READ
from stated import agrees, altered, expanded, faults, numbers, sources

from lib.settings.paths import ROOT
from lib.studies.collapse.editor import PAPER, QUANTITIES
from lib.studies.report import COLUMNS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_states_what_its_sources_hold(page):
    assert not faults(page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_number_that_is_changed_is_found(page):
    text = page.read_text()
    changed = list(altered(text))
    assert changed or page.stem in ("index", "library")
    assert not [number for number, other in changed if not faults(other)]


def test_the_pages_show_the_headline():
    shown = set(re.findall(r"^\| `([\w.-]+)` \|", "\n".join(page.read_text() for page in PAGES), re.MULTILINE))
    assert shown >= READ


def test_the_papers_numbers_are_those_that_the_study_compares_with():
    papers = pd.read_csv(ROOT / "docs" / "papers.csv", index_col="name")["value"]
    for (image, _, protocol), row in PAPER.items():
        told = [papers[f"collapse.{image}.{protocol}.{quantity}"] for quantity in QUANTITIES]
        assert told == list(row)


ROW = "| `collapse.eyeglasses.or.cti` | OR | −0.160 [−0.328, 0.007] | 192 | −0.004 | −0.2174 |"
TABLE = f"| number | what | value | n | null | paper |\n| --- | --- | --- | --- | --- | --- |\n{ROW}\n"
RIGHT = {
    "value and interval": "so 0.975 [0.928, 1.000]. <!-- = headline#disp.facts.after -->",
    "another column": "of 12,000 <!-- = headline#disp.facts.after/n -->",
    "per cent, exponent, minus": "5 %, 2e-5, −0.104 <!-- = laptop#collapse.rate; facts#parity.llada_v.logits; "
    "headline#collapse.eyeglasses.and.cti -->",
    "braces": "1.00 and 0.03 <!-- = headline#collapse.eyeglasses.or.asr_{text,image} -->",
    "counts": "3 rates, 9 trainings <!-- = laptop#grid.rates/count; "
    "figures/03_collapse_analysis/attacks.csv#part=pair&protocol=and/count -->",
    "a line of any file": "Python 3.11 <!-- = Makefile#\"is too old\"/0 -->",
    "a row by its name": TABLE,
    "a link that holds it": "[arXiv 2603.06508](https://arxiv.org/abs/2603.06508)",
    "no number": "`n = 5`, DINOv2, GPT-4, float32\n\n```bash\nmake JOBS=2\n```\n\n1. first\n",
}


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_each_form_of_a_source_is_read_and_holds_its_numbers(text):
    assert faults(text) == []
    assert all(faults(other) for _, other in altered(text))


@pytest.mark.parametrize(
    "text",
    [
        "a number, 7, without a source",
        "too many sources: 1 <!-- = laptop#threads; laptop#threads -->",
        "1.0 <!-- = headline#no.such.name -->",
        "1.0 <!-- = headline#disp.facts.after/colour -->",
        "1.0 <!-- = no/such.csv#row -->",
        "1 <!-- = laptop#grid.no -->",
        "3 <!-- = profiles/paper.yaml#\"#\"/0 -->",
        "1 <!-- = laptop#name -->",
        TABLE.replace("`collapse.eyeglasses.or.cti`", "`collapse.eyeglasses.or.no`"),
        TABLE.replace("| OR |", "| OR, 5 |"),
        "[2603.06508](https://arxiv.org/abs/2603.06509)",
    ],
)
def test_faults_are_found(text):
    assert faults(text)


def test_numbers_and_sources_are_told_apart():
    assert [n.texts for n in numbers("−1.5 of 1,200, x2, 3.5 % and 2e-5 [0.1, 0.2]")] == [
        ("−1.5",),
        ("1,200",),
        ("3.5",),
        ("2e-5", "0.1", "0.2"),
    ]
    assert expanded("a.{b,c}/{d,e}") == ["a.b/d", "a.b/e", "a.c/d", "a.c/e"]
    assert sources("1 <!-- a remark -->", None) == []


@pytest.mark.parametrize(
    ("printed", "exact", "percent", "right"),
    [
        ("0.97", "0.9749", False, True),
        ("0.98", "0.975", False, True),  # rounded up
        ("0.97", "0.976", False, False),
        ("89", "0.89", True, True),
        ("9", "0.089", False, False),
        ("2e-5", "0.00002", False, True),
        ("1,200", "1200", False, True),
        ("1200", "1201", False, False),
    ],
)
def test_rounding(printed, exact, percent, right):
    assert agrees(printed, exact, percent) is right
