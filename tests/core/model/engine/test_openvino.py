"""OpenVINO writes what the fast engine writes with the same rounded weights, and refuses what it can't write."""

import copy
import ctypes
import random
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gptask import Lora, OpenVino, UserError, load_run
from gptask.config.schemas import DType, Export, ExportFormat, Pretrained
from gptask.model.backbone.backbone import from_folder
from gptask.model.backbone.locate import locate
from gptask.model.engine import openvino as openvino_engine
from gptask.model.engine.interface import DecodingRow
from gptask.model.engine.openvino import OpenVinoEngine, check_conversion
from gptask.model.generation.generate import generate
from gptask.model.generation.stream import Stream
from gptask.plugins.generation_options import GenerationOptions
from gptask.runs.export import export
from gptask_tasks.translation import Translation

pytest.importorskip("openvino_genai", reason="openvino_genai is not installed: pip install 'gptask[openvino]'")
LONG = pytest.mark.long
FAMILIES = ["llama", *(pytest.param(family, marks=LONG) for family in ("qwen2", "qwen3"))]
PROMPTS = [[5, 6, 7], [9] * 40, [40, 41, 42, 43, 44], [200], [11, 12, 13, 11, 12, 13, 11], [*range(60, 85)]]
LIMIT = 12


@pytest.fixture(scope="module")
def backbones(random_run, tmp_path_factory):
    """``backbones("llama")``: a run's backbone, exact and as OpenVINO likes, and the same by torch, weights in q8_0."""
    made = {}

    def make(family):
        if family not in made:
            task = Translation(prompt="{source}\n")
            task.generation.max_new_tokens = LIMIT
            folder = random_run(task, family, Lora(rank=2)).folder
            file = tmp_path_factory.mktemp("gguf") / "model.gguf"
            export(Export(run=str(folder), output=str(file), format=ExportFormat.gguf))
            made[family] = SimpleNamespace(
                folder=folder,
                exact=load_run(folder, dtype=DType.float32, engine=OpenVino()).backbone,
                fast=from_folder(locate(Pretrained(source=str(file)))),
            )
        return made[family]

    return make


def both(backbones, options, prompts=PROMPTS):
    return generate(backbones.exact, prompts, options), generate(backbones.fast, prompts, options)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_texts_and_scores_are_those_of_the_fast_engine_on_rounded_weights(family, backbones):
    texts, expected = both(backbones(family), GenerationOptions(max_new_tokens=LIMIT))
    assert [text.text for text in texts] == [text.text for text in expected]
    assert len({text.text for text in texts}) == len(PROMPTS)
    assert [text.score for text in texts] == pytest.approx([text.score for text in expected], rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_as_openvino_likes_the_likeliest_tokens_have_about_the_same_probability(family, backbones):
    """It rounds states, keys and values to 8 bits, which changes texts of random models: compare the first tokens."""
    folder, options = backbones(family).folder, GenerationOptions(max_new_tokens=1)
    texts = generate(load_run(folder, engine=OpenVino()).backbone, PROMPTS, options)
    errors = [
        abs(a.score - b.score) for a, b in zip(texts, generate(backbones(family).fast, PROMPTS, options), strict=True)
    ]
    assert sorted(errors)[len(errors) // 2] < 0.03, errors


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"min_new_tokens": 6},
        {"min_new_tokens": LIMIT},
        {"temperature": 1e-3, "seed": 1},
        {"temperature": 1.5, "top_k": 1, "seed": 1},
        {"temperature": 3.0, "top_p": 1e-6, "seed": 1},
    ],
)
def test_options_with_one_right_text_are_honoured(options, backbones):
    both_backbones = backbones("llama")
    prompts = [[*PROMPTS[0], token] for token in range(30, 60)]  # some end at once
    options = GenerationOptions(max_new_tokens=LIMIT, **options)
    texts, expected = both(both_backbones, options, prompts)
    assert [text.text for text in texts] == [text.text for text in expected]
    assert [text.score for text in texts] == pytest.approx([text.score for text in expected], rel=1e-3)


