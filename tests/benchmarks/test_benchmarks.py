"""Every benchmark runs at tiny sizes, its bars agree with its figures, and a peer that cannot run is named in words."""

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor, nn

from audio_ct.sampling import engine
from benchmarks import bars, measure, memory, peers, prep, recall, run, sample, train

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CEILINGS = {"bfloat16_flops_per_second": 1e9, "float32_flops_per_second": 1e9, "copy_bytes_per_second": 1e9}
TINY = {
    **{"num_layers": 1, "d_model": 8, "num_heads": 2, "segment_length": 8, "memory_length": 8},
    **{"compressed_memory_length": 4, "compression_rate": 2},
}
TINY_OPTIONS = [part for name, value in TINY.items() for part in (f"--{name.replace('_', '-')}", str(value))]
BOTH = ["bfloat16", "float32"]
MACHINE = {"processor", "cores", "device", "python", "torch", "threads", "version", "commit", "created"}

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs a benchmark's command and returns the JSON that it wrote."""
    monkeypatch.setattr(measure, "ceilings", lambda device: CEILINGS)
    # Of the models' tiny size even emulated bfloat16 takes no time.
    monkeypatch.setattr(measure, "precisions", lambda device: BOTH)
    monkeypatch.chdir(ROOT)

    def run_command(main: Callable[[list[str]], None], *options: object) -> dict[str, Any]:
        out = tmp_path / "out.json"
        main([*map(str, options), "--device", "cpu", "--out", str(out)])
        result = json.loads(out.read_text())
        assert result["machine"].keys() >= MACHINE
        check_bars(result["bars"])
        return result

    return run_command


def check_bars(found: list[dict[str, Any]]) -> None:
    for bar in found:
        assert bar["name"] == bars.BARS[bar["key"]].name
        holds = {">=": float.__ge__, "<=": float.__le__}[bar["comparison"]]
        assert bar["met"] == (bar["value"] is not None and holds(float(bar["value"]), float(bar["bar"])))
        assert bar["value"] is not None or bar["note"]


