"""The comparison of runs: its statistics against other ways to the same number, its page in a browser."""

import csv
import itertools
import json
import math
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import programs
import pytest
import yaml
from browser import NEEDS_CHROMIUM, ask

import codec
from codec.audio.writing import write_wav
from codec.config import ConfigError
from codec.evaluation.report import report, title_of
from codec.evaluation.runs import EvaluationRun, compare, find_runs, group
from codec.evaluation.statistics import holm, interval, least_p, paired_p_value, pooled_p_value, smallest_p
from codec.evaluation.variants import training_curves
from codec.metrics.registry import METRICS
from codec.metrics.signal import MEL, SI_SDR

RATE = 16_000


def write_run(
    folder: Path, quantizer: str, seed: int = 0, mel: float = 2.0, files: int = 8, **summary
) -> Path:
    """A run folder as training leaves it, with scores around `mel`."""
    place = folder / f"quantizer={quantizer},seed={seed}"
    evaluation = place / "evaluation"
    evaluation.mkdir(parents=True)
    random = np.random.default_rng([seed, len(quantizer)])
    rows = [(f"{n}.wav", mel + 0.3 * n + 0.01 * random.normal(), 5 - mel) for n in range(files)]
    with (evaluation / "files.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "mel", "si_sdr"), *rows])
    means = {"mel": float(np.mean([row[1] for row in rows])), "si_sdr": 5 - mel}
    coded = quantizer != "none"
    points = [
        {"num_quantizers": k, "kbit/s": 3.0 * k, "kbit/s_entropy": 2.5 * k, **means, "mel": means["mel"] / k}
        for k in ((1, 2) if coded else ())
    ] or [{"num_quantizers": 0, "kbit/s": None, "kbit/s_entropy": None, **means}]
    summary = {
        **{"files": files, **means, "kbit/s": points[-1]["kbit/s"]},
        **{"kbit/s_entropy": points[-1]["kbit/s_entropy"], "rate_distortion": points, "frames": 99_999},
        "codebook_sizes": [256, 256] if coded else [],
        "ceiling": None if coded else True,
        "codebook_usage": [0.9, 0.5] if coded else [],
        "codebook_perplexity": [200.0, 60.0] if coded else [],
        "parameters": {"encoder": 400_000, "decoder": 500_000, "quantizer": 100_000},
        "encode_ms": 12.5,
        "decode_ms": 20.0,
        "timed_on": "1 of 2 CPU threads, x86_64",
    } | summary
    (evaluation / "summary.json").write_text(json.dumps(summary))
    (place / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "quantizer": {"_target_": quantizer}}))
    (place / "metrics.csv").write_text("step,train/mel,valid/mel\n10,3.5,\n20,3.0,3.1\n30,,2.5\n")
    swept = {"quantizer": quantizer, "seed": seed}
    (place / "result.json").write_text(json.dumps({"status": "done", "swept": swept}))
    tone = 0.3 * np.sin(np.arange(RATE) * 0.1)[None].astype(np.float32)
    write_wav(evaluation / "001-a.original.wav", tone, RATE)
    write_wav(evaluation / "001-a.reconstruction.wav", 0.5 * tone, RATE)
    return place


def change_summary(run: Path, **changes) -> None:
    place = run / "evaluation/summary.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))


@pytest.fixture
def runs(tmp_path) -> Path:
    folder = tmp_path / "sweep"
    for seed, mel in enumerate((2.0, 2.02, 1.98)):
        write_run(folder, "rvq", seed, mel)
        write_run(folder, "fsq", seed, mel + 0.01)
        write_run(folder, "lfq", seed, mel + 0.5)
    write_run(folder, "none", 0, 1.0)
    failed = folder / "quantizer=vq,seed=0"
    failed.mkdir()
    error = "sweep.kbps: this quantizer cannot have <b>6</b> kbit/s"
    (failed / "result.json").write_text(json.dumps({"status": "failed", "error": error, "swept": {}}))
    return folder


# Statistics


def test_interval_is_that_of_the_normal_approximation_for_many_files():
    scores = np.random.default_rng(1).normal(3.0, 0.5, 400)
    low, high = interval(scores.tolist())
    half = 1.96 * scores.std(ddof=1) / math.sqrt(len(scores))
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.005)


def test_permutation_p_is_that_of_all_permutations():
    one, other = [1.0, 2.0, 3.0, 4.5, 2.0, 3.0], [0.9, 1.7, 3.2, 4.0, 1.5, 2.9]
    differences = np.subtract(one, other)
    signs = np.array(list(itertools.product((-1, 1), repeat=len(one))))
    exact = (np.abs((signs * differences).mean(1)) >= abs(differences.mean()) - 1e-12).mean()
    assert paired_p_value(one, other) == pytest.approx(exact)


