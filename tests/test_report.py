"""The page and the figures of a benchmark. The results are made up, and look like real ones."""

import csv
import io
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import soundfile

from ssvd.benchmark.records import (
    Failure,
    Hypothesis,
    read_study,
    record_path,
    restore_study,
    store_study,
    write_hypotheses,
)
from ssvd.errors import UserError
from ssvd.reports.aligned_utterances import SOUND_LIMIT, Players
from ssvd.reports.changed_utterances import most_changed
from ssvd.reports.charts import METHODS, charts
from ssvd.reports.html import Column, Table, styles, to_csv, to_latex
from ssvd.reports.page import (
    Benchmark,
    read_benchmark,
    render,
    results_csv,
    results_latex,
    summary,
    write_figures,
    write_report,
)
from ssvd.reports.study import studies
from ssvd.reports.tables import main_table
from test_statistics import ORIGIN, epoch, made, spoken, together

CHROMIUM = shutil.which("chromium")
WORDS = "the cat sat on a mat and saw seven small birds near our old red house".split()
STRANGE = "<b>new</b> & $x_1$"  # a method that nobody knows, as a name that HTML, LaTeX and matplotlib read
RATES = {"frozen": 0.42, "full": 0.14, "ssvd": 0.2, "ssvd strict": 0.21, "ssvd none": 0.26, "lora": 0.22, STRANGE: 0.3}
TRAINED = {"p=0.1": 40_000, "p=0.25": 110_000, "p=0.4": 190_000}


def noisy(words: list[str], rate: float, rng: random.Random) -> str:
    """Words with substitutions, deletions and insertions."""
    heard: list[str] = []
    for word in words:
        if rng.random() >= rate:
            heard.append(word)
        else:
            heard += rng.choice([[rng.choice(WORDS)], [], [word, rng.choice(WORDS)]])
    return " ".join(heard)


def recognised(rate: float, seed: str, corpus: str = "c") -> list[Hypothesis]:
    """Five utterances of each of 12 speakers, who are not equally easy."""
    found = []
    for number in range(60):
        said, heard = random.Random(f"{corpus}{number}"), random.Random(f"{corpus}{number}{seed}")
        words = said.choices(WORDS, k=said.randint(4, 14))
        fields = {"age": 6 + number % 12 // 2, "gender": "fm"[number % 2]}
        hard = 0.6 + 0.07 * (number % 12)
        text = noisy(words, rate * hard, heard)
        speaker = f"s{number % 12:02}"
        found.append(
            Hypothesis(
                id=f"{corpus}{number}", speaker=speaker, reference=" ".join(words), hypothesis=text, fields=fields
            )
        )
    return found


def write(folder: Path, result: Any, texts: dict[tuple[str, str], list[Hypothesis]]) -> None:
    path = record_path(folder, type(result), result.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result.model_dump()), encoding="utf-8")
    for (name, corpus), lines in texts.items():
        write_hypotheses(folder, name, corpus, lines)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A whole benchmark: every number in it is made up, none was measured."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "audio").mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        soundfile.write(folder / "audio" / f"c{number}.flac", 0.1 * rng.standard_normal(4000), 8000)
    soundfile.write(folder / "audio" / "c1.wav", np.zeros(SOUND_LIMIT), 8000)  # too large
    audio = {f"c{number}": f"audio/c{number}.{'wav' if number == 1 else 'flac'}" for number in range(60)}
    for method, rate in RATES.items():
        peft = method not in ("frozen", "full")
        swept = TRAINED if method in ("ssvd", "lora") else ["p=0.4"]
        for budget in swept if peft else [""]:
            trained = TRAINED.get(budget, 1_000_000)
            worse = 0.05 * (190_000 - trained) / 190_000 if peft else 0.0
            for seed in range(1 if method in ("frozen", STRANGE) else 3):
                name = f"{method}{budget}{seed}"
                dev = [0.45 - (0.45 - rate - worse) * (1 - 0.5**n) for n in range(5)]
                forgets = {"frozen": 0.08, "full": 0.2}.get(method, 0.1 + rate / 10)
                result, texts = made(
                    method,
                    recognised(rate + worse, name),
                    budget=budget,
                    seed=seed,
                    trained=trained + (1_000 if method == "lora" else 0),
                    sources={"adults": recognised(forgets, name, "adult")},
                    by=("age:6-7,8-9,10-11", "gender"),
                    normaliser="english",
                    synthetic=True,
                    model_parameters=1_200_000,
                    setting=float(budget[2:]) if budget else None,
                    series=[epoch(n, wer, 20.0 * n * (1 + rate)) for n, wer in enumerate(dev)],
                    best_dev_wer=None if method == "frozen" else dev[-1],
                    training_seconds=80 * (1 + rate) + seed,
                    peak_memory_bytes=int(3e8 + 700 * trained),
                    adapter_bytes=4 * trained,
                    orthogonality_error=3e-7 if method == "ssvd" else None,
                    options={"epochs": 4, "method": method, "seed": seed},
                    audio=audio,
                    **({"search": {"0.001": 0.3, "0.01": 0.4}} if method == "ssvd none" else {}),
                )
                write(folder, result, texts)
    (folder / "cells" / "damaged.json").write_text("{", encoding="utf-8")
    for method, rate, reason in (("lora", 0.1, "the loss became infinite"), ("dora", None, "out of <memory>")):
        cell = result.cell.model_copy(update={"method": method, "budget": "p=0.4", "seed": 0})
        write(folder, Failure(id=f"f-{method}", cell=cell, learning_rate=rate, reason=reason, origin=ORIGIN), {})
    return folder


