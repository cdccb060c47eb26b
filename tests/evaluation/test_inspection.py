"""What a model does with its memories, measured: against slow readings, and through the real command."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audio_ct import cli
from audio_ct.evaluation.likelihood import choose_recordings
from audio_ct.evaluation.memory_use import bits_of_samples, buckets, kinds_of_keys, look_at_attention, shuffled, zeroed
from audio_ct.evaluation.sound_classes import CLASSES, seconds_since_onset, sound_classes
from audio_ct.models.compressive_transformer import CompressiveTransformer
from audio_ct.models.interface import MemoryModel
from audio_ct.pretrained import load, with_memory_lengths
from audio_ct.tokens.store import TokenStore

RATE_HZ = 24_000
RECIPE = """
name: {name}
corpus: {{store: {store}}}
model: {model}
optimizer: {{learning_rate: 1e-3}}
training: {{batch_size: 2, window_length: 256, max_tokens: 1024, precision: float32, log_every_windows: 1}}
evaluation: {{max_validation_tokens: 1000}}
tracking: {{enabled: false}}
"""
TRANSFORMER = "num_layers: 2, d_model: 16, num_heads: 2, d_ff: 16, segment_length: 256, memory_length: 256"
MODELS = {
    "ct": f"{{kind: compressive_transformer, {TRANSFORMER}, compressed_memory_length: [64, 0]}}",
    "xl": f"{{kind: transformer_xl, {TRANSFORMER}}}",
    "used": f"{{kind: compressive_transformer, {TRANSFORMER}, compressed_memory_length: 64, "
    "compression: {function: most_used, loss: none}}",
    "compressed": "{kind: compressive_transformer, num_layers: 1, d_model: 16, num_heads: 2, d_ff: 16, "
    "segment_length: 256, memory_length: 0, compressed_memory_length: 16, twice_compressed_memory_length: 4, "
    "coarse: {frame_length: 64, num_layers: 1, memory_length: 8}}",
    "none": "{kind: compressive_transformer, num_layers: 1, d_model: 16, num_heads: 2, d_ff: 16, segment_length: 256, "
    "memory_length: 0, compressed_memory_length: 0}",
    "net": "{kind: wavenet, num_stacks: 1, layers_per_stack: 4, residual_channels: 8, skip_channels: 8}",
    "initial": f"{{kind: compressive_transformer, {TRANSFORMER}, compressed_memory_length: 64, "
    "learned_initial_memory: true}",
}


def run(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["audio-ct", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as exit_:
            return int(exit_.code or 0)
    return 0


@pytest.fixture(scope="module")
def runs(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspection")
    for name, model in MODELS.items():
        (folder / f"{name}.yaml").write_text(RECIPE.format(name=name, store=json.dumps(str(store_path)), model=model))
        assert run("train", folder / f"{name}.yaml", "--run-dir", folder / name) == 0
    return folder


@pytest.fixture(scope="module")
def report(runs: Path) -> dict[str, Any]:
    options = ["--max-tokens", 20_000, "--against", runs / "net"]
    assert run("inspect", runs / "ct", "--out", runs / "report", *options) == 0
    return json.loads((runs / "report/inspection.json").read_text())


def test_the_report_has_what_is_promised(report: dict[str, Any], runs: Path) -> None:
    for layer in report["attention"]:
        assert sum(layer["share"].values()) == pytest.approx(1, abs=1e-6)
    assert [key["kind"] for key in report["attention"][0]["keys"]] == ["compressed_memory", "memory", "segment"]
    assert [key["kind"] for key in report["attention"][1]["keys"]] == ["memory", "segment"]
    assert len(report["attention"][0]["buckets"]) == 18
    assert list(report["compression_losses"]) == ["0"]
    names = [row["name"] for row in report["memory"]]
    assert names[0] == "as trained"
    for name in ("memory cut to 0", "memory grown to 1024", "compressed_memory cut to 16", "all memories cut to 0"):
        assert name in names
    for name in ("memory zeroed", "memory shuffled", "compressed_memory zeroed", "compressed_memory shuffled"):
        assert name in names
    assert set(report["gains"]) == {"no memory at all", "no compressed memory", "net"}
    for groups in report["gains"].values():
        (everything,) = groups["all"]
        for by in ("onset", "class", "speaker"):
            assert sum(row["samples"] for row in groups[by]) == everything["samples"] == report["tokens"]
            total = sum(row["gain"] * row["samples"] for row in groups[by])
            assert total / report["tokens"] == pytest.approx(everything["gain"], abs=1e-6)
    for name in ("attention.png", "compression.png", "memory.png", "gain.png", "inspection.md"):
        assert (runs / "report" / name).stat().st_size > 500


def test_figures_agree_with_the_evaluation_and_with_another_models(report: dict[str, Any], runs: Path) -> None:
    as_trained = {row["name"]: row["bits_per_sample"] for row in report["memory"]}["as trained"]
    model, other = load(runs / "ct"), load(runs / "net")
    store = TokenStore.open(model.recipe.corpus.store)
    bits = {}
    for each in (model, other):
        per_sample = bits_of_samples(
            each.model,
            store,
            "test",
            choose_recordings(store, "test", 20_000),
            start_token=each.start_token,
            device=torch.device("cpu"),
            precision=torch.float32,
            batch_size=1,
            window_length=512,
        )
        bits[each.recipe.name] = np.concatenate([recording[1024:] for recording in per_sample])
    assert len(bits["ct"]) == report["tokens"]
    assert bits["ct"].mean() == pytest.approx(as_trained, abs=1e-5)
    gain = report["gains"]["net"]["all"][0]["gain"]
    assert gain == pytest.approx(bits["net"].mean() - bits["ct"].mean(), abs=1e-5)


def test_a_memory_cut_to_its_own_length_changes_nothing(runs: Path) -> None:
    model = load(runs / "ct")
    same = with_memory_lengths(model, memory_length=256, compressed_memory_length=64)
    assert isinstance(same.model, MemoryModel)
    assert [shape.num_past for shape in same.model.memory_shapes] == [320, 256]
    tokens = torch.randint(256, (1, 1024), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.model(tokens, model.model.initial_state(1)).logits
        assert torch.equal(same.model(tokens, same.model.initial_state(1)).logits, expected)
        gone = with_memory_lengths(model, memory_length=0, compressed_memory_length=0).model
        moved = (gone(tokens, gone.initial_state(1)).logits - expected).abs().amax(dim=-1)[0]
    # In the first segment, too: empty slots are not hidden from attention.
    assert (moved > 0).all()


def test_attention_is_that_of_a_slow_reading(store_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "d_model": 8, "num_heads": 2, "d_ff": 8, "segment_length": 16, "memory_length": 16}
    model = CompressiveTransformer(vocabulary_size=256, **sizes, compressed_memory_length=8, compression_rate=4).eval()
    store = TokenStore.open(store_path)
    recordings = store.recordings("test")[:1]
    found = look_at_attention(
        model, store, "test", recordings, start_token=128, device=torch.device("cpu"), max_segments=3
    )
    assert found.num_segments == 3
    tokens = store.tokens("test", recordings[0], 0, 16 * 6).astype(np.int64)
    inputs = torch.tensor([[128, *tokens[:-1]]])
    state = model.initial_state(1)
    received, losses = [], []
    for number, segment in enumerate(inputs.split(16, dim=1)):
        with torch.no_grad():
            use = model.look(segment, state)
        state = use.state
        # The compressed memory is full after 1 + 2 segments.
        if number >= 3:
            received.append(use.received[1][0].numpy())
            losses.append(use.compression_losses[1])
    expected = np.mean(received, axis=0)
    expected[-16:] *= 16 / np.arange(16, 0, -1)
    np.testing.assert_allclose(found.received[1], expected, rtol=1e-5)
    assert found.compression_losses[1] == pytest.approx(np.mean(losses))


def test_buckets_are_means_of_what_lies_together() -> None:
    received = np.arange(15.0)
    assert buckets(received, [("memory", 12), ("segment", 3)]) == [
        *(("memory", 2 * i + 0.5) for i in range(6)),
        *(("segment", float(12 + i)) for i in range(3)),
    ]
    model = CompressiveTransformer(
        vocabulary_size=4, num_layers=1, d_model=4, num_heads=1, d_ff=4, segment_length=4, memory_length=0
    )
    assert kinds_of_keys(model, 0) == [("segment", 4)]


def test_memories_are_emptied_and_shuffled_by_name() -> None:
    model = CompressiveTransformer(
        vocabulary_size=4, num_layers=1, d_model=4, num_heads=1, d_ff=4, segment_length=4, memory_length=6
    )
    state = {"memory.0": torch.arange(6.0).view(1, 6, 1), "compressed_memory.0": torch.ones(1, 3, 1)}
    state["memory.coarse_0"] = torch.ones(1, 2, 1)
    assert zeroed(model, "memory")(state)["memory.coarse_0"].all(), "coarse layers' memory is not of samples"
    empty = zeroed(model, "compressed_memory")(state)
    assert torch.equal(empty["memory.0"], state["memory.0"])
    assert not empty["compressed_memory.0"].any()
    alter = shuffled(model, "memory")
    orders = [alter(state)["memory.0"].flatten().tolist() for _ in range(2)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert orders[0] != orders[1]
    assert state["compressed_memory.0"].all()


def test_what_is_altered_is_what_attention_sees_and_not_what_is_carried_on(store_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "d_model": 8, "num_heads": 2, "d_ff": 8, "segment_length": 16, "memory_length": 16}
    model = CompressiveTransformer(vocabulary_size=256, **sizes, compressed_memory_length=8, compression_rate=4).eval()
    store = TokenStore.open(store_path)
    recordings = store.recordings("test")[:1]
    reading = {"start_token": 128, "device": torch.device("cpu"), "precision": torch.float32, "batch_size": 1}
    got = bits_of_samples(model, store, "test", recordings, **reading, window_length=16, alter=zeroed(model, "memory"))[
        0
    ]
    tokens = store.tokens("test", recordings[0], 0, 16 * 8).astype(np.int64)
    state = model.initial_state(1)
    for number, segment in enumerate(torch.tensor([[128, *tokens[:-1]]]).split(16, dim=1)):
        with torch.no_grad():
            altered = state | {f"memory.{layer}": torch.zeros_like(state[f"memory.{layer}"]) for layer in range(2)}
            logits, state = model(segment, altered).logits[0], model(segment, state).state
        assert number < 3 or state["compressed_memory.0"].any()
        expected = -logits.log_softmax(-1)[torch.arange(16), tokens[number * 16 : number * 16 + 16]] / np.log(2)
        np.testing.assert_allclose(got[number * 16 : number * 16 + 16], expected, rtol=1e-4)


def test_silence_noise_and_pitch_are_told_apart() -> None:
    time = np.arange(RATE_HZ) / RATE_HZ
    voiced = 0.3 * sum(np.sin(2 * np.pi * 150 * harmonic * time) / harmonic for harmonic in range(1, 6))
    unvoiced = 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ)
    waveform = np.concatenate([np.zeros(RATE_HZ), voiced, unvoiced])
    classes = sound_classes(waveform, RATE_HZ)
    margin = RATE_HZ // 10
    for second, name in enumerate(("silence", "voiced", "unvoiced")):
        part = classes[second * RATE_HZ + margin : (second + 1) * RATE_HZ - margin]
        assert np.mean(part == CLASSES.index(name)) > 0.95, name
    since = seconds_since_onset(classes, RATE_HZ)
    assert since[RATE_HZ] == pytest.approx(0, abs=0.03)
    assert seconds_since_onset(np.zeros(10, dtype=np.int8), RATE_HZ).max() < 0
    assert sound_classes(np.zeros(5), RATE_HZ).tolist() == [0] * 5
    assert sound_classes(np.full(5, 0.1), RATE_HZ).shape == (5,)


def test_a_learned_initial_memory_keeps_its_length(runs: Path) -> None:
    assert run("inspect", runs / "initial", "--out", runs / "report-initial", "--max-tokens", 20_000) == 0
    found = json.loads((runs / "report-initial/inspection.json").read_text())
    assert not any("cut" in row["name"] or "grown" in row["name"] for row in found["memory"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["net"], "model.kind='wavenet' has no memory to inspect; name another."),
        (["none"], "model.kind='compressive_transformer' has no memory to inspect"),
        (["ct", "--split", "dev"], "split='dev' is not in"),
        (["ct", "--cold-start-samples", "999999999"], "leaves nothing to score"),
        (["missing"], "missing"),
    ],
)
def test_what_cannot_be_inspected_is_one_line(
    runs: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", runs / arguments[0], "--out", runs / "nowhere", *arguments[1:]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_any_memory_can_be_inspected(runs: Path) -> None:
    found = {}
    for name in ("used", "compressed"):
        assert run("inspect", runs / name, "--out", runs / f"report-{name}", "--max-tokens", 20_000) == 0
        rows = json.loads((runs / f"report-{name}/inspection.json").read_text())["memory"]
        found[name] = [row["name"] for row in rows]
        assert len(set(found[name])) == len(found[name])
    # Compression by use is counted in memory, which must hold a segment.
    assert [name for name in found["used"] if name.startswith("memory cut")] == []
    assert "all memories cut to 0" in found["used"]
    assert [name for name in found["compressed"] if name.startswith("memory ")] == []
    assert {"compressed_memory cut to 4", "twice_compressed_memory zeroed"} <= set(found["compressed"])


def test_transformer_xl_is_inspected_too(runs: Path) -> None:
    assert run("inspect", runs / "xl", "--out", runs / "report-xl", "--max-tokens", 20_000) == 0
    found = json.loads((runs / "report-xl/inspection.json").read_text())
    assert found["compression_losses"] == {}
    assert set(found["gains"]) == {"no memory at all"}
    assert not (runs / "report-xl/compression.png").exists()


def test_other_lengths_of_memory_by_the_evaluate_command(
    runs: Path, report: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    bits = {row["name"]: row["bits_per_sample"] for row in report["memory"]}
    options = ["--max-tokens", 20_000, "--compressed-memory-length", 16, "--json"]
    assert run("evaluate", runs / "ct", *options) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_sample"] == pytest.approx(bits["compressed_memory cut to 16"])
    assert run("evaluate", runs / "net", "--memory-length", 16) == 2
    assert "model.kind='wavenet' has no memory_length; leave it as it is." in capsys.readouterr().err
    assert run("evaluate", runs / "xl", "--compressed-memory-length", 16) == 2
    assert "model.kind='transformer_xl' has no compressed_memory_length" in capsys.readouterr().err
    assert run("evaluate", runs / "none", "--compressed-memory-length", 16) == 2
    assert "model.compressed_memory_length=0 was none in training; leave it as it is." in capsys.readouterr().err
    assert run("evaluate", runs / "used", "--memory-length", 16) == 2
    assert "model.memory_length=16 must be at least model.segment_length=256" in capsys.readouterr().err
    assert run("evaluate", runs / "initial", "--memory-length", 16) == 2
    assert "model.learned_initial_memory=True was learned for its length" in capsys.readouterr().err
