"""`codec-plan OVERRIDES`: time, memory and disk that `codec-train OVERRIDES` will take on this machine."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from codec.commands.parsers import parse
from codec.commands.train import start_training
from codec.config import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; with `--json`, standard output has the forecast alone."""
    options = parse("plan", argv)
    given = [*(["--config-dir", options.config_dir] if options.config_dir else []), *options.overrides]
    given += [f"trust=[{','.join(options.trust)}]"] if options.trust else []
    sys.argv[1:] = given
    task = functools.partial(plan, given=given, output=sys.stdout if options.json else None)
    with exiting_on_signals(), contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        return start_training(task)


@contextlib.contextmanager
def exiting_on_signals() -> Iterator[None]:
    """Convert SIGTERM and SIGHUP, unless ignored, into SystemExit, which removes temporary files."""

    def leave(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the removal
        sys.exit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def plan(composed: Any, given: Sequence[str], output: Any = None) -> int:
    """Measure the training of a composed config and print the forecast; 130 after Ctrl-C.

    `output` gets the forecast as JSON. ConfigError for a training on several devices.
    """
    from tqdm import tqdm

    from codec.training.build import build_parts, count_learned
    from codec.training.finetuning import adopt
    from codec.training.forecast import command, forecast, in_words, line
    from codec.training.metrics_csv import quiet_libraries
    from codec.training.planning import MOST, Survey, parts_of
    from codec.training.resolve import resolve

    composed, codec = adopt(composed)
    config = resolve(composed)
    if (str(config["trainer"]["devices"]), config["trainer"]["num_nodes"]) != ("1", 1):
        raise ConfigError(
            "trainer.devices: codec-plan measures one device; set trainer=default and, as data.batch_size, "
            "that of one device"
        )
    quiet_libraries()
    data, module = build_parts(config, codec)
    data.prepare_data()
    data.setup()
    seconds = sum(file.seconds for files in data.trained for file in files)
    survey = Survey(config, parts_of(module, config["trainer"]["max_steps"]))
    parameters = count_learned(module)
    model_bytes = sum(tensor.nbytes for tensor in module.codec.state_dict().values())
    del module, codec
    print(
        ", ".join(f"{name} {count / 1e6:.3f} M parameters" for name, count in parameters.items())
        + f"; {seconds / 3600:.2f} h to train on\n{'measured, each in a new process':<48}"
        f"{'batch':>6}{'steps/s':>10}{'audio s/s':>10}{'memory':>12}",
        flush=True,
    )
    stopped = False
    bar = tqdm(survey.run(), total=len(survey.parts) + MOST - 2, unit="measurement", disable=None)
    try:
        for row in bar:
            tqdm.write(line(row, config), file=sys.stdout)
    except KeyboardInterrupt:
        stopped = True
    bar.close()
    outlook = {"parameters": parameters, "data_seconds": seconds, "complete": not stopped}
    outlook |= forecast(survey, seconds, model_bytes)
    if "loading_workers" in outlook:
        outlook["command"] = command(survey, given, outlook["loading_workers"])
    print(in_words(outlook, config["data"]["num_workers"]))
    print(
        f"recommended: {outlook['command']}" if "command" in outlook else "interrupted: not all was measured"
    )
    if output is not None:
        print(json.dumps(outlook, indent=1), file=output)
    return 130 if stopped else 0
