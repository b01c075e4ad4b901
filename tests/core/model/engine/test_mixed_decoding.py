"""Rows of many adapters are decoded in one pass, enter one at a time and in parts, and get what each gets alone."""

import weakref

import pytest
import torch
from gptask.config.engine import Fast, Reference
from gptask.config.schemas import Lora
from gptask.model.backbone.tuning import apply_tuning
from gptask.model.engine import inference_weights
from gptask.model.engine.bucket_plan import MAX_MEMORY
from gptask.model.engine.inference_weights import AdapterStack, RowAdapters
from gptask.model.engine.interface import DecodingRow
from gptask.model.engine.kv_cache import capacity
from gptask.plugins.generation_options import GenerationOptions

from tests.support.decoded_rows import shapes_read

GREEDY = GenerationOptions()
OPTIONS = [
    GREEDY,
    GenerationOptions(temperature=1.0, seed=3),
    GenerationOptions(repetition_penalty=1.6),
    GREEDY,
    GenerationOptions(temperature=1.5, top_k=9, seed=4),
    GenerationOptions(min_new_tokens=6),
    GREEDY,
]
PROMPTS = [[5, 6, 7], list(range(20, 31)), [40], [5, 6, 7, 30, 31], list(range(50, 67)), [9, 8], [5, 6, 7]]
PLACES = [0, 1, None, 2, 0, 2, 1]  # of the rows' adapters


def endless(backbone):
    """The backbone without stop tokens, so that no text ends early."""
    backbone.tokenizer.eos_token = None
    backbone.model.generation_config.eos_token_id = None
    return backbone.eval()


@pytest.fixture
def adapted(backbone_of, random_adapters):
    """``adapted("llama")``: a backbone with an adapter of its own, and the digests of three that are added."""

    def make(family, own=True, context=64):
        backbone = backbone_of(family, context)
        if own:
            torch.manual_seed(7)
            backbone.set_model(apply_tuning(backbone.peft, Lora(rank=2)))
            with torch.no_grad():
                for name, parameter in backbone.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(0, 0.3)
        endless(backbone)
        return backbone, [backbone.engine.add_adapter(folder) for folder in random_adapters(family)]

    return make


def rows_of(digests, limit=8):
    """A row for each prompt, with an adapter or none and options of its own."""
    adapters = [None if place is None else digests[place] for place in PLACES]
    return [
        DecodingRow(prompt, limit, options, adapter)
        for prompt, options, adapter in zip(PROMPTS, OPTIONS, adapters, strict=True)
    ]


def alone(backbone, rows):
    """The same rows, each decoded in a batch of its own."""
    copies = [DecodingRow(row.prompt, row.limit, row.options, row.adapter, row.draw) for row in rows]
    for row in copies:
        backbone.engine.decode([row])
    return copies


def assert_equal(rows, expected):
    assert [row.new_ids for row in rows] == [row.new_ids for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-3)


def finish(batch):
    while batch.rows:
        batch.step()


@pytest.mark.parametrize(
    ("family", "packing"),
    [
        *((family, True) for family in ("llama", "qwen2", "gemma3")),
        ("llama", False),
        pytest.param("qwen3", True, marks=pytest.mark.long),
        pytest.param("gpt2", True, marks=pytest.mark.long),  # its layers are not ours: the reference batch
    ],
)
def test_mixed_rows_that_enter_and_leave_at_any_step_get_what_each_gets_alone(family, packing, adapted, monkeypatch):
    backbone, digests = adapted(family)
    backbone.use_engine(Fast(packing=packing))
    rows = rows_of(digests)
    expected = alone(backbone, rows)
    assert len({tuple(row.new_ids) for row in expected}) >= len(rows) - 1, "the texts depend on prompts and adapters"
    batch = backbone.engine.decoding_batch()
    unseeded = DecodingRow([5, 6], 30, GenerationOptions(temperature=1.0), digests[0])
    batch.admit([unseeded, rows[0]])
    for row in rows[1:]:
        batch.step()
        batch.admit([row])
    batch.leave(rows[3])
    batch.step()
    batch.step()
    if backbone.engine.adapts_rows and packing and family != "gemma3":
        shapes, present = shapes_read(backbone, monkeypatch), len(batch.rows)
        batch.step()
        assert shapes == [(present, 1)], "one pass for all adapters"
    finish(batch)
    expected[3].new_ids, expected[3].log_probabilities = (
        values[: len(rows[3].new_ids)] for values in (expected[3].new_ids, expected[3].log_probabilities)
    )
    assert len(rows[3].new_ids) == 3
    assert len(unseeded.new_ids) == 30
    assert_equal(rows, expected)