@pytest.fixture(scope="module")
def benchmark(results) -> Benchmark:
    return read_benchmark(results, resamples=200)


@pytest.fixture(scope="module")
def page(results, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    write_report(results, path, resamples=200)
    return path


def texts_of(page: Path) -> str:
    """The page without plotly.js, which holds every word."""
    return re.sub(r"<script>.{1000000,}?</script>", "", page.read_text(encoding="utf-8"), count=1, flags=re.DOTALL)


def test_the_page_says_what_was_found(page):
    text = texts_of(page)
    assert "Synthetic speech." in text and "tiny on children (synthetic speech)" in text
    for title in ("WER against trained parameters", "WER against costs", "Convergence", "WER against budget"):
        assert f"<h3>{title}</h3>" in text
    for title in ("Variants of SSVD", "Forgetting against gain", "WER by group", "Utterances that changed most"):
        assert f"<h3>{title}</h3>" in text
    assert "out of &lt;memory&gt;" in text and "damaged.json is damaged" in text
    assert "lowest learning rate tried: may be under-tuned" in text
    assert "a made-up machine" in text
    assert str(page.parents[1]) not in text


def test_nothing_from_data_is_markup(page):
    text = texts_of(page)
    assert "<b>new" not in text and "&lt;b&gt;new&lt;/b&gt; &amp; $x_1$" in text
    data = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.DOTALL)
    assert data is not None and "<" not in data[1]
    views = [view for chart in json.loads(data[1])["charts"] for view in chart["views"]]
    names = {series["name"] for view in views for series in view["series"]}
    assert "&lt;b&gt;new&lt;/b&gt; &amp; &#36;x_1&#36;" in names


def test_sounds_are_inside_as_far_as_they_are_small(page, benchmark):
    text = texts_of(page)
    players = re.findall(r'<audio controls preload="metadata" src="data:audio/flac;base64,', text)
    assert 5 <= len(players) <= 10 and "audio/wav" not in text
    recordings = benchmark.studies[0].rows[0].results[0].audio
    assert Players().of_file(benchmark.folder / recordings["c2"])
    assert Players().of_file(benchmark.folder / recordings["c1"]) == Players().of_file(benchmark.folder) == ""
    assert Players(10).of_file(benchmark.folder / recordings["c2"]) == ""


def test_without_audio_nobody_is_heard(benchmark):
    assert "<audio" not in render(benchmark, audio=False, resamples=50)


def test_summary_tells_losses_and_ties():
    said = spoken(["a b c d"] * 20)
    worse, tied = spoken(["a b x x"] * 20), spoken(["a b c d", "a b c x"] * 10)
    (study,) = studies(
        *together(
            made("frozen", spoken(["x x x x"] * 20)),
            made("lora", spoken(["a b c x", "a b c d"] * 10), budget="p=0.1"),
            made("lora", said, budget="p=0.4", trained=50),
            made("ssvd", tied, budget="p=0.1", best_dev_wer=0.1),
            made("ssvd", worse, budget="p=0.4", trained=50),
        ),
        resamples=200,
    )
    text = "\n".join(summary(study))
    assert "The frozen model: WER 100.0 % (95 % interval 100.0 to 100.0)." in text
    assert "The adapter with the lowest WER on dev, ssvd p=0.1: WER 12.5 %" in text
    assert "It has 87.5 points fewer errors than the frozen model" in text
    assert "It cannot be told apart from LoRA at the same budget: difference +0.0 points" in text
    assert "ssvd against LoRA at the same budget, in points with 95 % intervals: more errors at p=0.4 (+50.0" in text
    assert "Not among the results: full fine-tuning" in text


