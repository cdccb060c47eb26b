"""The use of memories, measured: against slow readings, and through the real command."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audio_ct.evaluation.likelihood import Reading, Selection, choose_recordings
from audio_ct.evaluation.memory_use import bits_of_samples, buckets, look_at_memories, memory_layers, shuffled, zeroed
from audio_ct.evaluation.sound_classes import CLASSES, seconds_since_onset, sound_classes
from audio_ct.models.attention import attention_weights
from audio_ct.models.build import build_model
from audio_ct.models.settings import CompressiveTransformerSettings
from audio_ct.models.token_model import TokenModel
from audio_ct.pretrained import load, with_memory_lengths
from audio_ct.tokens.store import TokenStore

pytestmark = pytest.mark.xdist_group("pitch")

Command = Callable[..., int]
Trained = Callable[..., Path]
RATE_HZ = 24_000
SEGMENT = 16


@pytest.fixture(scope="module")
def inspected(
    trained: Trained, command: Command, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """The report's folder and its JSON for a trained model."""

    def inspect(name: str, *options: object) -> tuple[Path, dict[str, Any]]:
        out = tmp_path_factory.mktemp("reports") / name
        assert command("inspect", trained(name), "--out", out, *options) == 0
        return out, json.loads((out / "inspection.json").read_text())

    return inspect


@pytest.fixture(scope="module")
def report(inspected: Callable[..., tuple[Path, dict[str, Any]]], trained: Trained) -> tuple[Path, dict[str, Any]]:
    return inspected("ct", "--against", trained("net"))


@pytest.fixture
def model() -> TokenModel:
    """Compressed memory is full after 1 + 2 segments."""
    torch.manual_seed(0)
    settings = CompressiveTransformerSettings(
        num_layers=2,
        d_model=8,
        num_heads=2,
        d_ff=8,
        segment_length=SEGMENT,
        memory_length=16,
        compressed_memory_length=8,
    )
    return build_model(settings, 256).eval()


@pytest.fixture
def first(store_path: Path) -> Selection:
    """A test recording, as long as eight segments."""
    chosen = choose_recordings(TokenStore.open(store_path), "test", 1)
    return replace(chosen, recordings=(replace(chosen.recordings[0], length=SEGMENT * 8),))


def segments(first: Selection) -> torch.Tensor:
    """The recording's segments as a model reads them [number, 1, segment]."""
    tokens = first.tokens(0).astype(np.int64)
    return torch.tensor([first.store.start_token, *tokens[:-1]]).view(-1, 1, SEGMENT)


def test_the_report_has_what_is_promised(report: tuple[Path, dict[str, Any]]) -> None:
    out, found = report
    for layer in found["attention"]:
        assert sum(layer["share"].values()) == pytest.approx(1, abs=1e-6)
        assert [key["kind"] for key in layer["keys"]] == ["compressed_memory", "memory", "segment"]
        assert len(layer["buckets"]) == 18
    assert list(found["compression_losses"]) == ["0", "1"]
    names = [row["name"] for row in found["memory"]]
    assert names[0] == "as trained"
    assert all(row["interval"][0] <= row["interval"][1] for row in found["memory"])
    for name in ("memory cut to 0", "memory grown to 1024", "compressed_memory cut to 16", "all memories cut to 0"):
        assert name in names
    for name in ("memory zeroed", "memory shuffled", "compressed_memory zeroed", "compressed_memory shuffled"):
        assert name in names
    assert set(found["gains"]) == {"no memory at all", "no compressed memory", "net"}
    for groups in found["gains"].values():
        (everything,) = groups["all"]
        for by in ("onset", "class", "speaker"):
            assert sum(row["samples"] for row in groups[by]) == everything["samples"] == found["tokens"]
            total = sum(row["gain"] * row["samples"] for row in groups[by])
            assert total / found["tokens"] == pytest.approx(everything["gain"], abs=1e-6)
    for name in ("attention.png", "compression.png", "memory.png", "gain.png", "inspection.md"):
        assert (out / name).stat().st_size > 500