def test_stop_texts_stop_tokens_and_limits_end_rows_as_elsewhere(backbones):
    """Rows of one batch with options and limits of their own have the same ids, log-probabilities and ends."""
    backbone = backbones("llama")
    whole, _ = both(backbone, GenerationOptions(max_new_tokens=LIMIT))
    middles = [text.text[len(text.text) // 2 :][:2] for text in whole]
    batches = []
    for one in (backbone.exact, backbone.fast):
        rows = [
            DecodingRow(prompt, limit, GenerationOptions(max_new_tokens=LIMIT, stop=[middle] * stops))
            for prompt, middle in zip(PROMPTS, middles, strict=True)
            for limit, stops in ((1, 0), (LIMIT, 1), (5, 0), (LIMIT + 7, 0))
        ]
        one.engine.decode(rows)
        batches.append(rows)
    for row, expected in zip(*batches, strict=True):
        assert (row.new_ids, row.finish) == (expected.new_ids, expected.finish)
        assert row.log_probabilities == pytest.approx(expected.log_probabilities, abs=1e-2)
    assert not backbone.exact.engine.decoding_batch().pipeline.has_non_finished_requests()
    finishes = [row.finish for row in batches[0]]
    assert finishes.count("stop") >= len(PROMPTS)
    assert "length" in finishes


def test_samples_follow_the_seed_and_not_their_neighbours(backbones):
    exact = backbones("llama").exact
    options = GenerationOptions(max_new_tokens=LIMIT, temperature=1.0, seed=7, samples=3)
    together, (alone,) = generate(exact, PROMPTS, options), generate(exact, PROMPTS[2:3], options)
    assert together[2].samples == alone.samples
    assert len(set(alone.samples)) == 3
    assert alone.score == pytest.approx(
        max(generate(exact, PROMPTS[2:3], replace(options, samples=1, seed=7 + draw))[0].score for draw in range(3)),
        rel=1e-3,
    )
    unseeded = GenerationOptions(max_new_tokens=LIMIT, temperature=1.0)
    torch.manual_seed(0)
    first, second = ([text.text for text in generate(exact, PROMPTS, unseeded)] for _ in range(2))
    torch.manual_seed(0)
    assert [text.text for text in generate(exact, PROMPTS, unseeded)] == first != second


@pytest.mark.parametrize("options", [{"top_k": 4}, {"top_p": 0.4}, {"top_k": 5, "top_p": 0.6}, {"temperature": 2.0}])
def test_samples_are_drawn_as_the_options_say(options, backbones):
    """Of 600 first tokens, each comes about as often as its probability says, and no other one comes."""
    from gptask.model.engine.next_tokens import sampling_weights

    backbone, count = backbones("llama"), 600
    options = GenerationOptions(max_new_tokens=1, min_new_tokens=1, **({"temperature": 1.0, "seed": 3} | options))
    rows = [DecodingRow(PROMPTS[0], 1, options, draw=draw) for draw in range(count)]
    backbone.exact.engine.decode(rows)
    with torch.inference_mode():
        logits_1V = backbone.fast.logits(backbone.fast.hidden(torch.tensor([PROMPTS[0]]))[:, -1]).float()
        logits_1V[:, sorted(backbone.fast.stop_ids)] = float("-inf")
    expected_V = count * sampling_weights(rows[:1], logits_1V)[0]
    drawn_V = torch.zeros_like(expected_V)
    for row in rows:
        drawn_V[row.new_ids] += 1
    assert not drawn_V[expected_V == 0].any()
    assert ((drawn_V - expected_V).abs() <= 5 * expected_V.sqrt() + 2).all()


# --- batches --------------------------------------------------------------------------------------------------------


def test_a_stream_gives_the_same_text_and_goes_on_after_a_broken_one(backbones):
    backbone = load_run(backbones("llama").folder, dtype=DType.float32, engine=OpenVino()).backbone
    options, stream = GenerationOptions(max_new_tokens=LIMIT, min_new_tokens=LIMIT), Stream(backbone)
    expected = "".join(Stream(backbones("llama").fast).text(PROMPTS[1], options))
    broken = stream.text(PROMPTS[5], options)
    next(broken)
    broken.close()
    for _ in range(2):  # the second time, its prompt is in OpenVINO's cache
        assert "".join(stream.text(PROMPTS[1], options)) == expected
    assert stream.reached_limit


def test_an_interrupted_batch_leaves_nothing_behind(backbones, monkeypatch):
    backbone, options = backbones("llama"), GenerationOptions(max_new_tokens=LIMIT)
    expected = generate(backbone.exact, PROMPTS[:2], options)
    batch_class, step = openvino_engine.OpenVinoBatch, openvino_engine.OpenVinoBatch.step

    def interrupted(batch):
        step(batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_class, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(backbone.exact, PROMPTS, options)
    batch = backbone.exact.engine.decoding_batch()
    assert not batch.pipeline.has_non_finished_requests()
    monkeypatch.undo()
    assert generate(backbone.exact, PROMPTS[:2], options) == expected
    assert batch.step() == batch.rows == batch.unread == []


@pytest.mark.parametrize("stop", [[], ["a"]])
def test_a_long_beginning_that_prompts_share_is_read_once(stop, backbones, monkeypatch):
    """The first row may end before the others come; OpenVINO's pipeline with what it keeps serves all later calls."""
    backbone = load_run(backbones("llama").folder, dtype=DType.float32, engine=OpenVino()).backbone
    numbers, sizes = random.Random(0), []
    shared = [numbers.randrange(3, 300) for _ in range(70)]
    prompts, options = [[*shared, *prompt] for prompt in PROMPTS], GenerationOptions(max_new_tokens=LIMIT, stop=stop)
    admit = openvino_engine.OpenVinoBatch.admit
    monkeypatch.setattr(
        openvino_engine.OpenVinoBatch, "admit", lambda batch, rows: sizes.append(len(rows)) or admit(batch, rows)
    )
    expected = generate(backbones("llama").fast, prompts, options)
    texts = generate(backbone, prompts, options)
    assert [text.text for text in texts] == [text.text for text in expected]
    assert [text.score for text in texts] == pytest.approx([text.score for text in expected], rel=1e-3)
    generate(backbone, PROMPTS, options)
    assert sizes == [1, len(PROMPTS) - 1, len(PROMPTS), 0]
    assert [*backbone.engine._pipelines] == [True]
    assert not backbone.engine.decoding_batch().pipeline.has_non_finished_requests()


def test_rows_enter_and_leave_between_steps(backbones):
    backbone, options = backbones("llama"), GenerationOptions(max_new_tokens=LIMIT, min_new_tokens=LIMIT)
    expected = [DecodingRow(prompt, LIMIT, options) for prompt in PROMPTS[:3]]
    backbone.fast.engine.decode(expected)
    rows, batch = (
        [DecodingRow(prompt, LIMIT, options) for prompt in PROMPTS[:3]],
        backbone.exact.engine.decoding_batch(),
    )
    batch.admit(rows[:2])
    batch.step()
    batch.enqueue(rows[2:])
    assert batch.read(100) == 0
    batch.leave(rows[1])
    batch.leave(rows[1])
    while batch.rows:
        batch.step()
    assert [rows[0].new_ids, rows[2].new_ids] == [expected[0].new_ids, expected[2].new_ids]
    assert len(rows[1].new_ids) == 1


def test_threads_share_the_pipeline(backbones):
    backbone, options, texts = backbones("llama"), GenerationOptions(max_new_tokens=LIMIT), {}
    expected = [generate(backbone.exact, [prompt], options) for prompt in PROMPTS]

    def write(number):
        texts[number] = generate(backbone.exact, [PROMPTS[number]], options)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (text,) in enumerate(expected):
        assert texts[number][0].text == text.text
        assert texts[number][0].score == pytest.approx(text.score, rel=1e-3)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_two_blocks(monkeypatch):
    """OpenVINO has room for the keys and values of 64 tokens, in two blocks."""
    import openvino_genai

    class TwoBlocks(openvino_genai.SchedulerConfig):
        def __setattr__(self, name, value):
            name, value = ("num_kv_blocks", 2) if name == "cache_size" else (name, value)
            super().__setattr__(name, value)

    monkeypatch.setattr(openvino_genai, "SchedulerConfig", TwoBlocks)


@pytest.mark.usefixtures("with_two_blocks")
def test_rows_that_do_not_fit_together_wait_for_each_other(backbones):
    backbone = load_run(backbones("llama").folder, dtype=DType.float32, engine=OpenVino()).backbone
    options = GenerationOptions(max_new_tokens=LIMIT, min_new_tokens=LIMIT)
    prompts = [[number] * length for number, length in enumerate((28, 30, 40, 50, 31), 7)]
    expected = generate(backbones("llama").fast, prompts, options)
    assert [text.text for text in generate(backbone, prompts, options)] == [text.text for text in expected]


@pytest.mark.usefixtures("with_two_blocks")
@pytest.mark.parametrize(("length", "limit"), [(100, 2), (50, 40)])
def test_a_text_that_does_not_fit_into_the_cache_is_an_error(length, limit, backbones):
    backbone = load_run(backbones("llama").folder, engine=OpenVino()).backbone
    options = GenerationOptions(max_new_tokens=limit, min_new_tokens=limit)
    message = f"values of a text of {length} to {length + limit} tokens don't fit into 1 GB: lower data.max_tokens or"
    with pytest.raises(UserError, match=message):
        generate(backbone, [[7] * 5, [7] * length], options)


def test_what_openvino_can_not_honour_is_refused(backbones, tmp_path):
    backbone = backbones("llama").exact
    with pytest.raises(UserError, match=r"num_beams=2: engine=openvino searches no beams"):
        generate(backbone, PROMPTS, GenerationOptions(num_beams=2))
    batch = backbone.engine.decoding_batch()
    for field in ({"adapter": "a"}, {"top_count": 1}, {"frequency_penalty": 0.1}, {"presence_penalty": 0.1}):
        with pytest.raises(UserError, match="engine=openvino has no adapters, constraints"):
            batch.admit([DecodingRow([1], 1, GenerationOptions(), **field)])
    assert batch.rows == []
    with pytest.raises(UserError, match="takes no adapters beside it"):
        backbone.engine.add_adapter(tmp_path)


def test_a_conversion_that_computes_something_else_is_refused(backbones, backbone_of):
    """Such as one that has left the adapter out: the folder has it, this backbone has not."""
    folder = backbones("llama").exact.engine.folder
    with pytest.raises(UserError, match=r"OpenVINO .* computes LlamaForCausalLM in another way: .* differ by \d"):
        check_conversion(backbone_of("llama", 128), folder)


@pytest.mark.parametrize("change", ["train", "layers"])
def test_a_model_that_has_changed_is_refused(change, backbones):
    backbone = load_run(backbones("llama").folder, engine=OpenVino()).backbone
    if change == "train":
        backbone.train()
    else:
        backbone.set_model(backbone.peft.merge_and_unload())
    with pytest.raises(TypeError, match="can't be copied or pickled"):
        copy.deepcopy(backbone)
    with pytest.raises(UserError, match="the model has changed since it was loaded"):
        generate(backbone, PROMPTS, GenerationOptions(max_new_tokens=1))


def test_what_openvino_raises_is_an_error_of_the_engine(backbones, tmp_path):
    (tmp_path / "openvino_model.xml").write_text("nonsense")
    engine = OpenVinoEngine(backbones("llama").fast, tmp_path, exact=False)
    with pytest.raises(UserError, match=r"engine=openvino: OpenVINO fails .*: choose engine=fast"):
        engine.decoding_batch()


@pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack is called as Linux has it")
def test_the_stack_of_signal_handlers_stays(backbones):
    """OpenVINO's own is too small for a process that multiplies by AMX: Ctrl-C would be a segmentation fault."""

    def stack():
        found = openvino_engine._SignalStack()
        ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
        return found.start, found.flags, found.size

    before = stack()
    backbone = load_run(backbones("llama").folder, engine=OpenVino()).backbone
    (text,) = generate(backbone, PROMPTS[:1], GenerationOptions(max_new_tokens=2))
    assert text.score
    assert stack() == before
