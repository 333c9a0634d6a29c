"""A mistyped option is answered with the one that was meant."""

from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from codec.config import ConfigError
from codec.training.overrides import also_searched, check_names


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("quantizer=rqv", r"quantizer=rqv: there is no such option; did you mean rvq\?; there are .*vq"),
        ("quantizer=rvq,fsqq", r"quantizer=fsqq: there is no such option; did you mean fsq\?"),
        ("quantizer.num_quantizer=3", r"did you mean quantizer\.num_quantizers\?"),
        ("trainer.max_step=3", r"trainer\.max_step: .* did you mean trainer\.max_steps\?"),
        ("quantizer.codebook.codebok_size=3", r"did you mean quantizer\.codebook\.codebook_size\?"),
        ("experimnt=tiny", r"did you mean experiment\?"),
        ("sample_rat=3", r"did you mean sample_rate\?"),
        ("zzz=1", r"zzz: there is no such option$"),
        (
            "~training.stages.1",
            r"stages\.1: Hydra removes no item of a list: .* training\.stages=\[\.\.\.\]$",
        ),
    ],
)
def test_what_was_meant_is_named(argument, answer):
    with pytest.raises(ConfigError, match=answer):
        check_names([argument, "data.root=x"])


def test_all_mistakes_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        check_names(["sead=1", "nam=x", "quantizer=rvq"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=tiny", "data=folder", "data.root=x", "quantizer=rvq,fsq", "seed=1,2", "-m"],
        ["quantizer=fsq", "quantizer.codebook.levels=[8,8]"],
        ["quantizer=choice(rvq,fsq)", "data.root=x", "-m"],
        ["quantizer=glob(rvq*)", "data.root=x", "-m"],
        ["+trainer.gradient_clip_val=1", "~logger", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["experiment=speech_16khz", "loss=mel", "~training.stages.0.weights"],
        ["loss.weights.mel=3", "loss=mel", "logger=none", "--cfg", "job"],
        ["sweep=equal_bitrate", "sweep.kbps=6", "search=optuna", "search.trials=3"],
        ["data.root=[/a,/b]", "data.weights=[3,1]", "data.augmentation.gain_db=[-10,6]"],
    ],
)
def test_what_exists_passes(arguments):
    check_names(arguments)


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("name=a(b", r"""Quote it twice: "name='a\(b'"$"""),
        ("name='a\"$(b", r"""Quote it twice: 'name="""),
        ("data.root=[a(b),c]", r"""Quote it twice: "data.root=\['a \(path\)','another'\]"$"""),
        ("+x=}", r"""Quote it twice: "\+x='}'"$"""),
    ],
)
def test_what_hydra_cannot_read_is_answered_with_the_quotes_it_needs(argument, advice):
    with pytest.raises(ConfigError, match=advice):
        check_names(["data.root=x", argument])


@pytest.mark.parametrize(
    "found",
    [["hydra.searchpath=[{0}]"], ["hydra.searchpath=[file://{0}]"], ["--config-dir", "{0}"], ["-cd={0}"]],
)
def test_options_on_the_search_path_are_offered(tmp_path, found):
    (tmp_path / "quantizer").mkdir()
    (tmp_path / "quantizer/mine.yaml").write_text("defaults: [rvq, _self_]\nextra: 1\n")
    added = [argument.format(tmp_path) for argument in found]
    check_names([*added, "quantizer=mine", "quantizer.extra=2", "data.root=x"])
    with pytest.raises(ConfigError, match=r"quantizer=mime: .*did you mean mine\?.* fsq.* mine"):
        check_names([*added, "quantizer=mime"])
    with pytest.raises(ConfigError, match=r"quantizer.extr: .*did you mean quantizer.extra"):
        check_names([*added, "quantizer=mine", "quantizer.extr=2"])
    with pytest.raises(ConfigError, match="quantizer=mine: there is no such option"):
        check_names(["quantizer=mine"])


@pytest.mark.parametrize(
    ("given", "extended"),
    [
        ("", "{}"),
        ("-m a=1", "-m {} a=1"),
        ("a=1 --config-dir b=2", "{} a=1 --config-dir b=2"),
        ("--config-dir b=2 a=1", "--config-dir b=2 {} a=1"),
        ("a=1 hydra.searchpath=[file:///x] b=2", "a=1 hydra.searchpath=[file:///x,'file:///y'] b=2"),
        ("hydra.searchpath=[]", "{}"),
    ],
)
def test_folders_are_added_to_the_search_path_beside_other_overrides(given, extended):
    expected = extended.format("hydra.searchpath=['file:///y']").split()
    assert also_searched(given.split(), [Path("/y")]) == expected
    assert also_searched(given.split(), []) == given.split()
    get_args_parser().parse_args(expected)  # Hydra's own, which rejects overrides on both sides of a flag