@pytest.mark.parametrize("own", [True, False])
def test_the_models_own_adapter_counts_for_rows_without_another_as_it_is_now(own, adapted):
    backbone, digests = adapted("llama", own)
    rows = rows_of(digests)
    backbone.engine.decode(rows)
    if own:
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if "lora_B.default" in name:
                    parameter.neg_()
    again = rows_of(digests)
    backbone.engine.decode(again)
    assert (again[2].new_ids == rows[2].new_ids) is not own
    assert_equal(again, alone(backbone, again))
    if own:
        with backbone.peft.disable_adapter():
            bare = rows_of(digests)
            backbone.engine.decode(bare)
            assert_equal(bare, alone(backbone, bare))


def test_stacked_factors_are_made_once_for_the_adapters_of_the_rows(adapted, monkeypatch):
    backbone, digests = adapted("llama", own=False)
    made = []
    factors_of = inference_weights.scaled_factors
    monkeypatch.setattr(inference_weights, "scaled_factors", lambda *args: made.append(args[1]) or factors_of(*args))
    batch = backbone.engine.decoding_batch()
    weights = backbone.engine.weights

    def enter(adapter):
        batch.admit([DecodingRow([5, 6, 7], 40, GREEDY, adapter)])
        batch.step()
        made.clear()
        batch.step()
        return set(made)

    assert enter(digests[0]) == {digests[0]}
    assert enter(digests[1]) == {digests[0], digests[1]}
    assert enter(digests[0]) == set()
    batch.leave(batch.rows[1])
    batch.step()
    assert enter(digests[1]) == set()
    assert enter(None) == {digests[0], digests[1]}
    weights.drop_adapter(digests[2])
    assert weights.stack([digests[0]]).adapters
    weights.drop_adapter(digests[0])
    assert weights.stack([digests[1]]).adapters == [digests[1]]
    monkeypatch.setattr(inference_weights, "STACKED_ADAPTERS", 2)
    assert weights.stack([digests[2]]).adapters == [digests[1], digests[2]]
    assert weights.stack([None]).adapters == [digests[2], None]
    assert set(weights.stack(digests).adapters) == set(digests)