@pytest.fixture
def tiny_recipes(tmp_path: Path) -> Path:
    """A folder with a plain Compressive Transformer and a WaveNet with linear prediction."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    transformer = train.plain_recipe(TINY, batch_size=2)
    (folder / "compressive_transformer.yaml").write_text(transformer.to_yaml())
    wavenet = train.load_recipe(ROOT / "recipes/demo/wavenet.yaml")
    sizes = {"model__layers_per_stack": 3, "model__residual_channels": 8, "model__skip_channels": 8}
    training = {"training__batch_size": 2, "training__window_length": 16}
    (folder / "wavenet.yaml").write_text(train.changed(wavenet, **sizes, **training).to_yaml())
    return folder


class FakeWrapper(nn.Module):
    """The interface of the public Compressive Transformer, with a memory for so many lanes at a time."""

    fitting_lanes = 1 << 20

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seq_len: int = network.seq_len  # type: ignore[assignment]
        self.generated: list[tuple[int, int]] = []

    def forward(self, x: Tensor, max_batch_size: int, return_loss: bool) -> Iterator[tuple[Tensor, Tensor, bool]]:
        assert return_loss
        for segment in x.split(self.seq_len, dim=1):
            for part in segment.split(max_batch_size):
                if len(part) > self.fitting_lanes:
                    raise torch.OutOfMemoryError("too much")
                yield self.network(part).mean(), torch.zeros(1), False

    def generate(self, start_tokens: Tensor, seq_len: int) -> None:
        self.generated.append((start_tokens.shape[1], seq_len))


class FakeNetwork(nn.Module):
    def __init__(self, *, num_tokens: int, dim: int, seq_len: int, **others: object) -> None:
        super().__init__()
        self.seq_len = seq_len
        self.embedding = nn.Embedding(num_tokens, dim)
        assert others.keys() == {"depth", "heads", "mem_len", "cmem_len", "cmem_ratio", "gru_gated_residual"}

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)


class FakeWaveNet(nn.Module):
    def __init__(self, *, out_channels: int, residual_channels: int, gate_channels: int, **_: object) -> None:
        super().__init__()
        assert gate_channels == 2 * residual_channels
        self.layer = nn.Conv1d(out_channels, out_channels, 1)

    def forward(self, one_hot: Tensor) -> Tensor:
        return self.layer(one_hot)

    def make_generation_fast_(self) -> None:
        pass

    def incremental_forward(self, T: int) -> Tensor:  # noqa: N803 - the package's name
        return torch.zeros(1, 256, T)


MODULES: dict[str, dict[str, Any]] = {
    "compressive_transformer_pytorch": {"CompressiveTransformer": FakeNetwork, "AutoregressiveWrapper": FakeWrapper},
    "wavenet_vocoder": {"WaveNet": FakeWaveNet},
}


@pytest.fixture
def _fake_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, members in MODULES.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def _no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)


def test_things_are_timed_in_turns_after_warming_up() -> None:
    order: list[str] = []
    timings = measure.time_in_turns(
        {name: lambda name=name: lambda: order.append(name) for name in "AB"}, repeats=3, warm_up=1, calls=2
    )
    assert "".join(order) == "AB" + 3 * "AABB"
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]


@pytest.mark.parametrize("fails_at", ["building", "running"])
def test_what_may_fail_is_told_in_words_and_what_may_not_raises(fails_at: str) -> None:
    def fail() -> None:
        raise RuntimeError("expected\n scalar type Float")

    builds: dict[str, Any] = {"peer": fail if fails_at == "building" else lambda: fail, "ours": lambda: lambda: None}
    timings = measure.time_in_turns(builds, repeats=2, may_fail=["peer"])
    assert timings["peer"].failure == "RuntimeError: expected scalar type Float"
    assert timings["peer"].median_seconds is None
    assert timings["ours"].failure is None
    with pytest.raises(RuntimeError):
        measure.time_in_turns(builds, repeats=2)


def test_ceilings_are_measured() -> None:
    found = measure.ceilings(CPU, matmul_sizes=[32, 64], copied_bytes=1 << 16)
    assert found.keys() == {f"{name}_flops_per_second" for name in measure.precisions(CPU)} | {"copy_bytes_per_second"}
    assert all(value > 1e6 for value in found.values())


@pytest.mark.parametrize(("value", "met"), [(2.9, False), (3.0, True), (None, False)])
def test_a_bar_is_met_from_its_threshold_on(value: float | None, met: bool) -> None:
    entry = bars.judge("cpu_training_over_peer", value, "why")
    assert (entry["met"], entry["bar"], entry["comparison"], entry["note"]) == (met, 3.0, ">=", "why")
    check_bars([entry])


def test_a_ratio_is_of_the_best_of_each_side() -> None:
    def rows(**speeds: float | None) -> list[dict[str, Any]]:
        about = {"parameters": 6_600_000, "note": "no such module"}
        return [{"name": name, "speed": speed} | about for name, speed in speeds.items()]

    entry = bars.ratio("cpu_training_over_peer", rows(a=5.0, b=8.0), rows(c=2.0, d=1.0), "speed")
    assert entry["value"] == 4.0
    assert entry["note"] == "b of 6.60M parameters is 4 times c, 8 times d"
    entry = bars.ratio("cpu_training_over_peer", rows(a=5.0), rows(c=None), "speed")
    assert (entry["value"], entry["met"], entry["note"]) == (None, False, "no such module")


@pytest.mark.usefixtures("_no_peers")
def test_a_missing_peer_is_named_in_words(command: Run, tiny_recipes: Path) -> None:
    training = command(
        *(train.main, "--parts", "recipes", "trial", "--recipes", tiny_recipes),
        *(*TINY_OPTIONS, "--no-compile", "--repeats", 1),
    )
    sampling = command(
        *(sample.main, "--parts", "recipes", "trial", "--recipes", tiny_recipes, "--waveforms", 1),
        *(*TINY_OPTIONS, "--options", "uncompiled", "--num-samples", 8, "--repeats", 1),
    )
    for result, column in ((training, "tokens_per_second"), (sampling, "samples_per_second")):
        rows = [*result["recipes"]["rows"], *result["trial"]["rows"]]
        notes = {row["name"]: row["note"] for row in rows if row[column] is None}
        assert {name.split()[0] for name in notes} == {peers.COMPRESSIVE_TRANSFORMER, peers.WAVENET}
        assert all("cannot be imported" in note and "make bench-peers" in note for note in notes.values())
        (bar,) = result["bars"]
        assert bar["value"] is None
        assert "cannot be imported" in bar["note"]


@pytest.mark.usefixtures("_fake_peers")
def test_training_is_measured_beside_the_peer(command: Run) -> None:
    result = command(train.main, *TINY_OPTIONS, "--parts", "trial", "--no-compile", "--repeats", 2)
    rows = {row["name"]: row for row in result["trial"]["rows"]}
    ours = rows["trial"]
    assert ours["flops_per_token"] > 0
    assert ours["flops_per_token_counted"] > 0
    assert ours["share_of_ceiling"] == ours["flops_per_token"] * ours["tokens_per_second"] / 1e9
    as_it_ships, under_autocast = (
        rows[f"{peers.COMPRESSIVE_TRANSFORMER} {precision}"]["tokens_per_second"]
        for precision in ("float32", "bfloat16")
    )
    (bar,) = result["bars"]
    assert bar["value"] == ours["tokens_per_second"] / as_it_ships
    assert f"{ours['tokens_per_second'] / under_autocast:.3g} times" in bar["note"]
    assert result["trial"]["reconstruction_loss_share"] < 1


def test_linear_prediction_is_measured_beside_the_step_that_it_is_in(command: Run, tiny_recipes: Path) -> None:
    result = command(train.main, "--parts", "prediction", "--recipes", tiny_recipes, "--repeats", 2)
    whole, part = (row["tokens_per_second"] for row in result["prediction"]["rows"])
    (bar,) = result["bars"]
    assert bar["key"] == "cpu_linear_prediction_share"
    assert bar["value"] == whole / part
    assert 0 < bar["value"] < 1


@pytest.mark.usefixtures("_fake_peers")
def test_a_peer_trains_in_parts_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = train.plain_recipe(TINY, batch_size=5)
    monkeypatch.setattr(FakeWrapper, "fitting_lanes", 2)
    training = peers.CompressiveTransformerTraining(recipe, CPU, "float32", 256)
    assert training.part_size == 2
    rows = train.time_training(
        {"peer": lambda: training, **train.peers_of(recipe, CPU)}, CPU, CEILINGS, repeats=1, calls=1
    )
    assert "2 lanes at a time" in rows["peer"]["note"]
    monkeypatch.setattr(FakeWrapper, "fitting_lanes", 0)
    with pytest.raises(peers.PeerError, match="one lane"):
        peers.CompressiveTransformerTraining(recipe, CPU, "float32", 256)


@pytest.mark.usefixtures("_fake_peers")
def test_the_papers_size_is_measured_by_the_same_functions(tiny_recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Compiling takes a minute, and is not the subject here.
    monkeypatch.setattr(torch, "compile", lambda model: model)
    recipes = train.recipes_of(tiny_recipes)
    plain = [train.without_linear_prediction(recipe) for recipe in recipes]
    trained = train.train_paper(plain, CPU, CEILINGS, repeats=1, calls=2)
    with_loss = train.train_reconstruction(plain[0], CPU, CEILINGS, repeats=1, calls=1)
    assert with_loss["reconstruction_loss_share"] < 1
    sampled = sample.sample_paper(
        recipes, CPU, CEILINGS, waveforms=[1, 2], options=["uncompiled"], num_samples=8, repeats=1
    )
    found = [*trained["bars"], *sampled["bars"]]
    check_bars(found)
    # Linear prediction's share is judged by the device that it is measured on.
    assert {bar["key"] for bar in found} == set(bars.GPU_BARS) - {"gpu_linear_prediction_share"}
    assert all(bar["value"] > 0 for bar in found)


def test_a_gpus_bars_are_not_judged_by_a_cpu(tmp_path: Path) -> None:
    parts = {"part": {"bars": [bars.judge("gpu_one_stream", 1.0), bars.judge("cpu_sampling_flat", 1.0)]}}
    for device, key in (("cpu", "cpu_sampling_flat"), ("some GPU", "gpu_one_stream")):
        measure.finish({"machine": {"device": device}}, parts, tmp_path / "out.json")
        assert [bar["key"] for bar in json.loads((tmp_path / "out.json").read_text())["bars"]] == [key]


def test_the_count_of_torch_is_close_to_the_textbooks() -> None:
    sizes = TINY | {"num_layers": 3, "d_model": 32, "memory_length": 16, "compressed_memory_length": 8}
    training = train.Training(train.plain_recipe(sizes, batch_size=2), CPU)
    assert 0.5 < training.counted_flops_per_token() / training.flops_per_token < 2


def test_without_the_reconstruction_loss_compression_learns_nothing() -> None:
    recipe = train.plain_recipe(TINY)
    for each, learns in ((recipe, True), (train.untaught(recipe), False)):
        training = train.Training(each, CPU)
        weight = training.model.stages["transformer"].layers[0].compressor.function.project.weight
        before = weight.detach().clone()
        for _ in range(3):
            training()
        assert torch.equal(before, weight) != learns


def test_curves_follow_each_size(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CURVES", {name: (keys, (8, 16)) for name, (keys, _) in train.CURVES.items()})
    result = command(train.main, *TINY_OPTIONS, "--parts", "--curves", "--repeats", 1)
    curves = result["curves"]
    assert curves.keys() == {"batch", "segment", "memory", "layers"}
    assert [row["batch_size"] for row in curves["batch"]] == [8, 16]
    assert [row["window_length"] for row in curves["segment"]] == [8, 16]
    assert curves["layers"][1]["parameters"] > curves["layers"][0]["parameters"]


@pytest.mark.usefixtures("_fake_peers")
def test_sampling_is_measured_beside_the_peer(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # tests/sampling compiles the step.
    monkeypatch.setattr(engine, "prepare", lambda step, arguments: functools.partial(step, *arguments))
    result = command(
        *(sample.main, "--parts", "trial", *TINY_OPTIONS, "--num-samples", 20, "--peer-samples", 6, "--repeats", 1),
        *("--options", "uncompiled", "compiled"),
    )
    *ours, peer = result["trial"]["rows"]
    assert [row["option"] for row in ours] == ["uncompiled", "compiled"]
    assert all(row["bytes_per_step"] > 4 * 8 * 256 for row in ours)
    (bar,) = result["bars"]
    assert bar["value"] == max(row["samples_per_second"] for row in ours) / peer["samples_per_second"]
    assert "extrapolated from 2 x 6" in peer["note"]


def test_the_cost_of_a_sample_is_measured_after_a_prompt(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BLOCK_SAMPLES", 16)
    result = command(
        sample.main, "--parts", "flat", *TINY_OPTIONS, "--options", "uncompiled", "--seconds", 0.01, 0, "--repeats", 2
    )
    first, last = result["flat"]["rows"]
    assert (first["name"], last["name"]) == ("after 0 s", "after 0.01 s")
    assert first["samples_per_block"] == 16
    (bar,) = result["bars"]
    assert bar["value"] == last["microseconds_per_sample"] / first["microseconds_per_sample"]


def test_recordings_to_prepare_are_the_same_every_time(tmp_path: Path) -> None:
    made = []
    for name in "ab":
        prep.make_recordings(tmp_path / name, minutes=0.05, seconds_each=1)
        made.append({path.name: path.read_bytes() for path in sorted((tmp_path / name).rglob("*.flac"))})
    assert made[0] == made[1]
    assert len(set(made[0].values())) == 3
    waveform, rate_hz = soundfile.read(next((tmp_path / "a").rglob("*.flac")))
    assert (len(waveform), rate_hz) == (48_000, 48_000)
    assert 0.4 < abs(waveform).max() < 0.6


def test_preparation_is_measured_per_core(command: Run) -> None:
    form = "48 kHz FLAC, 12 s"
    result = command(prep.main, "--minutes", 0.1, "--jobs", 1, "--repeats", 1, "--forms", form)
    prepared, *alone = result["preparation"]["rows"]
    assert prepared["audio_seconds"] == 36
    assert prepared["times_real_time"] == pytest.approx(36 / prepared["wall_seconds"])
    assert prepared["times_real_time_per_core"] > 1
    assert [row["name"] for row in alone] == ["decoding alone", "decoding and resampling alone"]
    (bar,) = result["bars"]
    assert bar["value"] == prepared["times_real_time_per_core"]


def test_memory_is_watched_over_the_windows_of_the_real_command(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [f"{name}=32" for name in ("model.segment_length", "model.memory_length", "training.window_length")]
    cheap = ["training.num_threads=1", "model.linear_prediction=null", "evaluation.max_validation_tokens=1", *lengths]
    monkeypatch.setattr(memory, "POLL_SECONDS", 0.005)
    result = command(memory.main, "--windows", 50, "--set", *memory.TINY, *cheap)
    (row,) = result["growth"]["rows"]
    assert row["windows"] == 50
    assert row["peak_bytes"] >= row["late_bytes"] > 1 << 20
    (bar,) = result["bars"]
    assert bar["value"] == row["growth_bytes"]


def test_memory_says_why_training_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="status 3: gone"):
        memory.watch([sys.executable, "-c", "import sys; print('gone'); sys.exit(3)"], tmp_path)


@pytest.fixture
def sections() -> list[run.Section]:
    def fail() -> dict[str, Any]:
        raise ValueError("no such thing")

    def measured(value: float) -> Callable[[], dict[str, Any]]:
        return lambda: {"rows": [], "bars": [bars.judge("cpu_training_over_peer", value)]}

    return [
        run.Section("train_trial", measured(4.0), ("cpu_training_over_peer",)),
        run.Section("prep", fail, ("preparation",)),
    ]


def test_a_run_keeps_what_was_measured_and_says_what_was_not(sections: list[run.Section], tmp_path: Path) -> None:
    out = tmp_path / "results/latest.json"
    assert run.run(sections, {"machine": {}}, out, seconds=60) == 1
    result = json.loads(out.read_text())
    check_bars(result["bars"])
    by_key = {bar["key"]: bar for bar in result["bars"]}
    assert by_key["cpu_training_over_peer"]["met"]
    assert by_key["preparation"]["note"] == "failed: ValueError: no such thing"
    assert {"name", "value", "bar", "met"} <= by_key["preparation"].keys()

    assert run.run(sections, {}, out, seconds=-1) == 0
    assert all("were up" in bar["note"] for bar in json.loads(out.read_text())["bars"])


def test_the_run_decides_every_bar_with_arguments_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cpu, gpu = run.cpu_sections(CEILINGS), run.gpu_sections(CEILINGS)
    assert {key for section in cpu for key in section.bars} == set(bars.CPU_BARS)
    assert {key for section in gpu for key in section.bars} == set(bars.GPU_BARS)
    for section in [*cpu, *gpu]:
        call: Any = section.measure
        inspect.signature(call.func).bind(*call.args, **call.keywords)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--gpu"])
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_gpus_memory_is_measured(tiny_recipes: Path) -> None:
    found = memory.gpu_peaks(train.recipes_of(tiny_recipes), torch.device("cuda"), steps=3)
    assert all(row["peak_bytes"] > 0 for row in found["rows"])


def test_episodes_of_recall_fill_a_stream_and_each_is_asked_about_its_symbol() -> None:
    task = recall.Task(num_symbols=3, num_distractors=4)
    stream = recall.make_stream(task, [1, 4], 5, 100, seed=0)
    begins = 0
    for shown, resets, targets in zip(stream.shown, stream.resets, stream.targets, strict=True):
        starts = resets.nonzero()[:, 0].tolist()
        queries = (targets != recall.NO_TARGET).nonzero()[:, 0].tolist()
        assert starts[0] == 0
        assert {query - start - 1 for start, query in zip(starts, queries, strict=False)} == {1, 4}
        assert starts[1 : len(queries) + 1] == [query + 1 for query in queries if query < 99]
        assert torch.equal(shown[starts][: len(queries)], targets[queries])
        assert torch.all(shown[queries] == task.d_in - 1)
        between = [t for t in range(100) if t not in {*starts, *queries}]
        assert {int(each) for each in shown[between]} == {3, 4, 5, 6}
        begins += len(starts)
    assert sum(int(part.resets.sum()) for part in stream.unrolls(7)) == begins


def test_recall_is_measured_by_delay_and_seed(command: Run) -> None:
    result = command(
        *(recall.main, "--delays", 2, 9, "--max-delay", 9, "--seeds", 2, "--num-episodes", 8),
        *("--updates", 2, "--unroll", 12, "--lanes", 2, "--num-symbols", 4, "--d-ff", 8, *TINY_OPTIONS[2:]),
    )
    rows = {row["name"]: row for row in result["recall"]["rows"]}
    assert rows.keys() == set(recall.MODELS)
    spans = {"compressed": 6 + 8 + 8, "plain": 6 + 8, "plain, longer": 6 + 12, "lstm": None, "lstm, longer": None}
    assert {name: row["span"] for name, row in rows.items()} == spans
    assert rows["lstm, longer"]["steps"] == 4 * rows["plain"]["steps"] == 4 * 2 * 2 * 12
    assert rows["plain"]["parameters"] < rows["lstm"]["parameters"] <= rows["compressed"]["parameters"]
    for row in rows.values():
        assert row["success_rates"].keys() == {"2", "9"}
        for rates in row["success_rates"].values():
            assert len(rates) == 2
            assert all(0 <= rate <= 1 for rate in rates)
