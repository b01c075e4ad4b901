"""Anonymous memory of a server of one run and of one of all the runs, after the same number of requests.

python tests/benchmarks/serving_memory.py RUN RUN RUN RUN --requests 200
"""

from __future__ import annotations

import asyncio
import itertools

from serving import (
    Figures,
    Kept,
    ServedFolder,
    arguments,
    clients,
    finish,
    pin,
    predict_requests,
    serve_command,
    served_folders,
    started,
)


def main() -> None:
    """Measure."""
    options = arguments(__doc__, requests=200, clients=8)
    runs = served_folders(options.runs)
    pin(1)

    def measure(served: list[ServedFolder]) -> tuple[float, Figures]:
        with started(lambda port: serve_command(served, port, options.option), log=options.log) as server:
            figures = Figures()
            requests = itertools.islice(predict_requests(server.url, served), options.requests)
            asyncio.run(clients(options.clients, requests, figures, lambda: False))
            return server.memory_mb(), figures

    result, megabytes = {}, []
    for served in (runs[:1], runs):
        memory, figures = measure(served)
        megabytes.append(memory)
        result[f"runs_{len(served)}"] = {"memory_mb": round(memory, 1), **figures.summary()}
    ratio = megabytes[1] / megabytes[0]
    value = f"{ratio:.2f} × ({megabytes[1]:,.0f} against {megabytes[0]:,.0f} MB)"
    kept = Kept(
        "serving_memory", f"memory of {len(runs)} runs in one process", value, "≤ 1.3 × that of one", ratio <= 1.3
    )
    finish({**result, "ratio": round(ratio, 3)}, options.record, [kept])


if __name__ == "__main__":
    main()