def test_the_smallest_p_is_what_the_test_gives_when_all_files_agree():
    for files in (2, 5, 8, 11, 14, 20):
        differences = 1 + np.arange(files) / files
        found = paired_p_value(differences.tolist(), [0.0] * files)
        assert found == pytest.approx(least_p(files, 1), rel=0 if files < 12 else 1.5)
        assert least_p(files, 3) == min(1, 3 * least_p(files, 1))


@pytest.mark.parametrize(
    ("files", "comparisons", "words"),
    [
        (4, 1, "4 files and 1 comparison, no p can be below 0.12, so .* evaluate 6 files or more"),
        (7, 18, "18 comparisons, no p can be below 0.28, so .* evaluate 10 files or more"),
        (50, 300, "below 0.075, so no difference can be significant: compare fewer"),
        (50, 10, r"below 0\.0025\.$"),
    ],
)
def test_the_smallest_p_is_named_with_what_to_do(files, comparisons, words):
    assert re.search(words, smallest_p(files, comparisons))
    enough = re.search(r"evaluate (\d+) files", smallest_p(files, comparisons))
    if enough:
        assert least_p(int(enough[1]), comparisons) < 0.05 <= least_p(int(enough[1]) - 1, comparisons)


def test_the_p_over_seeds_is_that_of_the_t_test_and_uses_all_that_is_known_of_seeds():
    one, other = [1.0, 2.0, 3.0], [2.0, 3.0, 4.5]
    # scipy.stats.ttest_ind(one, other, equal_var=True).pvalue
    assert pooled_p_value(one, other, [one, other]) == pytest.approx(0.2770691673475921, abs=1e-6)
    assert pooled_p_value([1, 2, 3, 4], [6], [[1, 2, 3, 4], [6]]) == pytest.approx(
        0.09375914018742086, abs=1e-6
    )
    more = pooled_p_value([1.0], [3.0], [[1.0], [3.0], *([0.0, 0.5, 1.0] for _ in range(6))])
    assert more < pooled_p_value([1.0], [3.0], [[1.0], [3.0], [0.0, 0.5, 1.0]]) < 0.2
    assert math.isnan(pooled_p_value([1.0], [2.0], [[1.0], [2.0]]))


def test_holm_is_holm():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def scored(name: str, means: list[float], files: int = 30, noise: float = 0.05) -> list[EvaluationRun]:
    random = np.random.default_rng(len(name))
    return [
        EvaluationRun(
            Path(name),
            {"seed": seed},
            name,
            None,
            {"mel": {str(n): mean + 0.1 * n + noise * random.normal() for n in range(files)}},
        )
        for seed, mean in enumerate(means)
    ]


def test_a_difference_smaller_than_that_between_seeds_is_no_difference():
    one_seed = compare({"a": scored("a", [2.0]), "bb": scored("bb", [2.1])}, MEL, ["a", "bb"])
    assert one_seed["a"].best and one_seed["bb"].p < 0.01
    seeds = {"a": scored("a", [1.8, 2.0, 2.2]), "bb": scored("bb", [1.9, 2.1, 2.3])}
    several = compare(seeds, MEL, ["a", "bb"])
    assert several["a"].best and several["bb"].p > 0.3
    lucky = compare({**seeds, "a": scored("a", [1.85])}, MEL, ["a", "bb"])
    assert lucky["a"].best and lucky["bb"].p > 0.2  # one seed may be the best of many by chance
    assert several["a"].spread == pytest.approx(0.2, abs=0.02)


def test_a_file_that_not_all_seeds_have_changes_nothing_between_seeds():
    seeds = {"a": scored("a", [1.8, 2.0, 2.2]), "bb": scored("bb", [1.9, 2.1, 2.3])}
    expected = compare(seeds, MEL, ["a", "bb"])
    seeds["bb"][0].scores["mel"]["further.wav"] = math.nan
    seeds["a"][0].scores["mel"]["further.wav"] = 1000.0
    assert compare(seeds, MEL, ["a", "bb"]) == expected


def test_the_ceiling_is_never_the_best_and_higher_si_sdr_is_better():
    variants = {"none": scored("none", [1.0]), "a": scored("a", [2.0])}
    assert not compare(variants, MEL, ["a"])["none"].best
    assert compare(variants, MEL, ["a"])["a"].best
    for run in itertools.chain(*variants.values()):
        run.scores = {"si_sdr": run.scores["mel"]}
    assert compare(variants, SI_SDR, ["a", "none"])["a"].best