def test_figures_agree_with_the_evaluation_and_with_another_models(
    report: tuple[Path, dict[str, Any]], trained: Trained
) -> None:
    _, found = report
    as_trained = found["memory"][0]["bits_per_sample"]
    bits = {}
    for name in ("ct", "net"):
        loaded = load(trained(name))
        selection = choose_recordings(loaded.open_store(), "test", None)
        per_sample = bits_of_samples(loaded.model, selection, Reading(1, 512))
        bits[name] = np.concatenate([recording[1024:] for recording in per_sample])
    assert len(bits["ct"]) == found["tokens"]
    assert bits["ct"].mean() == pytest.approx(as_trained, abs=1e-5)
    gain = found["gains"]["net"]["all"][0]["gain"]
    assert gain == pytest.approx(bits["net"].mean() - bits["ct"].mean(), abs=1e-5)


def test_a_memory_cut_to_its_own_length_changes_nothing(trained: Trained) -> None:
    loaded = load(trained("ct"))
    same = with_memory_lengths(loaded, memory_length=256, compressed_memory_length=64).model
    assert [layer.shape.num_past for layer in memory_layers(same)] == [320, 320]
    tokens = torch.randint(256, (1, 1024), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = loaded.model(tokens, loaded.model.initial_state(1)).logits
        assert torch.equal(same(tokens, same.initial_state(1)).logits, expected)
        gone = with_memory_lengths(loaded, memory_length=0, compressed_memory_length=0).model
        moved = (gone(tokens, gone.initial_state(1)).logits - expected).abs().amax(dim=-1)[0]
    # In the first segment, too: empty slots are not hidden from attention.
    assert (moved > 0).all()


@torch.no_grad()
def test_attention_is_that_of_a_slow_reading(model: TokenModel, first: Selection) -> None:
    looks, num_segments = look_at_memories(model, first, max_segments=3)
    assert num_segments == 3
    state, received = model.initial_state(1), []
    for segment in segments(first)[:6]:
        h, of_layers = model.embedding(segment), state["transformer"]
        for number, layer in enumerate(memory_layers(model)):
            _, q, k, _ = layer.queries_keys_values(h, of_layers[str(number)])
            weights = attention_weights(q, k, layer.positions.causality)[0].mean(dim=0)
            h, *_ = layer(h, of_layers[str(number)])
        received.append(weights.numpy())
        state = model(segment, state).state
    # Each key's mean over the queries that see it.
    expected = np.mean(received[3:], axis=0)
    expected = expected.sum(axis=0) / (expected > 0).sum(axis=0)
    np.testing.assert_allclose(looks["attention"][1]["weights"], expected, rtol=2e-5)


@torch.no_grad()
def test_compression_loss_is_that_of_training(model: TokenModel, first: Selection) -> None:
    looks, _ = look_at_memories(model, first, max_segments=3)
    assert not any(layer._forward_hooks for layer in memory_layers(model)), "hooks are left behind"
    model.train()
    state, losses = model.initial_state(1), []
    for segment in segments(first)[:6]:
        output = model(segment, state)
        state = output.state
        losses.append(float(output.auxiliary_losses["attention_reconstruction"]))
    assert np.mean(list(looks["compression_losses"].values())) == pytest.approx(np.mean(losses[3:]))


def test_buckets_are_means_of_what_lies_together() -> None:
    received = np.arange(15.0)
    assert buckets(received, [("memory", 12), ("segment", 3)]) == [
        *(("memory", 2 * i + 0.5) for i in range(6)),
        *(("segment", float(12 + i)) for i in range(3)),
    ]


def test_memories_are_emptied_and_shuffled_by_kind() -> None:
    layer = {"memory": torch.arange(6.0).view(1, 6, 1), "compressed_memory": torch.ones(1, 3, 1)}
    state = {"transformer": {"0": layer, "1": layer}, "convolutions": {"0": torch.ones(1, 2, 4)}}
    empty = zeroed("compressed_memory")(state)
    assert torch.equal(empty["transformer"]["0"]["memory"], layer["memory"])
    assert not empty["transformer"]["1"]["compressed_memory"].any()
    assert empty["convolutions"]["0"].all()
    alter = shuffled("memory")
    orders = [alter(state)["transformer"]["0"]["memory"].flatten().tolist() for _ in range(2)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert orders[0] != orders[1]
    assert layer["compressed_memory"].all()


@torch.no_grad()
def test_what_is_altered_is_what_attention_sees_and_not_what_is_carried_on(model: TokenModel, first: Selection) -> None:
    (got,) = bits_of_samples(model, first, Reading(1, SEGMENT), alter=zeroed("memory"))
    tokens = first.tokens(0).astype(np.int64).reshape(8, SEGMENT)
    state = model.initial_state(1)
    for number, segment in enumerate(segments(first)):
        altered = {
            name: layer | {"memory": torch.zeros_like(layer["memory"])} for name, layer in state["transformer"].items()
        }
        logits, state = model(segment, {"transformer": altered}).logits[0], model(segment, state).state
        assert number < 3 or state["transformer"]["0"]["compressed_memory"].any()
        expected = -logits.log_softmax(-1)[torch.arange(SEGMENT), tokens[number]] / np.log(2)
        np.testing.assert_allclose(got[number * SEGMENT : (number + 1) * SEGMENT], expected, rtol=1e-4)


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


@pytest.mark.parametrize(
    ("command_name", "name", "option", "value", "message"),
    [
        ("inspect", "net", "--split", "test", "model.kind='wavenet' has no memory to inspect; name another."),
        ("inspect", "none", "--split", "test", "model.kind='compressive_transformer' has no memory to inspect"),
        ("inspect", "xl", "--split", "dev", "split='dev' is not in"),
        ("inspect", "xl", "--cold-start-samples", 999999999, "leaves nothing to score"),
        ("evaluate", "net", "--memory-length", 16, "model.kind='wavenet' has no memory_length; leave it as it is."),
        ("evaluate", "xl", "--compressed-memory-length", 16, "='transformer_xl' has no compressed_memory_length"),
        (
            "evaluate",
            "none",
            "--compressed-memory-length",
            16,
            "compressed_memory_length=0 was none in training; leave",
        ),
        ("evaluate", "used", "--memory-length", 16, "memory_length=16 must be at least model.segment_length=256"),
    ],
)
def test_what_cannot_be_looked_into_is_one_line(
    command_name: str,
    name: str,
    option: str,
    value: object,
    message: str,
    trained: Trained,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_folder = trained(name)
    capsys.readouterr()
    out = ["--out", tmp_path / "nowhere"] if command_name == "inspect" else []
    assert command(command_name, run_folder, option, value, *out) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_any_memory_can_be_inspected(inspected: Callable[..., tuple[Path, dict[str, Any]]]) -> None:
    names = {}
    for name in ("used", "compressed"):
        names[name] = [row["name"] for row in inspected(name)[1]["memory"]]
        assert len(set(names[name])) == len(names[name])
    # Compression by use is counted in memory, which must hold a segment.
    assert [name for name in names["used"] if name.startswith("memory cut")] == []
    assert "all memories cut to 0" in names["used"]
    assert [name for name in names["compressed"] if name.startswith("memory ")] == []
    assert {"compressed_memory cut to 4", "compressed_memory zeroed"} <= set(names["compressed"])


def test_transformer_xl_is_inspected_too(inspected: Callable[..., tuple[Path, dict[str, Any]]]) -> None:
    out, found = inspected("xl")
    assert found["compression_losses"] == {}
    assert set(found["gains"]) == {"no memory at all"}
    assert not (out / "compression.png").exists()


def test_other_lengths_of_memory_by_the_evaluate_command(
    report: tuple[Path, dict[str, Any]], trained: Trained, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    bits = {row["name"]: row["bits_per_sample"] for row in report[1]["memory"]}
    capsys.readouterr()
    assert command("evaluate", trained("ct"), "--compressed-memory-length", 16, "--json") == 0
    assert json.loads(capsys.readouterr().out)["bits_per_sample"] == pytest.approx(bits["compressed_memory cut to 16"])