@pytest.mark.parametrize("rows", [5, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_of_stacked_factors_is_that_of_each_rows_own(dtype, rows, adapted):
    backbone, digests = adapted("llama", own=False)
    stack = AdapterStack([*digests, None])
    adapters = [(stack.adapters)[row % 4] for row in range(rows)]
    of_rows, checked = RowAdapters(adapters, stack), 0
    for layer in (module for module in backbone.modules() if hasattr(module, "lora_A")):
        x = torch.randn(rows, 1, layer.in_features, dtype=dtype)
        got = of_rows.product(layer, x)
        for row, adapter in enumerate(adapters[:5]):
            expected = torch.zeros(layer.out_features)
            if adapter in layer.lora_A:
                a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                expected = layer.scaling[adapter] * (x[row, 0].float() @ a.T @ b.T)
            tolerance = 1e-5 if dtype is torch.float32 else 0.03 * float(expected.abs().max() + 1e-3)
            torch.testing.assert_close(got[row, 0].float(), expected, atol=tolerance, rtol=0)
            checked += 1
    assert checked == 5 * 14


def test_rows_that_enter_one_by_one_share_few_buckets_and_little_memory(adapted):
    backbone, digests = adapted("llama", own=False)
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randint(5, 300, (2,), generator=generator).tolist() for _ in range(32)]
    rows = [DecodingRow([*range(5, 6 + a % 30), b], 3 + b % 28, GREEDY, [*digests, None][a % 4]) for a, b in numbers]
    batch, waiting, most = backbone.engine.decoding_batch(), list(rows), 0
    while waiting or batch.rows:
        if waiting:
            batch.enqueue([waiting.pop(0)])
            batch.read(256)
        batch.step()
        most = max(most, len(batch.buckets))
        in_buffers = sum(buffer.nbytes for bucket in batch.buckets for kv in bucket.buffers for buffer in kv.buffers)
        rounded = sum(capacity(len(row.prompt) + row.limit) for row in batch.rows)
        assert in_buffers <= MAX_MEMORY * rounded * backbone.engine.position_bytes()
    assert most <= 3
    assert_equal(rows[::5], alone(backbone, rows[::5]))


@pytest.mark.parametrize(("family", "max_tokens"), [("llama", 1), ("llama", 7), ("llama", 100), ("gemma3", 7)])
def test_prompts_read_in_parts_are_continued_as_those_read_at_once(family, max_tokens, adapted, monkeypatch):
    backbone, digests = adapted(family)
    rows = rows_of(digests)
    expected = alone(backbone, rows)
    batch = backbone.engine.decoding_batch()
    shapes = shapes_read(backbone, monkeypatch)
    batch.enqueue(rows)
    assert batch.unread == rows
    total = 0
    while batch.unread:
        shapes.clear()
        total += batch.read(max_tokens)
        assert sum(b * t for b, t in shapes) <= max_tokens or max_tokens == 100  # padded where it can't be packed
        if max_tokens != 1:
            batch.step()
    assert batch.read(max_tokens) == 0
    assert total == sum(map(len, PROMPTS))
    finish(batch)
    assert_equal(rows, expected)


def test_a_prompt_of_several_rows_is_read_once_and_by_each_adapter(adapted, monkeypatch):
    backbone, digests = adapted("llama", own=False)
    prompt, options = list(range(20, 50)), GenerationOptions(temperature=2.0, seed=1)
    rows = [DecodingRow(prompt, 6, options, adapter, draw) for adapter in digests[:2] for draw in range(4)]
    expected = alone(backbone, rows)
    shapes = shapes_read(backbone, monkeypatch)
    batch = backbone.engine.decoding_batch()
    batch.enqueue(rows[:6])
    batch.read(20)
    batch.enqueue(rows[6:])
    batch.leave(rows[0])  # its prompt is half read, others wait for it
    while batch.unread:
        batch.read(20)
    assert sum(t for _, t in shapes) == 2 * len(prompt)
    finish(batch)
    assert rows[0].new_ids == []
    assert_equal(rows[1:], expected[1:])


def test_a_row_may_leave_while_its_prompt_is_half_read(adapted):
    backbone, digests = adapted("llama", own=False)
    long, short = DecodingRow(list(range(20, 50)), 5, GREEDY, digests[0]), DecodingRow([5, 6], 5, GREEDY, digests[1])
    batch = backbone.engine.decoding_batch()
    batch.enqueue([long, short])
    assert batch.read(10) == 10
    assert batch.rows == []
    batch.leave(long)
    batch.leave(long)
    assert batch.unread == [short]
    assert batch.read(10) == 2
    assert batch.rows == [short]
    batch.enqueue([long])
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        batch.read(0)


@pytest.mark.parametrize("length", [3, 30])
def test_a_read_that_fails_takes_its_rows_along_and_no_others(length, adapted, monkeypatch):
    backbone, digests = adapted("llama", own=False)
    rows = rows_of(digests)
    expected = alone(backbone, rows[:1])
    batch = backbone.engine.decoding_batch()
    batch.admit(rows[:1])
    batch.step()
    failing = DecodingRow(list(range(20, 20 + length)), 5, GREEDY, digests[1])
    batch.enqueue([failing, rows[1]])
    forward = backbone.body.forward

    def out_of_memory(*args, **kwargs):
        raise MemoryError

    with monkeypatch.context() as changed:
        changed.setattr(backbone.body, "forward", out_of_memory)
        with pytest.raises(MemoryError):
            batch.read(length - 1 if length > 3 else 3)
    assert backbone.body.forward == forward
    assert failing not in [*batch.rows, *batch.unread]
    assert batch.unread == [rows[1]]
    finish(batch)
    assert_equal(rows[:1], expected)


def test_rows_of_a_removed_adapter_fail_and_the_others_go_on(adapted):
    backbone, digests = adapted("llama", own=False)
    rows = rows_of(digests)
    expected = alone(backbone, rows)
    batch = backbone.engine.decoding_batch()
    batch.admit(rows)
    batch.step()
    backbone.engine.remove_adapter(digests[1])
    for _ in range(2):
        with pytest.raises(KeyError, match=f"no adapter {digests[1]}"):
            batch.step()
    for row in rows:
        if row.adapter == digests[1]:
            batch.leave(row)
    finish(batch)
    others = [number for number, row in enumerate(rows) if row.adapter != digests[1]]
    assert_equal([rows[number] for number in others], [expected[number] for number in others])


@pytest.mark.parametrize("engine", [Fast(linear=False), Fast()], ids=["no linear", "fast"])
def test_the_first_adapter_may_come_while_rows_are_written(engine, backbone_of, random_adapters):
    family = "llama" if engine == Fast(linear=False) else "gpt2"  # layers that can't compute each row's adapter
    backbone = endless(backbone_of(family))
    backbone.use_engine(engine)
    batch = backbone.engine.decoding_batch()
    rows = [DecodingRow(PROMPTS[0], 8, GREEDY)]
    batch.admit(rows)
    batch.step()
    for number, folder in enumerate(random_adapters(family)[:2], 1):
        rows.append(DecodingRow(PROMPTS[number], 8, GREEDY, backbone.engine.add_adapter(folder)))
        batch.enqueue(rows[-1:])
        batch.read(256)
        batch.step()
    assert not backbone.engine.adapts_rows
    finish(batch)
    assert_equal(rows, alone(backbone, rows))


@pytest.mark.parametrize("leaves", [False, True])
def test_nothing_holds_keys_and_values_when_all_rows_have_left(leaves, adapted):
    backbone, digests = adapted("llama", own=False)
    batch, buffers = backbone.engine.decoding_batch(), []
    for number, adapter in enumerate([*digests, None]):
        batch.admit([DecodingRow([5] * (3 + 8 * number), 5, GREEDY, adapter)])
        batch.step()
        buffers += [weakref.ref(buffer) for bucket in batch.buckets for buffer in bucket.buffers]
    for row in batch.rows if leaves else ():
        batch.leave(row)
    finish(batch)
    assert buffers
    assert not [buffer for buffer in buffers if buffer() is not None and buffer().buffers]


def test_a_text_of_a_removed_adapter_takes_no_kept_ones_place(adapted):
    backbone, digests = adapted("llama", own=False)
    batch = backbone.engine.decoding_batch(keep=2)
    batch.admit([DecodingRow([number], 1, GREEDY, digests[0]) for number in (5, 6)])
    batch.step()
    kept = list(batch.kept)
    batch.admit([row := DecodingRow([7], 9, GREEDY, digests[1])])
    backbone.engine.remove_adapter(digests[1])
    batch.leave(row)
    assert batch.kept == kept
    assert len(kept) == 2


def test_what_is_kept_is_used_in_parts_counted_and_dropped_with_its_adapter(adapted, monkeypatch):
    backbone, digests = adapted("llama", own=False)
    batch = backbone.engine.decoding_batch(keep=4)
    assert batch.kept_bytes == 0
    shared = list(range(20, 56))

    def write(adapter, *more):
        row = DecodingRow([*shared, *more], 3, GREEDY, adapter)
        batch.enqueue([row, other := DecodingRow([9, 9, more[0]], 3, GREEDY, adapter)])
        while batch.unread:
            batch.read(64)
        finish(batch)
        assert_equal([row, other], alone(backbone, [row, other]))

    def tokens_read():
        return sum(t for _, t in shapes if t > 1)

    write(digests[0], 7)
    assert batch.kept_bytes >= len(shared) * backbone.engine.position_bytes()
    shapes = shapes_read(backbone, monkeypatch)
    batch.enqueue([row := DecodingRow([*shared, 8, 9], 3, GREEDY, digests[0]), DecodingRow([9, 8], 3, GREEDY)])
    batch.read(64)
    finish(batch)
    assert tokens_read() == 2 + 2, "what is shared is not read again"
    assert_equal([row], alone(backbone, [row]))
    write(digests[1], 8)
    assert len(batch.kept) == 4
    backbone.engine.remove_adapter(digests[1])
    write(digests[0], 9)
    assert {text.adapter for text in batch.kept} == {digests[0], None}


def test_a_text_that_another_kept_one_begins_with_is_not_kept_twice(adapted):
    backbone, digests = adapted("llama", own=False)
    batch = backbone.engine.decoding_batch(keep=4)
    first = DecodingRow([5, 6, 7], 3, GREEDY, digests[0])
    batch.admit([first])
    finish(batch)
    batch.admit([DecodingRow([*first.ids, 9], 3, GREEDY, digests[0])])
    finish(batch)
    assert len(batch.kept) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_the_bytes_of_a_row_are_those_that_its_states_take(family, backbone_of):
    backbone = endless(backbone_of(family))
    row = DecodingRow(list(range(5, 26)), 12, GREEDY)
    batch = backbone.engine.decoding_batch()
    batch.admit([row])
    for _ in range(11):
        batch.step()
    read = len(row.ids) - 1
    states = batch.buckets[0].states_of(0)
    assert sum(part.nbytes for pair in states for part in pair) == backbone.engine.position_bytes() * read
    assert backbone.engine.row_bytes(row) == backbone.engine.position_bytes() * 33
    assert backbone.engine.position_bytes(1) * 2 == backbone.engine.position_bytes()


def test_an_adapter_that_is_the_only_one_is_merged_and_no_longer_when_others_come(backbone_of, random_adapters):
    backbone, reference = endless(backbone_of("llama")), endless(backbone_of("llama"))
    reference.use_engine(Reference())
    first, second, _ = random_adapters("llama")
    engine, prompt = backbone.engine, [5, 6, 7, 30]

    def texts(*adapters):
        rows = [DecodingRow(prompt, 8, GREEDY, adapter) for adapter in adapters]
        engine.decode(rows)
        expected = [DecodingRow(prompt, 8, GREEDY, adapter) for adapter in adapters]
        reference.engine.decode(expected)
        assert_equal(rows, expected)
        ids_BT = torch.tensor([prompt])
        with torch.inference_mode():
            for adapter in adapters:
                states = [b.hidden(ids_BT, adapters=[adapter]) for b in (backbone, reference)]
                assert torch.allclose(*states, atol=1e-4)
        return [row.new_ids for row in rows]

    def merged():
        return {made.adapter for made in engine.weights._made.values()} - {"default"}

    one = engine.add_adapter(first)
    assert reference.engine.add_adapter(first) == one
    (alone_ids,) = texts(one)
    assert merged() == {one}
    assert texts(one, None, one)[0] == alone_ids
    two = engine.add_adapter(second)
    reference.engine.add_adapter(second)
    assert not merged()
    assert texts(one, two, None)[0] == alone_ids
    assert not merged()
    engine.remove_adapter(one)
    texts(two, two)
    assert merged() == {two}
    engine.remove_adapter(two)
    assert not merged()
    texts(None)
