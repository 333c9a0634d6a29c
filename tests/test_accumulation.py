"""Accumulation and recomputed activations: the same step as at once, in less memory."""

import pytest
import torch
from test_training import run

pytestmark = pytest.mark.filterwarnings("default")

def test_try(tmp_path, wavs):
    options = ["trainer.max_steps=4", "optimizer.schedule.warmup_steps=1", "training.adversarial_from=0", "quantizer.dropout=0.7", "loss=encodec", "loss.reconstruction.spectral.windows=[64,256]", "data.batch_size=8", "training.average_decay=0.9", "checkpoint.keep_every=1", "trainer.log_every_n_steps=1"]
    one = run(tmp_path / "one", wavs, *options)
    for extra in (["training.accumulate=4"], ["training.checkpoint_activations=true"], ["training.accumulate=2", "training.checkpoint_activations=true"]):
        other = run(tmp_path / f"{len(extra[0])}{len(extra)}", wavs, *options, *extra)
        worst = max((float((one["state_dict"][n].double() - v.double()).abs().max()), n, float(v.double().abs().max())) for n, v in other["state_dict"].items())
        print(extra, worst)
    import subprocess
    print(subprocess.run("paste -d'\n' */run/metrics.csv", shell=True, cwd=tmp_path, capture_output=True, text=True).stdout)
    assert 0
