"""The tutorial of the documentation: its shell blocks run in order, as a reader would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"


@pytest.mark.slow
def test_the_commands_of_the_tutorial_work(tmp_path):
    pytest.importorskip("espeakng_loader")
    blocks = re.findall(r"^```sh\n(.*?)^```$", TUTORIAL.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 11
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    script = "set -eu\n" + "".join(blocks)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "path,text,speaker" in done.stdout
    assert "WER" in done.stdout
    assert "corpus/child-1-00001.flac\t" in done.stdout
    assert done.stdout.splitlines()[-1] == "WhisperForConditionalGeneration WhisperProcessor"
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert {"train.jsonl.gz", "dev.jsonl.gz", "test.jsonl.gz"} <= {file.name for file in (tmp_path / "data").iterdir()}