@pytest.mark.parametrize("methods", [["frozen"], ["ssvd"], ["full"], ["frozen", "lora"], ["ssvd", "full"]])
def test_few_cells_are_enough(methods, tmp_path):
    for method in methods:
        write(tmp_path, *made(method, spoken(["a b c x"]), budget="" if method in ("frozen", "full") else "p=0.4"))
    write_report(tmp_path, tmp_path / "page.html")
    assert "<h3>All numbers</h3>" in texts_of(tmp_path / "page.html")
    assert "Synthetic speech" not in texts_of(tmp_path / "page.html")
    assert results_csv(tmp_path).count("\n") == 1 + len(methods)
    assert results_latex(tmp_path).startswith("% tiny on children\n\\begin{tabular}{")


def test_no_cell_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"holds no results: it has neither a folder cells nor a file records\.jsonl"):
        write_report(tmp_path, tmp_path / "page.html")
    result, _ = made("ssvd", spoken(["a"]))
    write(tmp_path, result, {})  # without its texts
    with pytest.raises(UserError, match="holds no finished cell"):
        write_report(tmp_path, tmp_path / "page.html")


@pytest.fixture(scope="module")
def stored(results, tmp_path_factory) -> Path:
    """The made-up benchmark as a stored study."""
    folder = tmp_path_factory.mktemp("benchmark") / "copy"
    shutil.copytree(results, folder)
    (folder / "grid.yaml").write_text("title: made up\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"damaged\.json cannot be stored"):
        store_study(folder, folder.parent / "stored")
    assert not (folder.parent / "stored").exists()
    (folder / "cells" / "damaged.json").unlink()
    store_study(folder, folder.parent / "stored")
    return folder.parent / "stored"


def test_a_stored_study_gives_the_same_report_and_the_same_bytes(results, stored, benchmark):
    assert {path.name for path in stored.iterdir()} == {"grid.yaml", "records.jsonl", "hypotheses.tar.xz"}
    assert '"audio"' not in (stored / "records.jsonl").read_text(encoding="utf-8")
    read = read_benchmark(stored, resamples=200)
    assert to_csv(main_table(read.studies)) == to_csv(main_table(benchmark.studies))
    assert read.texts == benchmark.texts and read.failures == benchmark.failures and not read.skipped
    assert [trial.id for trial in read_study(stored).trials] == [trial.id for trial in read_study(results).trials]
    before = {path.name: path.read_bytes() for path in stored.iterdir()}
    again = stored.parent / "again"
    again.mkdir()
    (again / "notes.md").touch()
    for source in (stored.parent / "copy", stored):  # a stored study can be stored again
        store_study(source, again)
        assert {path.name: path.read_bytes() for path in again.iterdir()} == before | {"notes.md": b""}


def test_a_restored_study_is_a_folder_of_the_benchmark_with_the_same_records(stored, tmp_path):
    restore_study(stored, tmp_path / "restored")
    assert {path.name for path in (tmp_path / "restored").iterdir()} >= {"grid.yaml", "cells", "hypotheses"}
    before, after = read_study(stored), read_study(tmp_path / "restored")
    assert (after.results, after.trials, after.failures) == (before.results, before.trials, before.failures)
    assert after.texts == before.texts and not after.skipped
    with pytest.raises(UserError, match="is not empty"):
        restore_study(stored, tmp_path / "restored")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("hypotheses.tar.xz", lambda data: data[:-9], r"hypotheses\.tar\.xz does not have the checksum that records"),
        ("records.jsonl", lambda data: data[: len(data) // 2], r"records\.jsonl is damaged: restore"),
        (
            "records.jsonl",
            lambda data: data[: data.rindex(b"\n", 0, -1) + 1],
            "lacks records that its first line counts",
        ),
        ("records.jsonl", lambda data: data[data.index(b"\n") + 1 :], r"records\.jsonl is damaged: restore"),
        ("records.jsonl", lambda data: data.replace(b'"ssvd_schema": 1', b'"ssvd_schema": 7', 1), "has version 7"),
        (
            "records.jsonl",
            lambda data: data.replace(b'"best_epoch": ', b'"best": ', 1),
            "best_epoch: Field required; restore",
        ),
    ],
)
def test_a_damaged_stored_study_is_refused(name, change, message, stored, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(stored, folder)
    damaged = change((folder / name).read_bytes())
    assert damaged != (folder / name).read_bytes()
    (folder / name).write_bytes(damaged)
    with pytest.raises(UserError, match=message):
        read_benchmark(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match="cannot be read" if name.endswith("xz") else "holds no results"):
        read_benchmark(folder)


def test_cells_of_before_the_fallback_still_load(results, tmp_path):
    shutil.copytree(results, tmp_path / "old")
    path = next((tmp_path / "old" / "cells").glob("lora*.json"))
    values = json.loads(path.read_text(encoding="utf-8"))
    for fields, name in (
        (values, "decoding"),
        (values["test"], "wer_without_fallback"),
        (values, "orthogonality_error"),
    ):
        fields.pop(name)
    path.write_text(json.dumps(values), encoding="utf-8")
    (result,) = [result for result in read_study(tmp_path / "old").results if result.id == values["id"]]
    assert result.decoding is None and result.test.wer_without_fallback is None


def test_main_table_as_csv(benchmark):
    rows = list(csv.DictReader(io.StringIO(to_csv(main_table(benchmark.studies)))))
    by_name = {(row["Method"], row["Budget"]): row for row in rows}
    ssvd, full, frozen = by_name["ssvd", "p=0.4"], by_name["full", ""], by_name["frozen", ""]
    gain = (float(frozen["WER (%)"]) - float(ssvd["WER (%)"])) / (float(frozen["WER (%)"]) - float(full["WER (%)"]))
    assert float(ssvd["Gain recovered (%)"]) == pytest.approx(100 * gain)
    assert float(ssvd["WER, 95 %, low"]) < float(ssvd["WER (%)"]) < float(ssvd["WER, 95 %, high"])
    assert (ssvd["Seeds"], ssvd["Trained parameters"], ssvd["Learning rate"]) == ("3", "190000", "0.001")
    assert (ssvd["Model"], ssvd["Corpus"], frozen["Learning rate"]) == ("tiny", "children", "")
    dora = by_name["dora", "p=0.4"]
    assert (dora["WER (%)"], dora["Notes"]) == ("failed", "seed 0: out of <memory>")
    assert by_name[STRANGE, "p=0.4"]["WER, s over seeds"] == ""


def test_main_table_as_latex(benchmark):
    text = to_latex(main_table(benchmark.studies))
    assert text.startswith("\\begin{tabular}{")
    assert r"<b>new</b> \& \$x\_1\$ & p=0.4 & 190,000 & " in text and r"WER (\%)" in text
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1


def test_csv_and_latex_of_intervals_and_empty_cells():
    columns = Column("A"), Column("B, in %", "+.1f"), Column("hidden", paper=False)
    table = Table(columns, (("x_y", (-1.25, 2.0), 1), (None, None, None)))
    assert to_csv(table) == 'A,"B, in %, low","B, in %, high",hidden\nx_y,-1.25,2,1\n,,,\n'
    assert to_latex(table) == (
        "\\begin{tabular}{lr}\n\\toprule\nA & B, in \\% \\\\\n\\midrule\n"
        "x\\_y & [$-$1.2, +2.0] \\\\\n &  \\\\\n\\bottomrule\n\\end{tabular}\n"
    )


def test_most_changed_utterances():
    def spoken_as(*texts: str) -> list[Hypothesis]:
        pairs = zip(("One, two three four.", "one two", "five"), texts, strict=True)
        return [Hypothesis(id=f"u{n}", speaker=None, reference=r, hypothesis=h) for n, (r, h) in enumerate(pairs)]

    improved, worsened = most_changed(
        spoken_as("zero one too four", "one two", "five"), spoken_as("one two three four", "one", "five"), "basic"
    )
    (better,), (worse,) = improved, worsened
    assert (better.id, better.errors, better.words) == ("u0", (3, 0), 4)
    assert [(said, before and before.text, before and before.edit) for said, (before, _) in better.slots] == [
        (None, "zero", "insertion"),
        ("one", "one", "same"),
        ("two", "too", "substitution"),
        ("three", "three", "deletion"),
        ("four", "four", "same"),
    ]
    after = [heard[1] for _, heard in better.slots]
    assert after[0] is None and all(word.edit == "same" for word in after[1:])
    assert (worse.id, worse.errors, worse.slots[1][1][1].edit) == ("u1", (0, 1), "deletion")


def test_styles_are_fixed_and_distinct():
    many = [*RATES, "dora", "pissa", *(f"own {n}" for n in range(20))]
    found = styles(many, METHODS)
    assert len({(style.light, style.marker) for style in found.values()}) == len(many)
    assert styles(["ssvd"], METHODS)["ssvd"] == found["ssvd"] and styles(reversed(many), METHODS) == found


def test_charts_show_what_the_results_have():
    parts = [made("frozen", spoken(["x x x x"])), made("ssvd", spoken(["a b c x"]), budget="p=0.4")]
    results, texts = together(*parts)
    assert [chart.name for chart in charts(studies(results, texts)[0], texts)] == ["parameters", "costs"]
    parts.append(made("ssvd", spoken(["a b c d"]), budget="p=0.9", trained=300, series=[epoch(0, 0.5, 0.0)]))
    parts.append(made("ssvd none", spoken(["a b c d"]), budget="p=0.4"))
    results, texts = together(*parts)
    found = {chart.name: chart for chart in charts(studies(results, texts)[0], texts)}
    assert list(found) == ["parameters", "costs", "convergence", "budgets", "variants"]
    (budgets,) = found["budgets"].views
    assert budgets.categories == ("p=0.4", "p=0.9") and [one.name for one in budgets.series] == ["ssvd"]
    (variants,) = found["variants"].views
    assert [(p.x, p.y) for one in variants.series for p in one.points] == [("p=0.4", 25.0), ("p=0.4", 0.0)]
    (view,) = found["parameters"].views
    assert view.front == ((100, 0.0),) and view.level == 100.0 and view.level_fits is False


def test_curves_go_from_the_frozen_model_to_the_adapted_one():
    scales = [
        {"scale": 0.5, "test_wer": 0.3, "source_wers": {"adults": 0.25}},
        {"scale": 0.75, "test_wer": None, "source_wers": {"adults": 0.25}},
    ]
    adults = {"adults": spoken(["a b c d"])}
    parts = [made("frozen", spoken(["x x c d"]), sources=adults)]
    parts.append(made("lora", spoken(["a b c d"]), budget="p=0.4", sources=adults))
    results, texts = together(*parts)
    assert "scales" not in {chart.name for chart in charts(studies(results, texts)[0], texts)}
    forgets = {"adults": spoken(["x x c d"])}
    parts.append(made("ssvd", spoken(["a b c x"]), budget="p=0.4", sources=forgets, scales=scales))
    parts.append(made("ssvd", spoken(["a b c d"]), budget="p=0.4", seed=1, sources=adults, scales=scales))
    results, texts = together(*parts)
    (chart,) = (chart for chart in charts(studies(results, texts)[0], texts) if chart.name == "scales")
    ((curve,),) = (view.series for view in chart.views)
    assert curve.line and curve.method == "ssvd"
    found = [(round(float(point.x), 9), round(point.y, 9)) for point in curve.points]
    assert found == [(0, 0), (20, 25), (37.5, 25)]
    assert curve.points[1].name.endswith("scale 0.5")


def test_figures(tmp_path):
    heard = {"frozen": ["a b x x"] * 4, "ssvd": ["a b c d", "a b x d"] * 2, STRANGE: ["a b c d"] * 4}
    for method, texts in heard.items():
        said = spoken(texts)
        for text, dialect in zip(said, ["$north$", "$north$", "south", "south"], strict=True):
            text.fields["dialect"] = dialect
        write(tmp_path, *made(method, said, budget="" if method == "frozen" else "p=0.4", by=("dialect",)))
    files = write_figures(tmp_path, tmp_path / "new" / "figures", resamples=20)
    assert all(file.stat().st_size > 5_000 for file in files)
    views = ("parameters", "costs-training-time", "costs-peak-memory", "costs-adapter-size", "groups")
    assert {file.name for file in files} == {f"tiny-children-{v}.{suffix}" for v in views for suffix in ("png", "pdf")}
    image = matplotlib.image.imread(files[0])
    assert image.std() > 0.05


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium; absent on many machines, never absent in CI."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if sync_playwright is None or CHROMIUM is None:
        pytest.skip("the page is tested in a browser: pip install playwright, and apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser, page):
    """The page as a reader has it, without a network; at the end it must not have asked for one, nor complained."""
    context = browser.new_context(offline=True, color_scheme="light", accept_downloads=True)
    tab = context.new_page()
    asked, complaints = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(page.as_uri())
    tab.wait_for_selector("#plot-0 .main-svg")
    yield tab
    context.close()
    assert complaints == []
    assert asked and all(url.startswith(("file:", "data:")) for url in asked)


def test_tables_sort_in_a_browser(opened):
    table = opened.locator("table.sortable", has=opened.get_by_role("button", name="Gain recovered")).first
    column = "rows => rows.map(row => row.cells[7].textContent)"

    def shown() -> list[str]:
        return table.locator("tbody tr").evaluate_all(column)

    head = table.locator("thead button").nth(7)
    assert head.inner_text() == "WER (%)"
    head.click()
    numbers = [float(text) for text in shown() if text != "failed"]
    assert len(numbers) == 11 and numbers == sorted(numbers)
    head.click()
    assert [float(text) for text in shown() if text != "failed"] == numbers[::-1]
    assert table.locator("th[aria-sort=descending]").inner_text().startswith("WER (%)")
    table.get_by_role("button", name="Method", exact=True).click()
    assert table.locator("tbody tr").first.inner_text().startswith("<b>new</b> & $x_1$")


def test_theme_and_views_in_a_browser(opened):
    ground = "getComputedStyle(document.body).backgroundColor"
    mark = "document.querySelectorAll('#plot-0 .legendpoints path')[1].style.fill"
    light, mark_light = opened.evaluate(ground), opened.evaluate(mark)
    opened.locator("#theme").click()
    assert light == "rgb(255, 255, 255)" != opened.evaluate(ground) and opened.evaluate(mark) != mark_light
    opened.locator("#theme").click()
    assert opened.evaluate(ground) == light

    section = opened.locator("section.chart", has=opened.get_by_role("heading", name="Convergence"))
    assert section.locator(".xtitle").text_content() == "epoch"
    section.get_by_role("button", name="Seconds, p=0.4").click()
    assert section.locator(".xtitle").text_content() == "seconds of training"
    assert section.get_by_role("button", name="Seconds, p=0.4").get_attribute("aria-pressed") == "true"
    section.locator("summary").click()
    assert section.locator("table:visible").count() == 1
    assert "seconds of training" in section.locator("table:visible").inner_text()


def test_charts_offer_to_send_nothing(opened):
    titles = opened.locator("#plot-0 .modebar-btn").evaluate_all("all => all.map(one => one.dataset.title)")
    assert titles == ["Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]
    assert opened.evaluate("document.getElementById('plot-0')._context.plotlyServerURL") == ""


def test_downloads_in_a_browser(opened, benchmark):
    section = opened.locator("h3", has_text="All numbers").locator("xpath=following-sibling::*[@class='downloads'][1]")
    table = main_table(benchmark.studies)
    for label, name, content in (("CSV", "csv", to_csv(table)), ("LaTeX", "tex", to_latex(table))):
        with opened.expect_download() as download:
            section.get_by_text(label).click()
        assert download.value.suggested_filename == f"tiny-children.{name}"
        assert Path(download.value.path()).read_text(encoding="utf-8") == content


def test_sounds_play_in_a_browser(opened):
    length = "async a => { a.load(); await new Promise(done => a.onloadedmetadata = done); return a.duration }"
    assert opened.locator("audio").first.evaluate(length) == pytest.approx(0.5, abs=0.05)


def test_a_phone_scrolls_down_only(opened):
    opened.set_viewport_size({"width": 360, "height": 740})
    opened.wait_for_selector("#plot-0 .main-svg[width='328']")
    opened.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert opened.evaluate("document.documentElement.scrollWidth") == 360
    # Nothing sticks out but within a box of its own.
    stray = """[...document.querySelectorAll("main *")].filter(one => !one.closest(".scroll, .plot")
        && one.getBoundingClientRect().right > 360).length"""
    assert opened.evaluate(stray) == 0
