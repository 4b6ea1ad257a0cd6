"""Runs PEFT's own test-suite, as published and unchanged, on the methods of this package.

By hand: `python tests/peft_suite/suite.py [--method ssvd] [options of pytest]`.
"""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".pytest_cache" / "peft_suite"
FILES = [
    "test_config.py",
    "test_custom_models.py",
    "test_decoder_models.py",
    "test_encoder_decoder_models.py",
    "test_feature_extraction_models.py",
    "test_low_level_api.py",
    "test_mapping.py",
    "test_other.py",
    "test_seq_classifier.py",
    "test_token_classification_qa.py",
    "test_tuners_utils.py",
]


def fetch() -> Path:
    """The folder that holds `tests/` of the installed version of PEFT; pip downloads it once.

    Raises:
        subprocess.CalledProcessError: pip cannot download it.
    """
    folder = CACHE / f"peft-{version('peft')}"
    if not (folder / "tests" / "__init__.py").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*pip, "--dest", CACHE, f"peft=={version('peft')}"], check=True)
        with tarfile.open(folder.with_name(f"{folder.name}.tar.gz")) as archive:
            archive.extractall(CACHE, filter="data")
        (folder / "tests" / "__init__.py").touch()  # the published archive lacks it, but the tests are a package
    return folder


def run(*options: str) -> int:
    """Run the suite in a process of its own; returns the exit status of pytest."""
    folder = fetch()
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(CACHE / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "pytest", "-p", "peft_suite.plugin", "-c", os.devnull, "--rootdir", str(folder)]
    command += ["-p", "no:cacheprovider", "--disable-warnings", *options]
    if not any("::" in option or option.endswith(".py") for option in options):
        command += [f"tests/{file}" for file in FILES]
    return subprocess.run(command, cwd=folder, env=environment).returncode


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