# Reading


def test_seeds_of_a_variant_are_one_row_and_repeats_are_left_out(runs):
    shutil.copytree(runs / "quantizer=rvq,seed=0", runs / "quantizer=again,seed=0")
    found = find_runs([runs])
    variants = group(found)
    assert {name: len(members) for name, members in variants.items()} == {
        "rvq": 3,
        "fsq": 3,
        "lfq": 3,
        "none": 1,
    }
    assert [run.error for run in found if run.error and "same config and seed" in run.error]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "evaluation/summary.json").write_text('{"files": 8'), "summary.json"),
        (lambda run: (run / "evaluation/summary.json").write_text("[]"), "summary.json"),
        (lambda run: (run / "evaluation/summary.json").write_text('{"files": 8}'), "evaluate the run again"),
        (
            lambda run: change_summary(run, codebook_sizes=None, rate_distortion="x"),
            "lacks codebook_sizes, rate_distortion",
        ),
        (lambda run: (run / "evaluation/files.csv").write_text("file,mel\na.wav,x\n"), "files.csv"),
        (lambda run: (run / "evaluation/files.csv").unlink(), "files.csv"),
        (lambda run: (run / "evaluation/summary.json").unlink(), "not finished"),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "damaged"),
        (lambda run: (run / "result.json").write_text("{"), "result.json"),
    ],
)
def test_a_damaged_run_is_listed_with_its_reason_and_the_others_are_compared(runs, tmp_path, damage, words):
    damage(runs / "quantizer=lfq,seed=1")
    assert "9 runs of 4 variants, 2 without result" in report([runs], tmp_path / "out")
    (line,) = [line for line in (tmp_path / "out/table.md").read_text().splitlines() if "lfq,seed=1" in line]
    assert words in line


def test_a_training_curve_keeps_its_end_and_survives_what_a_kill_left(runs):
    place = runs / "quantizer=rvq,seed=0/metrics.csv"
    place.write_text("step,train/mel,valid/mel\n" + "".join(f"{n},{n}.5,\n" for n in range(1000)) + "1000,,2")
    found = training_curves(place)
    assert found["valid/mel"] == [[1000, 2]] and len(found["train/mel"]) < 300
    assert found["train/mel"][0] == [0, 0.5] and found["train/mel"][-1] == [999, 999.5]
    for damaged in ("", "step,train/mel\n", "x,train/mel\n1,2\n", "step,train/mel\n1,a\n,2\n2", "\0\n\0"):
        place.write_text(damaged)
        assert training_curves(place) == {}


def test_seeds_that_were_scored_with_other_metrics_count_where_they_can(runs, tmp_path):
    """As when PESQ was installed, or worked, for some runs alone."""
    run = runs / "quantizer=rvq,seed=1"
    summary = json.loads((run / "evaluation/summary.json").read_text())
    points = [{**point, "pesq_wb": 3.0} for point in summary["rate_distortion"]]
    change_summary(run, pesq_wb=3.0, rate_distortion=points)
    table = (run / "evaluation/files.csv").read_text().splitlines()
    rows = [f"{table[0]},pesq_wb", *(f"{line},3" for line in table[1:])]
    (run / "evaluation/files.csv").write_text("\n".join(rows) + "\n")
    report([runs], tmp_path / "out")
    with (tmp_path / "out/table.csv").open(newline="") as file:
        found = {
            row["variant"]: (row["PESQ-WB"], row["mel distance sd of seeds"]) for row in csv.DictReader(file)
        }
    assert found["rvq"][0] == "3.0" and found["rvq"][1] and found["fsq"][0] == ""


