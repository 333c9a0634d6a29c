"""Listening tests: levels and anchor of the page, its trials in a browser, the statistics of its answers."""

import base64
import csv
import io
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from browser import NEEDS_CHROMIUM, ask

from codec.audio.levels import loudness
from codec.audio.writing import write_wav
from codec.commands.report import main
from codec.config import ConfigError
from codec.evaluation.listening import low_pass, write_listening
from codec.evaluation.statistics import guessing_p_value, wilcoxon_p_value

RATE = 16_000
# Zero crossings per second of the tones that stand for the systems.
CROSSINGS = {"original": 10_000, "anchor 3.5 kHz": 1000, "quiet": 1400, "loud": 1800}


def tone(level: float, *hertz: float) -> np.ndarray:
    seconds = np.arange(RATE // 2) / RATE
    return level * sum(np.sin(2 * np.pi * f * seconds) for f in hertz)[None].astype(np.float32)


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    """Evaluations of two systems, in which every stimulus is another tone."""
    for name, level, hertz in (("quiet", 0.02, 700), ("loud", 0.9, 900)):
        (tmp_path / "out" / name).mkdir(parents=True)
        for stem in ("001-a", "002-b"):
            write_wav(tmp_path / "out" / name / f"{stem}.original.wav", tone(0.2, 500, 5000), RATE)
            write_wav(tmp_path / "out" / name / f"{stem}.reconstruction.wav", tone(level, hertz), RATE)
    return {name: tmp_path / "out" / name for name in ("quiet", "loud")}


STEMS = {"001-a": "a, first.wav", "002-b": "b.wav"}


# Levels


def test_loudness_is_that_of_the_standard_and_of_ffmpeg(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs the extra `baselines`").get_ffmpeg_exe()
    assert loudness(np.sin(np.arange(5 * 48_000) * 2 * np.pi * 997 / 48_000)[None], 48_000) == pytest.approx(
        -3.01, abs=0.005
    )
    generator = np.random.default_rng(0)
    for rate, channels in ((16_000, 1), (44_100, 2)):
        gains = np.repeat(10 ** generator.uniform(-3, -0.3, 12), rate // 2)  # in part below the relative gate
        audio = (gains * generator.uniform(-1, 1, (channels, len(gains)))).astype(np.float32)
        audio[:, 1:] -= 0.9 * audio[:, :-1]
        write_wav(tmp_path / "noise.wav", audio, rate)
        command = [ffmpeg, "-nostats", "-i", tmp_path / "noise.wav", "-af", "ebur128", "-f", "null", "-"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        assert loudness(audio, rate) == pytest.approx(
            float(re.findall(r"I: +(\S+) LUFS", said)[-1]), abs=0.06
        )
    assert loudness(np.zeros((1, 48_000)), 48_000) == -np.inf


def test_the_anchor_is_the_low_pass_of_the_recommendation():
    def decibels(hertz: float) -> float:
        seconds = np.arange(48_000) / 48_000
        audio = np.sin(2 * np.pi * hertz * seconds)[None]
        return 20 * np.log10(low_pass(audio, 48_000)[0, 4800:-4800].std() / audio.std())

    assert max(abs(decibels(hertz)) for hertz in (50, 1000, 3400)) < 0.1
    assert decibels(4000) < -25 and decibels(4500) < -50


def embedded(page: Path) -> dict[str, np.ndarray]:
    """Stimuli `[T]` of the first clip of a page."""
    (text,) = re.findall(r'id="data">(.*?)</script>', page.read_text(), re.S)
    wavs = {one["name"]: base64.b64decode(one["audio"]) for one in json.loads(text)["clips"][0]["stimuli"]}
    return {name: soundfile.read(io.BytesIO(wav))[0] for name, wav in wavs.items()}


def test_stimuli_on_the_page_are_equally_loud_and_not_clipped(folders, tmp_path):
    said = write_listening("mushra", folders, STEMS, tmp_path / "out")
    assert said.startswith("listening test of 2 trials") and said.endswith("out/listening.html")
    stimuli = embedded(tmp_path / "out/listening.html")
    assert list(stimuli) == ["original", "quiet", "loud", "anchor 3.5 kHz"]
    level = loudness(tone(0.2, 500, 5000), RATE)
    for audio in stimuli.values():
        assert loudness(audio[None], RATE) == pytest.approx(level, abs=0.1) and abs(audio[0]) < 0.01

    peaks = tone(0.05, 500)
    peaks[0, 400::800] = 0.9
    for stem in STEMS:
        write_wav(folders["quiet"] / f"{stem}.original.wav", tone(0.95, 500), RATE)
        write_wav(folders["quiet"] / f"{stem}.reconstruction.wav", peaks, RATE)
    write_listening("abx", {"quiet": folders["quiet"]}, STEMS, tmp_path / "out")
    original, quiet = embedded(tmp_path / "out/listening.html").values()
    assert (np.abs(quiet) > 0.9).sum() == 10  # no sample but the peaks was cut to full scale
    assert loudness(original[None], RATE) == pytest.approx(loudness(quiet[None], RATE), abs=0.1)


def test_clips_without_audio_of_every_system_are_left_out_or_refused(folders, tmp_path):
    (folders["loud"] / "001-a.reconstruction.wav").unlink()
    assert "of 3 trials" in write_listening("abx", folders, STEMS, tmp_path / "out")
    (folders["quiet"] / "002-b.reconstruction.wav").unlink()
    for systems in (folders, {}):
        with pytest.raises(ConfigError, match="--listening: no file has audio of every codec"):
            write_listening("abx", systems, STEMS, tmp_path / "out")


# The page

START = """
  const view = page.defaultView, get = id => page.getElementById(id);
  const wait = ms => new Promise(done => setTimeout(done, ms)), links = [];
  const until = async test => {
    for (let n = 0; !test(); n++) {
      if (n > 400) throw Error(`waited for ${test}`);
      await wait(10);
    }
  };
  const connect = view.AudioNode.prototype.connect;
  view.AudioNode.prototype.connect = function (target) {
    links.push([this, target]);
    return connect.call(this, target);
  };
  const audible = async () => {
    await wait(40);
    const on = links.filter(([source, gain]) => source.buffer && gain.gain.value > .5);
    if (on.length !== 1) throw Error(`${on.length} stimuli are audible`);
    const buffer = on[0][0].buffer, samples = buffer.getChannelData(0);
    return samples.filter((x, i) => x > 0 !== samples[i - 1] > 0).length / buffer.duration;
  };
  get("listener").value = 'Ann "A", 1';
  get("seed").value = 7;
  page.querySelector("form").requestSubmit();
  const trials = said.trials = [];
  while (get("end").hidden) {
    const title = `Trial ${trials.length + 1} of`;
    const head = page.querySelector("#trial h2");
    await until(() => head.textContent.startsWith(title) && all("[data-key]").length);
    links.length = 0;
    const heard = {}, disabled = [get("next").disabled];
    for (const button of all("[data-key]")) {
      if (all("[data-key]").indexOf(button) % 2) button.click();
      else page.dispatchEvent(new view.KeyboardEvent("keydown", { key: button.dataset.key, bubbles: true }));
      heard[button.textContent] = await audible();
    }
    said.loops = [...new Set(links.filter(([source]) => source.buffer).map(([source]) => source.loop))];
    disabled.push(get("next").disabled);
    ANSWER
    disabled.push(get("next").disabled);
    trials.push({ heard, answers, disabled, missing: get("missing").textContent });
    get("next").click();
  }
  await until(() => get("save").href);
  said.name = get("save").download;
  await wait(100);
"""
ABX = """const answers = trials.length % 2 ? "A" : "B";
    page.querySelector(`[data-answer=${answers}]`).click();"""
MUSHRA = """const answers = {};
    all("input[type=range]").forEach((slider, i) => {
      slider.value = answers["ABCD"[i]] = 10 * trials.length + 20 * i;
      slider.dispatchEvent(new view.Event("input"));
    });"""


def listen(page: Path, width: int, answer: str) -> tuple[dict, list[dict[str, str]]]:
    """Answers of the browser, and the CSV that it downloads."""
    profile = page.parent.parent / "profile/Default"
    profile.mkdir(parents=True, exist_ok=True)
    downloads = {"default_directory": str(page.parent.parent), "prompt_for_download": False}
    (profile / "Preferences").write_text(json.dumps({"download": downloads}))
    said = ask(page, width, START.replace("ANSWER", answer))
    with (page.parent.parent / said["name"]).open(newline="") as file:
        return said, list(csv.DictReader(file))


def kind(crossings: float) -> str:
    """Condition whose tone has these zero crossings per second."""
    return min(CROSSINGS, key=lambda name: abs(CROSSINGS[name] - crossings))


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_an_abx_test_in_a_browser(folders, tmp_path):
    write_listening("abx", folders, {"001-a": "a, first.wav"}, tmp_path / "out")
    said, rows = listen(tmp_path / "out/listening.html", 390, ABX)
    assert said["name"] == "out-abx-Ann_A_,_1-7.csv" and len(rows) == 3
    for number, (trial, row) in enumerate(zip(said["trials"], rows, strict=True)):
        heard = {label: kind(crossings) for label, crossings in trial["heard"].items()}
        assert (row["a"], row["b"], row[row["x"].lower()]) == (heard["A"], heard["B"], heard["X"])
        assert trial["disabled"] == [True, True, False] and trial["missing"] == ""
        assert row["answer"] == trial["answers"] == "BA"[number % 2] and row["trial"] == str(number + 1)
        assert row["listener"] == 'Ann "A", 1' and row["seed"] == "7" and float(row["seconds"]) > 0
    pairs = {frozenset((row["a"], row["b"])) for row in rows}
    assert len(pairs) == 3 and {row["file"] for row in rows} == {"a, first.wav"}
    assert said["loops"] == [True] and {row["x"] for row in rows} == {"A", "B"}


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_a_mushra_test_in_a_browser(folders, tmp_path, capsys):
    write_listening("mushra", folders, STEMS, tmp_path / "out")
    said, rows = listen(tmp_path / "out/listening.html", 1280, MUSHRA)
    assert len(said["trials"]) == 2 and len(rows) == 8
    for number, trial in enumerate(said["trials"]):
        heard = {label: kind(crossings) for label, crossings in trial["heard"].items()}
        assert heard.pop("Reference") == "original" and sorted(heard.values()) == sorted(CROSSINGS)
        scores = {row["condition"]: int(row["score"]) for row in rows if row["trial"] == str(number + 1)}
        assert scores == {heard[label]: score for label, score in trial["answers"].items()}
        assert trial["disabled"] == [True, True, False]
    with pytest.raises(ConfigError, match="no listener passes the screening: Ann"):
        main([str(tmp_path / said["name"])])


# Statistics


def test_p_values_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="needs the extra `oracles`")
    draws = np.random.default_rng(0)
    for count in (1, 4, 9, 30):
        one, other = draws.normal(0.3, 1, count), draws.normal(0, 1, count)
        expected = stats.wilcoxon(one, other, method="exact").pvalue
        assert wilcoxon_p_value(one, other) == pytest.approx(expected)
    one, other = draws.integers(0, 5, (2, 11))  # with ties and without a difference
    assert 0 < (one == other).sum() < 5
    flips = stats.PermutationMethod(n_resamples=10**6)  # all 2^11
    assert wilcoxon_p_value(one, other) == pytest.approx(stats.wilcoxon(one, other, method=flips).pvalue)
    assert wilcoxon_p_value([1, 2], [1, 2]) == 1
    for correct, answers in ((0, 1), (5, 5), (14, 20), (300, 550)):
        expected = stats.binomtest(correct, answers, alternative="greater").pvalue
        assert guessing_p_value(correct, answers) == pytest.approx(expected)


def write_answers(path: Path, rows: list[dict]) -> str:
    """The CSV of one listener, named as the file."""
    fixed = {"page": "out", "listener": path.stem, "seed": 5, "seconds": 3.1}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*fixed, *rows[0]])
        writer.writeheader()
        writer.writerows(fixed | row for row in rows)
    return str(path)


def table(path: Path) -> dict[str, list[float]]:
    """Numbers of a table by the first cell of its rows."""
    with path.open(newline="") as file:
        return {row[0]: list(map(float, row[1:])) for row in list(csv.reader(file))[1:]}


def test_results_of_abx(tmp_path, capsys):
    stats = pytest.importorskip("scipy.stats", reason="needs the extra `oracles`")
    files = []
    for listener, right in (("ann", 7), ("bob", 6)):
        rows = [{"test": "abx", "trial": n, "file": "f", "a": "b|c", "b": "original"} for n in range(16)]
        rows = [row | {"x": "AB"[n % 2], "answer": "AB"[(n + (n >= 8)) % 2]} for n, row in enumerate(rows)]
        rows = [
            row | ({"a": "original", "b": "z"} if n in range(right, 16) else {}) for n, row in enumerate(rows)
        ]
        files.append(write_answers(tmp_path / f"{listener}.csv", rows))
    assert main([*files, files[0], "-o", str(tmp_path / "tables")]) == 0  # the same file twice counts once
    counts = {"original / b|c": (13, 13), "original / z": (3, 19)}
    ps = [stats.binomtest(*pair, alternative="greater").pvalue for pair in counts.values()]
    corrected = dict(zip(counts, (2 * ps[0], ps[1]), strict=True))
    rows = table(tmp_path / "tables/abx.csv")
    for (name, (correct, answers)), p in zip(counts.items(), ps, strict=True):
        assert rows[name] == pytest.approx([2, answers, correct, p, corrected[name]])
    assert r"| original / b\|c | 2 | 13 | 13 | 0.000122 | 0.000244 |" in capsys.readouterr().out


def test_results_of_mushra(tmp_path, capsys):
    stats = pytest.importorskip("scipy.stats", reason="needs the extra `oracles`")
    draws = np.random.default_rng(0)
    means = {"original": 97, "good": 80, "bad": 40, "anchor 3.5 kHz": 20}
    files, ratings = [], {name: [] for name in means}
    # The reference is below 90 in 0, 3 and 4 of 20 trials: 3 of 20 are not over 15 %.
    for listener, missed in (("ann", 0), ("bob", 3), ("eve", 4)):
        rows = []
        for trial in range(20):
            for name, mean in means.items():
                score = int(np.clip(mean + draws.integers(-3, 4), 0, 100))
                score = 89 if name == "original" and trial < missed else score
                rows.append(
                    {"test": "mushra", "trial": trial, "file": "f", "condition": name, "score": score}
                )
                if listener != "eve":
                    ratings[name].append(score)
        files.append(write_answers(tmp_path / f"{listener}.csv", rows))
    assert main([*files, "-o", str(tmp_path / "tables")]) == 0
    assert (
        "2 listeners; excluded (hidden reference below 90 in over 15% of the trials): eve."
        in capsys.readouterr().out
    )
    rows = table(tmp_path / "tables/mushra.csv")
    assert list(rows) == list(means)
    for name, (count, mean, low, high) in rows.items():
        assert count == 40 and mean == pytest.approx(np.mean(ratings[name]))
        expected = stats.bootstrap([ratings[name]], np.mean, method="percentile", rng=0).confidence_interval
        assert (low, high) == pytest.approx(expected, abs=0.15)
    rows = table(tmp_path / "tables/mushra_pairs.csv")
    assert list(rows) == ["original - good", "original - bad", "good - bad"]
    for pair, (count, difference, low, high, p, corrected) in rows.items():
        one, other = (ratings[name] for name in pair.split(" - "))
        assert count == 40 and difference == pytest.approx(np.mean(one) - np.mean(other))
        assert low < difference < high and p == pytest.approx(2 * 0.5**40) and corrected >= p
    assert sorted(row[-1] for row in rows.values()) == pytest.approx([3 * 2 * 0.5**40] * 3)


def test_results_saved_by_a_spreadsheet_and_of_two_pages(tmp_path):
    rows = [
        {"test": "mushra", "trial": 1, "file": "f", "condition": "original", "score": 100},
        {"test": "mushra", "trial": 1, "file": "f", "condition": "good", "score": 60},
    ]
    text = Path(write_answers(tmp_path / "ann.csv", rows)).read_text()
    for name, separator in (("semicolons", ";"), ("tabs", "\t")):
        content = text.replace(",", separator) + separator * 8 + "\n"
        (tmp_path / f"{name}.csv").write_text(content, encoding="utf-8-sig")
    (tmp_path / "other.csv").write_text(text.replace("out,", "other,").replace(",60", ",80"))
    files = [str(path) for path in tmp_path.glob("*.csv")]
    assert main([*files, "-o", str(tmp_path / "tables")]) == 0
    assert table(tmp_path / "tables/mushra.csv")["good"][:2] == [2, 70]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,mel\na,1\n", "line 2: not of the page"),
        (
            "test,listener,seed,trial,file,condition,score\nmushra,a,1,1,f,x,101\n",
            "line 2: a score is 0 to 100",
        ),
        ("test,listener\nabx,a,b,c\n", "line 2: not of the page"),
        ("test\n", "holds no answers"),
        ("", "holds no answers"),
        ("test,listener,seed,trial,a,b,x,answer\nabx,a,1,1,c,d,A,E\n", "line 2: x and answer are A or B"),
        (None, "No such file"),
    ],
)
def test_files_that_hold_no_answers_are_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ConfigError, match=words):
        main([str(tmp_path / "a.csv")])


def test_runs_and_answers_are_not_mixed(tmp_path):
    with pytest.raises(ConfigError, match="name runs, or CSVs of a listening test, not both"):
        main([str(tmp_path / "a.csv"), str(tmp_path)])
