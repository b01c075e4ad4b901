"""Over many test sets the paired tests keep their 5%, and find the difference they state as detectable.

The fast tier draws a few hundred test sets, the long tier thousands; `simulation.py` prints the table of the docs.
"""

import pytest

from tests.core.analysis.compare import simulation


@pytest.mark.parametrize("kind", ["accuracy", "f1"])
def test_size_and_power(kind):
    assert 0.01 < simulation.rejected(kind, 500, 0.0, 300) < 0.09  # 3 standard errors around 5%
    assert 0.70 < simulation.rejected(kind, 500, simulation.stated(kind, 500, 50), 300) < 0.89


@pytest.mark.long
@pytest.mark.parametrize("n", [500, 2000])
@pytest.mark.parametrize("kind", simulation.KINDS)
def test_size_and_power_over_thousands(kind, n):
    lowest = 0.03 if kind == "seeds" else 0.04  # t over three seeds is conservative, as the docs' table says
    assert lowest <= simulation.rejected(kind, n, 0.0, 5000) <= 0.06
    assert 0.75 <= simulation.rejected(kind, n, simulation.stated(kind, n), 5000) <= 0.85
