"""A server under the load of many clients with mixed tasks: errors, latencies, memory over time, /health beside it.

python tests/benchmarks/serving_load.py RUN... --minutes 10 --clients 64
"""

from __future__ import annotations

import asyncio
import time

from serving import (
    Kept,
    arguments,
    finish,
    load,
    pin,
    predict_requests,
    quantiles_ms,
    serve_command,
    served_folders,
    started,
)


def main() -> None:
    """Measure."""
    options = arguments(__doc__, minutes=10.0, clients=64)
    runs = served_folders(options.runs)
    pin(1)
    with started(lambda port: serve_command(runs, port, options.option), log=options.log) as server:
        requests, seconds = predict_requests(server.url, runs), 60 * options.minutes
        figures, memory = asyncio.run(load(server, requests, options.clients, seconds))
        stop = time.monotonic()
    settled = [megabytes for when, megabytes in memory if when >= min(120, seconds / 5)]
    growth = max(settled) / settled[0]
    errors, p99 = figures.summary()["errors"], quantiles_ms(figures.seconds["label"])["p99"] / 1000
    answers = sum(map(len, figures.seconds.values()))
    load_text = f"{options.clients} clients with mixed tasks for {options.minutes:g} minutes"
    finish(
        {
            "clients": options.clients, "minutes": options.minutes, "runs": [run.name for run in runs],
            **figures.summary(),
            "exit_code": server.code, "seconds_to_end": round(time.monotonic() - stop, 1),
            "memory_mb": memory[:: max(1, len(memory) // 20)],
            "memory_growth": round(growth, 4),
        },
        options.record,
        [
            Kept("serving_errors", f"{load_text}: errors", f"{errors} of {answers:,} answers", "none", not errors),
            Kept("serving_p99", f"{load_text}: p99 of labels", f"{p99:.2f} s", "≤ 3 s", p99 <= 3),
            Kept("serving_growth", f"{load_text}: memory after minute 2", f"{growth - 1:+.1%}", "≤ 5%", growth <= 1.05),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
