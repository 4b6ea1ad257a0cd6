"""PEFT's own tests on the methods of this package: no failure, and nothing skipped that LoRA does not skip."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from peft_suite.suite import fetch, run

# Skips that PEFT's tests make by the class of the configuration, whatever the method can do.
ACCEPTED = {
    "does not support Conv1D layers": "only LoRA, IA3, LoHa and LoKr by class; runs under ALIASES in models.py",
    "Mixed adapter batches not supported": "only LoRA by class; TestMixedAdapterBatches covers them",
    r"test_weighted_combination.*Test not applicable": "adding weighted adapters: only LoRA and IA3 by class",
    "does not support the 'bias' argument": "the methods train no biases, so there is nothing to refuse",
    "support training the bias directly": "the methods train no biases",
}
# Compares log-probabilities near zero, to a hundred-thousandth of themselves, of rows computed in a batch of three and
# in one of nine. Plain linear layers differ by as much between such batches: whether it passes is luck of the seed.
LUCK = re.compile(
    r"TestMixedAdapterBatches::test_mixed_adapter_batches_partly_overlapping_target_layers\[0@ssvd:stored\]"
)
AT_LEAST = 900  # passed tests of each method, so that a suite that collects nothing does not pass


@pytest.mark.slow
def test_peft_suite(tmp_path: Path) -> None:
    try:
        fetch()
    except subprocess.CalledProcessError:
        pytest.skip("pip cannot download the tests of PEFT")
    path = tmp_path / "outcomes.json"
    status = run("--outcomes", str(path), "-q", "-rf", "--tb=short")
    outcomes: dict[str, tuple[str, str]] = json.loads(path.read_text())

    failed = [test for test, (outcome, _) in outcomes.items() if outcome == "failed"]
    assert [test for test in failed if not LUCK.search(test)] == []
    assert status == (1 if failed else 0)
    passed: dict[str, int] = {}
    for test, (outcome, _) in outcomes.items():
        method = re.search(r"@(\w+):", test)[1]
        passed[method] = passed.get(method, 0) + (outcome == "passed")
    assert passed.keys() == {"lora", "ssvd", "svft"}
    assert min(passed.values()) >= AT_LEAST
    skipped = [
        f"{test}: {reason}"
        for test, (outcome, reason) in outcomes.items()
        if outcome == "skipped" and outcomes[re.sub(r"@\w+:\w*", "@lora:", test)][0] != "skipped"
    ]
    assert [test for test in skipped if not any(re.search(pattern, test) for pattern in ACCEPTED)] == []
