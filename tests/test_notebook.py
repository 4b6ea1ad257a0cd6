"""The notebook: its cells run in order in a kernel of their own."""

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
NOTEBOOK = Path(__file__).parents[1] / "examples" / "adapt_and_listen.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    pytest.importorskip("espeakng_loader")
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code"), "stored without outputs"
    client = nbclient.NotebookClient(
        notebook,
        timeout=400,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path_factory.mktemp("n"))}},
    )
    # A kernel of this interpreter, whatever kernels the user has installed.
    client.create_kernel_manager().kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    return client.execute()


def outputs(notebook):
    """What the cells printed, and the kinds of what they displayed."""
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.text for output in shown if output.output_type == "stream" and output.name == "stdout")
    return text, {kind for output in shown for kind in output.get("data", {})}


def test_the_notebook_adapts_plays_plots_and_compares(executed):
    text, kinds = outputs(executed)
    assert "trained parameters" in text and "change" in text
    assert {"text/html", "image/png"} <= kinds, "a player and plots"
    rates = {}
    for line in text.splitlines():
        if " WER " in line:
            corpus, system = line.split()[:2]
            rates[corpus.split("-")[0], system] = float(line.partition("WER")[2].split("%")[0])
    assert rates["test", "run"] < rates["test", "base"], "it learns"
    assert set(rates) == {("test", "base"), ("test", "run"), ("adults", "base"), ("adults", "run")}
