"""Speed and memory of `ssvd data check`: audio decoded, and a manifest of a million cuts without.

    python speed/checking.py CORPUS --json speed/results/checking.json

The large manifest is made of the corpus: its cuts again and again, each time with other ids, speakers and words and a
millisecond less of the audio, so that nothing is there twice. The check is a process of its own each time; memory is
the largest resident size of it and of each of its workers. *Start* is a check of one cut: what importing costs.
"""

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from machine import machine
from ssvd.corpora.corpus import read_corpus


def main(
    corpus: Annotated[str, typer.Argument(help="Of real recordings, longer than a second each.")],
    cuts: Annotated[int, typer.Option(help="Of the large manifest.")] = 1_000_000,
    workers: Annotated[str, typer.Option(help="Processes, by comma.")] = "1,2",
    rounds: Annotated[int, typer.Option(help="Of the small ones; the fastest counts.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")] = None,
) -> None:
    """Measure both kinds of check."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_large(corpus, 1, folder / "one.jsonl.gz")
        write_large(corpus, cuts, folder / "all.jsonl.gz")
        for number in map(int, workers.split(",")):
            checks = {
                "start": (str(folder / "one.jsonl.gz"), rounds, []),
                "decoded": (corpus, rounds, []),
                "manifest": (str(folder / "all.jsonl.gz"), 1, ["--no-audio"]),
            }
            for what, (checked, turns, options) in checks.items():
                found = [measure(checked, number, folder / f"{what}-{number}-{turn}", options) for turn in range(turns)]
                rows.append({"what": what, **min(found, key=lambda row: row["cpu_seconds"])})
        size = (folder / "all.jsonl.gz").stat().st_size
    table = Table("check", "workers", "utterances", "s", "utterances/s", "CPU s", "MB", "MB each worker")
    for row in rows:
        counts = f"{row['utterances']:,}", f"{row['seconds']:.1f}", f"{row['utterances'] / row['seconds']:,.0f}"
        memory = f"{row['memory'] / 1e6:.0f}", f"{row['worker_memory'] / 1e6:.0f}"
        table.add_row(row["what"], str(row["workers"]), *counts, f"{row['cpu_seconds']:.1f}", *memory)
    Console(width=120).print(table)
    if json_file is not None:
        found = {"machine": machine(), "corpus": Path(corpus).name, "manifest_bytes": size, "rows": rows}
        json_file.write_text(json.dumps(found, indent=2) + "\n")


def write_large(corpus: str, cuts: int, path: Path) -> None:
    """Write a manifest of so many cuts over the audio of a corpus."""
    originals = [cut.to_dict() for cut in read_corpus(corpus).cuts]
    written = 0
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
        for turn in count():
            for cut in originals:
                if written == cuts:
                    return
                (segment,) = cut["supervisions"]
                shift = round(0.001 * turn, 3)
                duration = round(cut["duration"] - shift, 6)
                words = f"{segment['text']} {turn}"
                segment = segment | {
                    "id": f"{segment['id']}-{turn}",
                    "speaker": f"{segment['speaker']}-{turn}",
                    "duration": duration,
                    "text": words,
                }
                made = cut | {"id": segment["id"], "start": shift, "duration": duration, "supervisions": [segment]}
                file.write(json.dumps(made, ensure_ascii=False) + "\n")
                written += 1


def measure(corpus: str, workers: int, out: Path, options: list[str]) -> dict[str, Any]:
    """Run a check, and say how long it took and how much memory it had."""
    command = [sys.executable, "-m", "ssvd", "data", "check", corpus, "--out", str(out), "--workers", str(workers)]
    started = time.perf_counter()
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    own, others = 0, 0
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        own = max(own, peak(process.pid))
        others = max([others, *(peak(int(child)) for child in children)])
        time.sleep(0.2)
    seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(ended[1]) not in (0, 1):  # 1: something was found
        raise SystemExit(process.stderr.read().decode() if process.stderr else "")
    (summary,) = json.loads((out / "summary.json").read_text())["corpora"]
    utterances = summary["utterances"]
    return {
        "workers": workers,
        "utterances": utterances,
        "seconds": seconds,
        "cpu_seconds": ended[2].ru_utime + ended[2].ru_stime,  # of its workers too
        "memory": own,
        "worker_memory": others,
    }


def peak(process: int) -> int:
    """Largest resident size so far, in bytes; 0 where the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    typer.run(main)
