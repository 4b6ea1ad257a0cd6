"""Recordings shared among processes: the same texts in the same order, and sentences where a process ends."""

import os
import time
from dataclasses import dataclass, field
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ssvd import transcribe
from ssvd.errors import StoppedError, UserError
from ssvd.recognisers.decoding import Decoding
from ssvd.training.progress import SILENT
from ssvd.transcribe import Transcription, transcribe_files


@dataclass(frozen=True)
class Acting:
    """Work that does what the name of a file says."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def load(self):
        return None

    def transcribe(self, speech, path, progress):
        if path.name == "dies":
            os._exit(1)
        if path.name == "lasts":
            time.sleep(600)
        return Transcription(path, [], None)


def test_texts_are_those_of_one_process_in_the_same_order(embedded, tmp_path):
    files = [tmp_path / f"{name}.wav" for name in "cab"]
    random = np.random.default_rng(0)
    for number, file in enumerate(files):
        tone = np.sin(np.arange(8000) * (number + 1) / 20) * random.uniform(0.1, 0.5, 8000)
        soundfile.write(file, tone, 16000)
    files[1].write_bytes(b"no audio")
    options = {"device": "cpu", "decoding": Decoding(fallback=None)}
    alone, shared = (list(transcribe_files(str(embedded), files, jobs=jobs, **options)) for jobs in (1, 2))
    assert [item.path for item in shared] == files
    assert [(item.text, item.error) for item in shared] == [(item.text, item.error) for item in alone]
    assert shared[1].error and not shared[0].error


def test_end_of_a_process_and_of_the_work_end_all_processes():
    files = [Path("first"), Path("lasts"), Path("lasts"), Path("lasts")]
    shared = transcribe._shared(Acting(), files, 2, SILENT)
    assert next(shared).path == Path("first")
    shared.close()  # as Ctrl-C does
    until = time.monotonic() + 60
    while active_children() and time.monotonic() < until:
        time.sleep(0.1)
    assert not active_children()
    with pytest.raises(StoppedError, match="was killed, perhaps because memory ran out; give fewer jobs"):
        list(transcribe._shared(Acting(), [Path("dies")] * 2, 2, SILENT))


def test_more_jobs_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="1 device of the kind cuda"):
        transcribe._check_devices(torch.device("cuda"), 2)
    transcribe._check_devices(torch.device("cpu"), 8)
