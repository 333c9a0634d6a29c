"""`pytest --ci`: skipped tests and warnings are failures, unless no package could help."""

import os

import pytest

ALLOWED = ("needs a GPU", "needs another operating system", "needs real recordings")
OPTION = "--ci"


def pytest_addoption(parser: pytest.Parser) -> None:
    allowed = " or ".join(reason.removeprefix("needs ") for reason in ALLOWED)
    parser.addoption(
        OPTION, action="store_true", help=f"fail on warnings, and on skips but for want of {allowed}"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption(OPTION):  # with the locked versions alone: newer ones warn of more
        config.getini("filterwarnings").insert(0, "error")
        config.option.durations = (
            25 if config.option.durations is None else config.option.durations
        )  # the slowest tests, in the log


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that repeat a quicker one in another setting, unless CODEC_TEST_ALL is set."""
    if os.environ.get("CODEC_TEST_ALL"):
        return
    repeating = [item for item in items if item.get_closest_marker("exhaustive")]
    config.hook.pytest_deselected(items=repeating)
    items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item):
    return judged((yield), item.config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(collector: pytest.Collector):
    return judged((yield), collector.config)


def judged(report, config: pytest.Config):
    """A report, failed if it is of a test or a file that is skipped for a reason which is not allowed."""
    if config.getoption(OPTION) and report.skipped and not hasattr(report, "wasxfail"):
        path, line, reason = report.longrepr
        if not reason.removeprefix("Skipped: ").startswith(ALLOWED):
            report.outcome, report.longrepr = (
                "failed",
                f"{path}:{line}: {reason}, which {OPTION} does not allow",
            )
    return report
