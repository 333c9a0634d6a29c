"""BD-rate against closed forms, and against another implementation of the same interpolation."""

import numpy as np
import pytest

from codec.evaluation.bdrate import bd_rate, integral, slopes

ANCHOR = [(6.0, 2.6), (9.0, 3.5), (12.0, 4.0), (16.0, 4.2), (24.0, 4.35)]


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 2.0])
def test_a_codec_that_needs_a_factor_more_everywhere_has_that_rate(factor):
    curve = [(factor * rate, score) for rate, score in ANCHOR]
    assert bd_rate(curve, ANCHOR) == pytest.approx(100 * (factor - 1), abs=1e-6)
    assert bd_rate(ANCHOR, curve) == pytest.approx(100 * (1 / factor - 1), abs=1e-6)


def test_lower_is_better_turns_the_scale():
    down = [(rate, -score) for rate, score in ANCHOR]
    curve = [(1.3 * rate * (1 + 0.01 * n), score - 0.05) for n, (rate, score) in enumerate(ANCHOR)]
    turned = [(rate, -score) for rate, score in curve]
    assert bd_rate(turned, down, lower_is_better=True) == pytest.approx(bd_rate(curve, ANCHOR))


def test_the_range_in_common_alone_counts():
    short = [(1.5 * rate, score) for rate, score in ANCHOR[1:4]]
    near = bd_rate(short, ANCHOR[1:4])
    assert near == pytest.approx(50, abs=1e-6)
    assert bd_rate(short, ANCHOR) == pytest.approx(near, abs=3)  # other neighbors, other slopes at the ends


def test_the_interpolation_is_scipy_s():
    scipy = pytest.importorskip("scipy.interpolate", reason="compared where scipy is installed")
    random = np.random.default_rng(0)
    for size in (2, 3, 4, 9):
        x, y = np.cumsum(random.uniform(0.1, 1, size)), np.cumsum(random.uniform(0.1, 3, size))
        theirs = scipy.PchipInterpolator(x, y)
        np.testing.assert_allclose(slopes(x, y), theirs.derivative()(x), rtol=1e-9)
        low, high = x[0] + 0.05, x[-1] - 0.02
        assert integral(x, y, low, high) == pytest.approx(float(theirs.integrate(low, high)), rel=1e-9)


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        ([(6.0, 5.0), (9.0, 6.0)], "no quality in common: 5 to 6 and 2.6 to 4.35"),
        ([(6.0, 3.0)], "at least two bitrates, this one has 1"),
        ([(6.0, 3.0), (9.0, 3.5), (12.0, 3.4)], "does not rise"),
        ([(6.0, 3.0), (6.0, 3.5)], "does not rise"),
    ],
)
def test_curves_that_cannot_be_compared_are_refused(curve, words):
    with pytest.raises(ValueError, match=words):
        bd_rate(curve, ANCHOR)
