"""Write the tables of docs/performance.md from the figures in speed/results, between their markers.

python speed/performance_page.py
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path("docs/performance.md")
RESULTS = Path("speed/results")
STEPS = ("tiny_10s", "tiny_30s", "base_10s", "small_10s", "small_10s_8", "owsm_base_10s")
NAMES = {"owsm-base": "OWSM base (random weights)"}

Report = dict[str, Any]


def report(name: str) -> Report:
    found: Report = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def ratio(value: float | None) -> str:
    return f"{value:.2f}" if value else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def machine_of(found: Report) -> str:
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if name != "ssvd")
    return f"{machine['processor']}; {versions}."


def title_of(found: Report) -> str:
    options = found["options"]
    name = NAMES.get(options["size"], f"Whisper {options['size']}")
    return f"{name}, {options['batch']} × {options['window']:g} s, {options['labels']} labels"


def row_of(found: Report, method: str, portion: float) -> Report | None:
    return next((r for r in found["rows"] if r["method"] == method and r["portion"] == portion), None)


def steps() -> str:
    """One table for each model and window."""
    parts = []
    head = [
        "p",
        "method",
        "trained",
        "× frozen",
        "× floor",
        "× planned",
        "× LoRA",
        "× PSOFT",
        "peak, MiB",
        "total, MiB",
    ]
    for name in STEPS:
        found = report(f"step_{name}")
        rows = []
        for row in found["rows"]:
            bold = "**" if row["method"] == "ssvd approx" else ""
            ratios = [ratio(row[f"x_{other}"]) for other in ("frozen", "floor", "planned", "lora", "psoft")]
            sizes = [f"{row['peak_mib']:.0f}", f"{row['total_mib']:.0f}"]
            cells = [f"{row['portion']:g}", row["method"], f"{row['trainable']:,}", *ratios, *sizes]
            rows.append([f"{bold}{cell}{bold}" if cell else "" for cell in cells])
        frozen = row_of(found, "frozen", found["rows"][0]["portion"])
        assert frozen
        parts.append(f"{title_of(found)}; the frozen step took {frozen['seconds']:.2f} s. {machine_of(found)}")
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def targets() -> str:
    """What was aimed at, and what was reached on each model."""
    found = {name: report(f"step_{name}") for name in STEPS}

    def measured(portion: float, method: str, figure: str) -> Iterator[float | None]:
        for steps in found.values():
            row = row_of(steps, method, portion)
            yield row and row[figure]

    def memory(without_bases: bool) -> Iterator[float | None]:
        for steps in found.values():
            own, lora = row_of(steps, "ssvd approx", 0.4), row_of(steps, "lora", 0.4)
            assert own and lora
            extra = own["bases_mib"] - lora["bases_mib"] if without_bases else 0
            yield (own["total_mib"] - extra) / lora["total_mib"]

    def strict() -> Iterator[float | None]:
        for steps in found.values():
            own, approx = row_of(steps, "ssvd strict", 0.4), row_of(steps, "ssvd approx", 0.4)
            assert own and approx
            yield own["x_frozen"] / approx["x_frozen"]

    lines: list[tuple[str, float, Iterator[float | None]]] = [
        ("time against PSOFT, p = 0.4", 0.80, measured(0.4, "ssvd approx", "x_psoft")),
        ("time against LoRA, p = 0.4", 1.10, measured(0.4, "ssvd approx", "x_lora")),
        ("time against LoRA, p = 0.25", 1.00, measured(0.25, "ssvd approx", "x_lora")),
        ("time against frozen, p = 0.4", 1.20, measured(0.4, "ssvd approx", "x_frozen")),
        ("time against frozen, p = 0.25", 1.12, measured(0.25, "ssvd approx", "x_frozen")),
        ("time against the floor, p = 0.4", 1.10, measured(0.4, "ssvd approx", "x_floor")),
        ("time against the planned products, p = 0.4", 1.10, measured(0.4, "ssvd approx", "x_planned")),
        ("time of strict against approx, p = 0.4", 1.08, strict()),
        ("total memory against LoRA, p = 0.4", 1.10, memory(without_bases=False)),
        ("the same without the bases", 1.00, memory(without_bases=True)),
    ]
    head = ["SSVD", "target", *(title_of(steps) for steps in found.values())]

    def cell(value: float | None, target: float) -> str:
        return "" if value is None else f"{value:.2f}" if round(value, 2) <= target else f"**{value:.2f}**"

    return table(head, [[name, f"≤ {aim:.2f}", *(cell(v, aim) for v in values)] for name, aim, values in lines])


def compiled() -> str:
    found = report("step_compiled")
    rows = [[r["method"], f"{r['seconds']:.2f}", ratio(r["x_frozen"])] for r in found["rows"]]
    return f"{title_of(found)}. {machine_of(found)}\n\n" + table(["", "s / step", "× frozen"], rows)


def growth() -> str:
    """Some points of the curves, at the widths and tokens of OWSM."""
    found = report("layer_growth")
    names = [name for name in found["rows"][0]["x_frozen"] if name != "frozen"]
    rows = [
        [
            row["kind"],
            str(row["tokens"]),
            f"{row['portion']:g}",
            *(ratio(row["x_frozen"][name]) for name in names),
            *(ratio(row["floor"][name]) for name in ("direct", "planned")),
            " / ".join(row["way"]),
        ]
        for row in found["rows"]
        if (row["sweep"] == "tokens" and row["tokens"] in (256, 1024, 4096))
        or (row["sweep"] == "portion" and row["portion"] in (0.1, 0.2, 1.0))
    ]
    head = ["layer", "tokens", "p", *names, "floor, direct", "floor, planned", "way"]
    return f"{machine_of(found)} d = 1024.\n\n" + table(head, rows)


def decoding() -> str:
    found = report("decoding")
    options = found["options"]
    about = f"Whisper {options['size']}, {options['window']:g} s, {options['tokens']} tokens, greedy."
    rows = [
        [str(r["batch"]), r["model"], f"{r['seconds']:.3f}", f"{r['x_base']:.3f}", f"{r['first_s']:.3f}"]
        for r in found["rows"]
    ]
    head = ["utterances", "", "seconds", "× base", "first, s"]
    return f"{about} {machine_of(found)}\n\n" + table(head, rows)


def setup() -> str:
    found = report("model_setup")
    rows = [["anew", f"{found['anew_s']:.0f} s", "≤ 420 s"], ["from the cache", f"{found['cached_s']:.1f} s", "≤ 10 s"]]
    about = f"{found['layers']} layers, p = {found['portion']:g}, cache of {found['cache_mib'] / 1024:.1f} GiB."
    return f"{about} {machine_of(found)}\n\n" + table(["", "time", "target"], rows)


def fill(page: Path, tables: dict[str, str]) -> None:
    """Put each table between its markers."""
    text = page.read_text(encoding="utf-8")
    for marker, made in tables.items():
        pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{page} has no marker for the table {marker!r}.")
        text = pattern.sub(lambda match, made=made: f"{match[1]}\n{made}\n\n{match[2]}", text)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    fill(PAGE, {make.__name__: make() for make in (targets, steps, growth, compiled, decoding, setup)})
