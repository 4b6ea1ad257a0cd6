"""The public names of the package: methods of PEFT at once, the rest when it is used."""

import subprocess
import sys

import pytest

import ssvd


def test_all_public_names_are_there():
    assert all(getattr(ssvd, name) is not None for name in ssvd.__all__)
    assert ssvd.__all__ == sorted(ssvd.__all__) and dir(ssvd) == ssvd.__all__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        ssvd.nothing  # noqa: B018


def test_verbs_are_modules_whatever_was_imported_before():
    from ssvd.adapt import adapt
    from ssvd.evaluate import evaluate

    assert callable(adapt) and callable(evaluate)
    assert ssvd.adapt.adapt is adapt and ssvd.evaluate.evaluate is evaluate


def run_fresh(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("imports", ["peft, ssvd", "ssvd, peft"])
def test_import_registers_the_methods_without_the_packages_for_speech(imports):
    run_fresh(f"""
import sys
for name in ("lhotse", "soundfile", "lightning", "jiwer", "pydantic"):
    sys.modules[name] = None
import {imports}
assert {{"SSVD", "SVFT"}} <= set(peft.PeftType.__members__), list(peft.PeftType)
try:
    ssvd.read_corpus
except ModuleNotFoundError as error:
    assert error.name in sys.modules, error
else:
    raise AssertionError
""")


def test_reading_corpora_and_reporting_does_not_wait_for_peft():
    run_fresh("""
import sys
import ssvd.corpora.check, ssvd.preparation.prepare, ssvd.reports.page, ssvd.demo.synthetic
assert not {"peft", "transformers"} & sys.modules.keys()
""")
