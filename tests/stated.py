"""Every number that a page states, beside its source.

A comment after the numbers, in the same paragraph, list item or table row, names their sources in the order of the
numbers, set apart by ";", alternatives in braces written out as a shell does:

    It fell to 0.975 [0.928, 1.000] in 3 seeds. <!-- = headline#disp.facts.after; laptop#grid.seeds -->
    | OR | 0.99 | 0.98 | <!-- = headline#collapse.white-box.or.asr_{image,text} --> |

A source is FILE#WHERE, FILE a path below the repository or one of SHORT:

    table.csv#ROW/COLUMN      ROW: what the first column holds, or column=value&column=value;
                              COLUMN: `value` by default; `count`: how many rows are it
    profile.yaml#a.b.0        a setting; `a.b/count`: how many there are
    any.file#"PHRASE"/K       the K-th number, from 0, of the one line that holds PHRASE, spaces as one

`value [low, high]` is one number whose source has no COLUMN. A table row that begins with a headline's name in
back-ticks, and has no comment, needs none: the heads of its columns say which (HEADS). A number in a link's text needs
none where the link's target holds it. Code, and numbers that are part of a word (`DINOv2`, `GPT-4`), are not looked at;
counts that are results or settings are written in digits.
"""

import re
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal, InvalidOperation
from functools import cache
from itertools import accumulate

import pandas as pd
import yaml

from lib.settings.paths import ROOT

SHORT = {"headline": "figures/headline.csv", "papers": "docs/papers.csv", "facts": "docs/facts.csv"}
SHORT |= {file.stem: f"profiles/{file.name}" for file in (ROOT / "profiles").glob("*.yaml")}
HEADS = {"value": "headline#{}", "n": "headline#{}/n", "null": "headline#{}.null", "paper": "papers#{}"}

NUMBER = r"(?<![A-Za-z_\d.@])(?<![A-Za-z][/-])(?:(?<!\d)[-−])?\d[\d,]*(?:\.\d+)?(?:e[-−+]?\d+)?(?<!,)"
STATED = re.compile(rf"({NUMBER})(?: \[({NUMBER}), ({NUMBER})\])?(\s?%)?")
COMMENT = re.compile(r"<!--(?: =)?(.*?)-->", re.DOTALL)
FENCE = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
APART = [FENCE, COMMENT, re.compile(r"`[^`]+`"), re.compile(r"<[^>\n]+>")]
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
ORDER = re.compile(r"^\s*\d+\. ")
TARGET = re.compile(r"\]\([^)\s]+\)")
STARTS = re.compile(r"\s*(?:\||[-*] |\d+\. |#|$)")


@dataclass(frozen=True)
class Number:
    """A number of a page: where it stands, its texts (value, and low and high of an interval), whether in per cent."""

    start: int
    texts: tuple[str, ...]
    percent: bool


def blanked(text, patterns):
    """The text with what the patterns find made blank, each character where it was."""
    for pattern in patterns:
        text = pattern.sub(lambda found: re.sub(r"\S", " ", found[0]), text)
    return text


def units(text):
    """(start, end, header) of every paragraph, heading, list item and table row; the header of rows alone."""
    made, header = [], None
    lines = text.splitlines(keepends=True)
    for at, line in zip(accumulate(map(len, lines), initial=0), lines, strict=False):
        row = line.lstrip().startswith("|")
        header = (header or line) if row else None
        if STARTS.match(line) or not made:
            made.append([at, at + len(line), header])
        else:
            made[-1][1] = at + len(line)
    return made


def numbers(text):
    """The numbers of a unit that need a source."""
    plain, held = blanked(text, APART), []
    for link in LINK.finditer(plain):
        inside = [link.start(1) + number.start() for number in STATED.finditer(link[1])]
        held += [at for at in inside if STATED.match(plain, at)[1] in link[2]]
    plain = LINK.sub(lambda link: f"[{link[1]}]({' ' * len(link[2])})", plain)
    found = [m for m in STATED.finditer(blanked(plain, [ORDER])) if m.start() not in held]
    return [Number(m.start(), tuple(m[k] for k in (1, 2, 3) if m[k]), bool(m[4])) for m in found]