@pytest.mark.parametrize("options", [{"clips": -1}, {"seconds": 0.0}])
def test_impossible_clips_are_refused(runs, tmp_path, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        report([runs], tmp_path / "out", **options)


def test_nothing_to_compare_is_said_clearly(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        report([tmp_path / "missing"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no run of codec-train .*config\.yaml"):
        report([tmp_path / "empty"], tmp_path / "out")
    run = write_run(tmp_path / "runs", "rvq")
    shutil.rmtree(run / "evaluation")
    with pytest.raises(ConfigError, match=r"(?s)no run is finished.*seed=0: not finished"):
        report([tmp_path / "runs"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Writing


def test_tables_hold_the_means_and_mark_the_best(runs, tmp_path):
    report([runs], tmp_path / "out")
    with (tmp_path / "out/table.csv").open(newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert float(rows["rvq"]["mel distance"]) == pytest.approx(2.0 + 0.3 * 3.5, abs=0.01)
    assert rows["rvq"]["seeds"] == "3" and float(rows["rvq"]["kbit/s"]) == 6
    assert any("cannot have" in row["error"] for row in rows.values())
    markdown = (tmp_path / "out/table.md").read_text()
    lines = {line.split("|")[1].strip(): line for line in markdown.splitlines() if line.startswith("| ")}
    assert re.search(r"\| \*\*3\.0\d\d\*\*", lines["rvq"])
    assert "≈ 3.0" in lines["fsq"] and "≈ 3.5" not in lines["lfq"] and "3.5" in lines["lfq"]
    assert "none (ceiling)" in lines and "**" not in lines["none (ceiling)"].split("|")[6]
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1
    change_summary(runs / "quantizer=none,seed=0", ceiling=None)  # as of a variational autoencoder
    report([runs], tmp_path / "out")
    markdown = (tmp_path / "out/table.md").read_text()
    assert "| none | 1 | - |" in markdown and "(ceiling)" not in markdown


class Links(HTMLParser):
    """What a page would load."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def test_the_page_needs_nothing_else_and_text_stays_text(runs, tmp_path):
    (runs / "quantizer=rvq,seed=0/result.json").write_text(
        json.dumps({"status": "done", "swept": {"quantizer": "</script><img src=http://x onerror=alert(1)>"}})
    )
    report([runs], tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    links = Links()
    links.feed(page)
    assert links.found == [] and "<img src=http" not in page
    without_data = re.sub(r"(?s)<script type=.*?</script>", "", page)
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:|@import|url\(http""", without_data)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.html", "table.csv", "table.md"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs another operating system: names of any bytes")
def test_a_folder_whose_name_is_not_utf_8_is_reported(runs, tmp_path):
    report([runs.rename(tmp_path / os.fsdecode(b"runs\xff"))], tmp_path / "out")
    assert "<title>runs\\udcff" in (tmp_path / "out/index.html").read_text(encoding="utf-8")


def test_the_title_of_many_folders_is_short():
    assert title_of([Path("/runs/a"), Path("/runs/b")]) == "a, b"
    assert title_of([Path(f"/runs/sweep/{n}") for n in range(9)]) == "9 folders of sweep"
    assert title_of([Path(f"/{n}") for n in range(4)]) == "4 folders of /"


def test_other_evaluations_can_be_compared(runs, tmp_path):
    (runs / "quantizer=rvq,seed=0/evaluation").rename(runs / "quantizer=rvq,seed=0/evaluation-music")
    assert "1 run of 1 variant," in report([runs], tmp_path / "out", evaluation="evaluation-music")


QUESTIONS = r"""
  said.order = () => all("#table tbody tr").map(row => row.querySelector(".name").textContent);
  said.before = said.order();
  all("th button")[0].click(); said.ascending = said.order();
  all("th button")[0].click(); said.descending = said.order();
  said.best = all("td.best").length;
  const sections = all("section").filter(part => !part.hidden);
  said.sections = sections.map(part => part.querySelector("h2").textContent);
  said.contents = all("#contents a").map(link => link.textContent);
  said.linked = all("#contents a").every(link => page.querySelector(link.getAttribute("href")));
  said.meanings = all("#meanings dt").map(term => term.textContent);
  said.made = all("footer dt").map(term => [term.textContent, term.nextElementSibling.textContent]);
  said.lines = ["rd", "training"].map(id => all(`#${id} path`).length);
  said.ceiling = page.getElementById("rd").textContent.includes("none (ceiling)");
  said.bars = all("#codebooks rect").length;
  said.players = all("#listen audio").length;
  said.pictures = all("#listen img").filter(image => image.naturalWidth > 0).length;
  said.failed = page.getElementById("failed").textContent;
  const rate = all("#rd-controls select")[1];
  const tick = () => all("#rd text").map(text => text.textContent).join(" ");
  const nominal = tick(); rate.value = "kbit/s_entropy"; rate.dispatchEvent(new Event("change"));
  said.redrawn = nominal !== tick();
  delete said.order;
  const lines = () => [all("#rd path").length, all("#training path").length];
  const press = name => all("#rd .legend button").find(button => button.textContent === name).click();
  press("rvq"); said.without = lines(); press("rvq"); said.again = lines();
  said.places = [];
  for (const player of all("audio").slice(0, 3)) {
    player.muted = true;
    player.playbackRate = 1 / 16;  // so that it has not ended before the next one starts
    await player.play();
    const start = player.currentTime;
    while (player.currentTime === start) await new Promise(wait => setTimeout(wait, 20));
    said.places.push(player.currentTime);
    player.currentTime = 0.9 * player.duration;
    await new Promise(done => { player.onseeked = player.onerror = done; });
    said.places.push(player.error ? player.error.message : player.currentTime);
    player.currentTime = 0.35;
  }
  said.playing = all("audio").filter(player => !player.paused).length;
"""


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_works_in_a_browser_at_phone_and_desktop_width(runs, tmp_path, width):
    report([runs], tmp_path / "out", command="codec-report 'a b'")
    said = ask(tmp_path / "out/index.html", width, QUESTIONS)
    assert said["before"] == ["none", "rvq", "fsq", "lfq"]  # by mel distance
    assert said["ascending"] == sorted(said["before"]) == said["descending"][::-1]
    assert said["best"] == 2 and said["lines"] == [3, 10] and said["ceiling"]
    assert said["bars"] == 6 and said["players"] == 5 and said["pictures"] == 5
    assert "<b>6</b> kbit/s" in said["failed"] and said["redrawn"]
    assert said["without"] == [2, 7] and said["again"] == [3, 10]
    # Each plays, can be sought in, and goes on where the one before was.
    assert said["places"] == pytest.approx([0, 0.9, 0.35, 0.9, 0.35, 0.9], abs=0.05)
    assert said["places"][0] > 0 and said["playing"] == 1
    assert said["sections"] == said["contents"] and said["linked"]
    assert said["contents"][:2] == ["Listen and look", "Comparison"]
    assert said["meanings"][:3] == ["kbit/s", "mel distance ↓", "SI-SDR ↑"]
    made = dict(said["made"])
    assert made["command"] == "codec-report 'a b'" and made["runs"] == str(runs)
    assert made["version"].endswith(codec.__version__) and re.fullmatch(
        r"\d{4}-\d\d-\d\d .* UTC", made["date"]
    )


TABLE = """
  const place = page.getElementById("table").parentElement;
  said.columns = all("#table th").length;
  said.hidden = place.scrollWidth - place.clientWidth;
  const left = () => all("#table td")[0].getBoundingClientRect().left;
  const before = left();
  place.scrollLeft = 200;
  said.moved = place.scrollLeft;
  said.stuck = Math.abs(left() - before);
"""


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_a_table_of_every_score_fits_a_desktop_and_keeps_its_names_on_a_phone(runs, tmp_path):
    for run in runs.glob("quantizer=*"):
        if not (run / "evaluation/summary.json").is_file():
            continue
        change_summary(run, **dict.fromkeys(METRICS, 3.3456))
        table = [["file", *METRICS], *([f"{n}.wav", *[3.3456 + n] * len(METRICS)] for n in range(8))]
        with (run / "evaluation/files.csv").open("w", newline="") as file:
            csv.writer(file).writerows(table)
    report([runs], tmp_path / "out")
    desktop = ask(tmp_path / "out/index.html", 1280, TABLE)
    assert desktop["columns"] == 2 + len(METRICS) and desktop["hidden"] <= 0
    phone = ask(tmp_path / "out/index.html", 390, TABLE)
    assert phone["moved"] == 200 and phone["stuck"] <= 16  # the padding of the card


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [390, 1280])
def test_long_names_and_markup_stay_within_the_page(runs, tmp_path, width):
    for number, name in enumerate(["x" * 400, "<script>document.body.remove()</script>", "a\u202eb"]):
        place = runs / f"quantizer=lfq,seed={number}"
        place.joinpath("result.json").write_text(json.dumps({"status": "done", "swept": {"a.b": name}}))
        evaluation = place / "evaluation"
        for kind in ("original", "reconstruction"):
            (evaluation / f"001-a.{kind}.wav").rename(evaluation / f"001-{'z' * 150}.{kind}.wav")
        place.joinpath("config.yaml").write_text(yaml.safe_dump({"seed": 0, "number": number}))
    report([runs], tmp_path / "out")
    said = ask(tmp_path / "out/index.html", width, "said.names = all('tbody .name').map(n => n.textContent);")
    assert {f"b={'x' * 78}…", "b=<script>document.body.remove()</script>", r"b=a\u202eb"} < set(said["names"])


def test_the_command_reports_and_refuses_in_words(runs, tmp_path):
    command = [sys.executable, "-m", "codec", "report"]
    done = programs.run([*command, str(runs), "--clips", "1"])
    assert done.returncode == 0, done.stderr
    assert (
        "codec-report" in (runs / "report/index.html").read_text()
        and "10 runs of 4 variants, 1 without result" in done.stdout
    )
    wrong = programs.run([*command, "nowhere"])
    assert (
        wrong.returncode == 2
        and "nowhere: no such folder" in wrong.stderr
        and "Traceback" not in wrong.stderr
    )
