"""The average of codecs: exact, and refused where it would mean nothing."""

import average_models
import pytest
import torch
from tokenized import small_codec

from codec.model.saving import load


@pytest.fixture
def saved(tmp_path):
    """Two codecs of one architecture and one of another, in folders a, b and other."""
    a, b = small_codec(), small_codec()
    for tensor in b.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn_like(tensor))
    a.save(tmp_path / "a")
    b.save(tmp_path / "b")
    small_codec(channels=2).save(tmp_path / "other")
    return tmp_path


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["average_models.py", *map(str, arguments)])
    return average_models.report_errors(average_models.main)


def test_average_is_the_weighted_mean_of_every_tensor(saved, monkeypatch):
    a, b = load(saved / "a").state_dict(), load(saved / "b").state_dict()
    assert run(monkeypatch, f"{saved}/a", f"{saved}/b:3", "-o", saved / "mean") == 0
    for name, tensor in load(saved / "mean").state_dict().items():
        expected = (a[name] + 3 * b[name]) / 4 if tensor.is_floating_point() else a[name]
        torch.testing.assert_close(tensor, expected)


def test_what_has_no_average_is_refused_and_nothing_is_written(saved, monkeypatch, capsys):
    for models, message in (
        (["a", "other"], "differ in their config"),
        (["a", "b:0"], "above 0"),
        (["a", "nothing"], "nothing"),
    ):
        paths = [f"{saved}/{model}" for model in models]
        assert run(monkeypatch, *paths, "-o", saved / "mean") == 2
        assert message in capsys.readouterr().err
        assert not (saved / "mean").exists()
    assert run(monkeypatch, f"{saved}/a", "-o", saved / "b") == 2
    assert "exists already" in capsys.readouterr().err