def sources(text, header):
    """What a unit names as the sources of its numbers, in their order."""
    named = [part.strip() for found in re.findall(r"<!-- =(.*?)-->", text, re.DOTALL) for part in found.split(";")]
    name = re.match(r"\s*\|\s*`([a-z][\w-]*(?:\.[\w-]+)+)`\s*\|", text)
    if named or not name or not header:
        return [one for part in named if part for one in expanded(" ".join(part.split()))]
    made = []
    for head, cell in zip(header.split("|"), text.split("|"), strict=True):
        known = HEADS.get(re.split(r"\W", head.strip())[0])
        made += [known.format(name[1]) for _ in numbers(cell) if known]
    return made


def expanded(text):
    """The texts that one with braces stands for."""
    braces = re.search(r"\{([^}]*)\}", text)
    if not braces:
        return [text]
    parts = braces[1].split(",")
    return [one for part in parts for one in expanded(text[: braces.start()] + part.strip() + text[braces.end() :])]


@cache  # pages are read once for every number in them
def exact(source, kind):
    """The text of what a source holds, its `kind` (value, low, high) where it names no column. Raises LookupError."""
    file, _, where = source.partition("#")
    path = SHORT.get(file, file)
    if where.startswith('"'):
        phrase, _, index = where[1:].rpartition('"/')
        lines = [" ".join(line.split()) for line in content(path).splitlines()]
        lines = [line for line in lines if phrase in line]
        if len(lines) != 1:
            raise LookupError(f"{source}: {len(lines)} lines of {path} hold it, one must")
        return re.findall(NUMBER, lines[0])[int(index)]
    where, _, column = where.rpartition("/") if "/" in where else (where, "", "")
    if path.endswith(".yaml"):
        value = yaml.safe_load(content(path))
        for key in where.split("."):
            value = value[int(key) if isinstance(value, list) else key]
        return str(len(value) if column == "count" else value)
    rows = table(path)
    keys = dict(part.split("=", 1) for part in where.split("&")) if "=" in where else {rows.columns[0]: where}
    for key, value in keys.items():
        rows = rows[rows[key] == value]
    if column == "count":
        return str(len(rows))
    if len(rows) != 1:
        raise LookupError(f"{source}: {len(rows)} rows of {path} are it, one must be")
    return rows.iloc[0][column or kind]


@cache
def content(path):
    return (ROOT / path).read_text()


@cache
def table(path):
    return pd.read_csv(ROOT / path, dtype=str, keep_default_na=False)


def plainly(text):
    return text.replace(",", "").replace("−", "-")


def agrees(printed, exact, percent=False):
    """Whether `printed` is `exact`, a text of a table, rounded to as many digits."""
    shown = Decimal(plainly(printed))
    step = Decimal(1).scaleb(shown.as_tuple().exponent)
    value = Decimal(plainly(exact)) * (100 if percent else 1)
    return shown in {value.quantize(step, how) for how in (ROUND_HALF_EVEN, ROUND_HALF_UP)}


def faults(text):
    """What a page states that its sources do not, and numbers without a source."""
    wrong, text = [], blanked(text, [FENCE])
    for start, end, header in units(text):
        unit = text[start:end]
        stated, named = numbers(unit), sources(unit, header)
        if len(stated) != len(named):
            wrong.append(f"{len(stated)} numbers, {len(named)} sources: {unit.strip()}")
            continue
        for number, source in zip(stated, named, strict=True):
            for kind, printed in zip(("value", "low", "high"), number.texts, strict=False):
                try:
                    holds = exact(source, kind)
                    right = agrees(printed, holds, number.percent)
                except (LookupError, TypeError, ValueError, OSError, InvalidOperation) as error:
                    wrong.append(f"{printed} of {source}: {error!r}")
                else:
                    wrong += [] if right else [f"{printed} is {holds} in {source}"]
    return wrong


def altered(text):
    """(number, the page with that number's last digit changed, in value and limits each) for every number in it."""
    plain = blanked(text, [FENCE])
    for start, end, _ in units(plain):
        unit = plain[start:end]
        for number in re.finditer(NUMBER, blanked(unit, [*APART, TARGET, ORDER])):
            at = start + number.start() + max(k for k, letter in enumerate(number[0]) if letter.isdigit())
            yield number[0], text[:at] + str((int(text[at]) + 5) % 10) + text[at + 1 :]
