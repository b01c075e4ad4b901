"""What `/metrics` shows, read as Prometheus reads it."""

import pytest
from gptask.serving.batching.batcher import Batcher
from gptask.serving.batching.work import Work
from gptask.serving.prometheus import ServerMetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.support.fake_engine import FakeEngine, FakeModel, scoring, writing

Samples = dict[tuple[str, ...], float]


def samples_of(metrics: ServerMetrics) -> Samples:
    """The values, by name and labels."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        (sample.name, *(value for label, value in sorted(sample.labels.items()) if label != "le")): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def samples() -> Samples:
    """After two requests of one run and a text of another."""
    engine, batcher = FakeEngine(), Batcher(ServerMetrics(), kv_bytes=500)
    labels, texts = FakeModel(engine, 1), FakeModel(engine, 2)
    works: list[Work] = [scoring(labels, [5, 6]), scoring(labels, [7]), writing(texts, 8, limit=4, prompt=3, rows=2)]
    for work in works:
        batcher.submit(work)
    batcher.start()
    assert batcher.drain(60)
    batcher.metrics.answered("model 1", "/v1/predict/{name}", 200, 0.02)
    batcher.metrics.answered(None, "/v1/predict/{name}", 404, 0.001)
    return samples_of(batcher.metrics)


def test_requests_by_run_endpoint_and_status(samples: Samples) -> None:
    assert samples["gptask_requests_total", "/v1/predict/{name}", "model 1", "200"] == 1
    assert samples["gptask_requests_total", "/v1/predict/{name}", "", "404"] == 1
    assert samples["gptask_request_duration_seconds_count", "model 1"] == 1


def test_tokens_and_times_by_run(samples: Samples) -> None:
    assert samples["gptask_tokens_read_total", "model 1"] == 4 + 5 + 4
    assert samples["gptask_tokens_read_total", "model 2"] == 2 * 3
    assert samples["gptask_tokens_written_total", "model 2"] == 2 * 4
    assert samples["gptask_time_to_first_token_seconds_count", "model 2"] == 2
    assert samples["gptask_time_per_output_token_seconds_count", "model 2"] == 2
    assert ("gptask_tokens_written_total", "model 1") not in samples


def test_batches_and_memory(samples: Samples) -> None:
    assert (samples["gptask_scoring_batch_items_count",], samples["gptask_scoring_batch_items_sum",]) == (1, 3)
    assert (samples["gptask_decoding_batch_rows_count",], samples["gptask_decoding_batch_rows_sum",]) == (4, 8)
    assert samples["gptask_kv_cache_limit_bytes",] == 500
    assert samples["gptask_kv_cache_bytes",] == 2 * (3 + 4), "the texts are kept for prompts that begin like them"
    for name in ("requests_waiting", "requests_active", "decoding_rows", "failed_passes_total", "adapters_loaded"):
        assert samples[f"gptask_{name}",] == 0


def test_names_and_units_follow_prometheus_conventions() -> None:
    for family in text_string_to_metric_families(ServerMetrics().exposition().decode()):
        if family.name.startswith("gptask_") and not family.name.endswith("_created"):
            assert family.documentation
            assert not family.name.endswith(("_ms", "_mb", "_kb", "_milliseconds"))
            if family.type == "counter":
                assert all(sample.name.endswith("_total") for sample in family.samples)


def test_two_servers_of_one_process_count_apart() -> None:
    first, second = ServerMetrics(), ServerMetrics()
    first.answered("a", "/v1/models", 200, 0.1)
    assert ("gptask_requests_total", "/v1/models", "a", "200") not in samples_of(second)


def test_the_process_is_shown_too() -> None:
    assert samples_of(ServerMetrics())["process_resident_memory_bytes",] > 2**20
