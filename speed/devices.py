"""Throughput of a training in two processes on a CPU against one, each with one thread, by Lightning and gloo.

    python speed/devices.py --rounds 5 --json results.json

Rounds alternate between one process and two, on the embedded recogniser; a ratio is that of a round. What two lose is
told apart: the same halves of the batch, computed by each process alone at the same time without sending anything, show
what the machine gives two processes at best. Where other work takes the cores, seconds of computation tell more than
those of the clock: the scheduler gives two processes twice as much as one.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from rich.console import Console

import ssvd
from machine import machine

EMBEDDED = Path(ssvd.__file__).parent / "demo" / "embedded"


def steps(method: str, batch: int, updates: int, is_shared: bool) -> tuple[float, float]:
    """Seconds of an update in this process, by the clock and of computation, medians after two that do not count."""
    from torch.nn.parallel import DistributedDataParallel

    from ssvd.methods import apply_method
    from ssvd.recognisers.loading import load_model

    torch.set_num_threads(1)
    torch.manual_seed(0)
    speech = load_model(EMBEDDED)
    network: Any = apply_method(speech.module, method, speech.adaptable_layers()).train()
    config = network.config
    features = torch.randn(batch, config.num_mel_bins, 2 * config.max_source_positions)
    tokens = torch.randint(config.vocab_size, (batch, 40))
    if is_shared:
        network = DistributedDataParallel(network, broadcast_buffers=False, find_unused_parameters=True)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-5)
    seconds = []
    for _ in range(updates + 2):
        start, computed = time.perf_counter(), time.process_time()
        logits = network(input_features=features, decoder_input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        if is_shared:
            sums = torch.stack([torch.tensor(float(batch)), loss.detach()])
            torch.distributed.all_reduce(sums)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        seconds.append((time.perf_counter() - start, time.process_time() - computed))
    clock, computation = zip(*seconds[2:], strict=True)
    return statistics.median(clock), statistics.median(computation)


def started(processes: int, arguments: list[str]) -> tuple[float, float]:
    """Seconds of an update of several processes: of the slowest by the clock, and of computation in all."""
    port, running = str(find_free_network_port()), []
    for rank in range(processes):
        environment = {"RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, __file__, "--rank", *arguments]
        running.append(subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True))
    found = [map(float, process.communicate()[0].splitlines()[-1].split()) for process in running]
    clock, computation = zip(*found, strict=True)
    return max(clock), sum(computation)


def main(
    method: str = "ssvd",
    batch: Annotated[int, typer.Option(help="Utterances of 4 s of all processes together.")] = 16,
    updates: int = 6,
    rounds: int = 5,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
    rank: Annotated[bool, typer.Option("--rank", hidden=True)] = False,
    is_shared: Annotated[bool, typer.Option("--shared", hidden=True)] = False,
) -> None:
    if rank:
        torch.distributed.init_process_group("gloo")
        print(*steps(method, batch, updates, is_shared))
        torch.distributed.destroy_process_group()
        return
    rows = []
    for number in range(rounds):
        usual = ["--method", method, "--updates", str(updates), "--batch"]
        row = {
            "one": started(1, [*usual, str(batch)]),
            "two": started(2, [*usual, str(batch // 2), "--shared"]),
            "two apart": started(2, [*usual, str(batch // 2)]),
        }
        rows.append(row)
        Console().print(number, row)

    def ratio(other: str, which: int) -> float:
        return statistics.median(row["one"][which] / row[other][which] for row in rows)

    figures = {
        "speed of two, by the clock": ratio("two", 0),
        "speed of two that send nothing, by the clock": ratio("two apart", 0),
        "computation of one for that of two": ratio("two", 1),
        "computation of one for that of two that send nothing": ratio("two apart", 1),
    }
    Console().print(figures)
    if json_file:
        options = {"method": method, "batch": batch, "updates": updates}
        report = {"options": options, "machine": machine(), "load": os.getloadavg(), "rounds": rows, "figures": figures}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
