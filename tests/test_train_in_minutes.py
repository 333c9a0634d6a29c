"""A training of a given length: stages keep their proportions, and the run reports its pace."""

import json

import pytest
import train_in_minutes
from train_in_minutes import main, shortened

from codec.commands.errors import report_errors
from codec.config import ConfigError
from codec.model.saving import load

STAGES = "training.stages=[{name: a, steps: 1000, bottleneck: none}, {name: b, steps: 3000, lr: 1.0e-4}]"


def test_stages_fill_the_seconds_and_keep_their_proportion():
    stages = [{"name": "a", "steps": 1000, "lr": 1e-3}, {"name": "b", "steps": 3000}]
    fitting = shortened(stages, [10.0, 5.0], 70.0)  # all of it would take 100 + 600 s
    assert [stage["steps"] for stage in fitting] == [100, 300]
    assert fitting[0]["lr"] == 1e-3 and stages[0]["steps"] == 1000
    longer = shortened(stages, [10.0, 5.0], 1400.0)
    assert [stage["steps"] for stage in longer] == [2000, 6000]
    for seconds in (-5.0, 0.1):
        with pytest.raises(ConfigError, match="more minutes"):
            shortened(stages, [10.0, 5.0], seconds)


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["train_in_minutes.py", *map(str, arguments)])
    return report_errors(main)


def test_a_probe_then_a_training_with_its_pace(tmp_path, monkeypatch):
    """Of six steps, whatever fits: how many do depends on the machine."""
    asked = {}

    def six_steps(stages, rates, seconds):
        asked.update(rates=rates, seconds=seconds)
        return [{**stage, "steps": steps} for stage, steps in zip(stages, (2, 4), strict=True)]

    monkeypatch.setattr(train_in_minutes, "shortened", six_steps)
    options = ["experiment=tiny", f"data.root={tmp_path}/audio", f"run_dir={tmp_path}/run", "evaluate=0"]
    options += [STAGES, "training.adversarial_from=0", "data.num_workers=0", "trainer.log_every_n_steps=2"]
    options += ["data.batch_size=2", "data.segment_seconds=0.25", "data.generate.seconds=30"]
    assert run(monkeypatch, 10, *options, "--probe", 6) == 0
    assert len(asked["rates"]) == 2 and min(asked["rates"]) > 0
    assert 0 < asked["seconds"] < 600
    pace = json.loads((tmp_path / "run/pace.json").read_text())
    assert pace["steps"] == {"a": 2, "b": 4}
    assert pace["audio_hours"] == round(6 * 0.5 / 3600, 2)
    assert pace["minutes"] > 0 and pace["times_real_time"] > 0
    assert load(tmp_path / "run").sample_rate == 16000


def test_an_experiment_without_stages_is_refused(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, 1, "experiment=tiny", f"data.root={tmp_path}") == 2
    assert "training.stages" in capsys.readouterr().err
