"""Command lines, for what is made of them."""

from tests.core.cli.conftest import run  # noqa: F401 (a fixture)
