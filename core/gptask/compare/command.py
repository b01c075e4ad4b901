"""The command line that makes a run again (a stand-in on this branch)."""

from typing import Any


def command(config: dict[str, Any]) -> str:
    """One line of shell."""
    return f"gptask train task={config['plugin']['name']} seed={config.get('seed')}"
