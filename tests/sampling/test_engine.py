"""Sampling is the model's own distribution, step by step, and a waveform depends on its seed alone."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from audio_ct.errors import InputError
from audio_ct.models.build import build_model
from audio_ct.models.heads import draw_from
from audio_ct.models.settings import CompressiveTransformerSettings, LinearPredictionSettings, WaveNetSettings
from audio_ct.models.token_model import TokenModel
from audio_ct.sampling import compiled, engine
from audio_ct.sampling.engine import EngineOptions, Sampler
from audio_ct.sampling.filters import Filters

VOCABULARY, SILENCE = 16, 8

PREDICTING = LinearPredictionSettings(order=3, windows=[9], frame_length=4)
TRANSFORMER: dict[str, Any] = {
    **{"num_layers": 2, "d_model": 8, "num_heads": 2, "d_ff": 8, "segment_length": 4, "memory_length": 4},
    **{"compressed_memory_length": 3, "compression_rate": 2, "front_dilations": [1, 2]},
}
MODELS = {
    "transformer": CompressiveTransformerSettings(**TRANSFORMER),
    "predicting_mixture": CompressiveTransformerSettings(
        **TRANSFORMER | {"num_layers": 1}, linear_prediction=PREDICTING, output="mixture_of_logistics"
    ),
    "predicting_wavenet": WaveNetSettings(
        num_stacks=1, layers_per_stack=3, residual_channels=8, skip_channels=8, linear_prediction=PREDICTING
    ),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> TokenModel:
    torch.manual_seed(0)
    return build_model(MODELS[request.param], VOCABULARY)


def wavenet(channels: int) -> TokenModel:
    torch.manual_seed(0)
    sizes = {"num_stacks": 1, "layers_per_stack": 1, "residual_channels": 16, "skip_channels": channels}
    return build_model(WaveNetSettings(**sizes), VOCABULARY)


def made(model: TokenModel, **settings: Any) -> Tensor:
    ways = {name: settings.pop(name) for name in ("filters", "options") if name in settings}
    sampler = Sampler(model, num_waveforms=settings.pop("num_waveforms", 2), **ways)
    return torch.cat(list(sampler.generate(**{"num_samples": 21, "start_token": SILENCE, "seed": 0} | settings)), dim=1)


@pytest.mark.fault("sampling")
@pytest.mark.parametrize("prompt", [None, [1, 2, 3], [5] * 11])
def test_each_token_is_drawn_from_the_forward_passs_prediction(model: TokenModel, prompt: list[int] | None) -> None:
    given = None if prompt is None else torch.tensor(prompt)
    got = made(model, prompt=given)
    for lane in range(2):
        uniforms = torch.rand(21, generator=torch.Generator().manual_seed(lane))
        past = torch.tensor([[SILENCE, *(prompt or []), *got[lane].tolist()]])
        # Padded to whole segments: causality makes what follows irrelevant.
        padded = torch.nn.functional.pad(past, (0, -past.shape[1] % 4))
        with torch.no_grad():
            predictions = model.head.distribution(model(padded, model.initial_state(1)).logits[0]).softmax(-1)
        begin = len(prompt or [])
        assert got[lane].tolist() == draw_from(predictions[begin : begin + 21], uniforms).tolist()


def test_every_waveform_may_have_a_prompt_of_its_own(model: TokenModel) -> None:
    prompts = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
    together = made(model, prompt=prompts)
    for i in range(2):
        assert torch.equal(made(model, num_waveforms=1, seed=i, prompt=prompts[i])[0], together[i])


def test_a_waveform_depends_on_its_seed_alone(model: TokenModel) -> None:
    many = made(model, num_waveforms=5, seed=3)
    assert torch.equal(made(model, num_waveforms=2, seed=3), many[:2])
    for i in range(5):
        assert torch.equal(made(model, num_waveforms=1, seed=3 + i)[0], many[i])
    assert len({tuple(row.tolist()) for row in many}) == 5


def test_a_longer_waveform_begins_as_the_shorter_one(model: TokenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(model, num_samples=40)
    assert torch.equal(made(model, num_samples=9), whole[:, :9])
    monkeypatch.setattr(engine, "BLOCK_SAMPLES", 7)
    blocks = list(Sampler(model, num_waveforms=2).generate(num_samples=40, start_token=SILENCE, seed=0))
    assert [block.shape for block in blocks] == [(2, 7)] * 5 + [(2, 5)]
    assert torch.equal(torch.cat(blocks, dim=1), whole)


def test_the_model_and_the_random_state_outside_are_left_alone(model: TokenModel) -> None:
    before = torch.get_rng_state()
    made(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training, "only a copy is used"


@pytest.mark.fault("sampling")
def test_temperature_0_is_the_likeliest_path(model: TokenModel) -> None:
    got = made(model, filters=Filters(temperature=0.0))
    assert torch.equal(got[0], got[1])
    past = torch.cat([torch.tensor([SILENCE]), got[0]])[:20]
    with torch.no_grad():
        likeliest = model.head.distribution(model(past[None], model.initial_state(1)).logits[0]).argmax(-1)
    assert torch.equal(likeliest, got[0, :20])
    for filters in (Filters(top_k=1), Filters(top_p=1e-6)):
        assert torch.equal(made(model, filters=filters), got)


# Of torch's own making, while it compiles.
compiling = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "audio-ct/steps"


@compiling
@pytest.mark.slow
@pytest.mark.parametrize("model", ["predicting_mixture"], indirect=True)
def test_a_compiled_step_makes_the_same_samples(
    model: TokenModel, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Caches are opened and closed within blocks and across them, and the prompt ends within a segment.
    monkeypatch.setattr(engine, "BLOCK_SAMPLES", 16)
    sampler = Sampler(model, num_waveforms=2, options=EngineOptions(compiled=True))
    for seed, prompt in ((0, None), (3, torch.tensor([5] * 10)), (4, None)):
        blocks = list(sampler.generate(num_samples=41, start_token=SILENCE, seed=seed, prompt=prompt))
        expected = made(model, num_samples=41, seed=seed, prompt=prompt)
        assert torch.equal(torch.cat(blocks, dim=1), expected)


@compiling
def test_a_compiled_step_is_kept_for_other_weights_and_made_again_where_damaged(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wavenet(channels=16)
    made(model, options=EngineOptions(compiled=True))
    (kept,) = cache_folder.iterdir()
    content, used = kept.read_bytes(), kept.stat().st_mtime_ns
    move_weights(model)
    assert torch.equal(made(model, options=EngineOptions(compiled=True)), made(model))
    assert list(cache_folder.iterdir()) == [kept]
    assert kept.stat().st_mtime_ns > used

    def compile_again(exported: object, package_path: str, inductor_configs: object) -> str:
        Path(package_path).write_bytes(content)
        return package_path

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", compile_again)
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    kept.write_bytes(damaged)
    assert torch.equal(made(model, options=EngineOptions(compiled=True)), made(model))
    assert [path.read_bytes() for path in cache_folder.iterdir()] == [content]


@compiling
@pytest.mark.slow
def test_a_compiled_step_serves_every_temperature_and_top_p(cache_folder: Path) -> None:
    model = wavenet(channels=16)
    for filters in (Filters(temperature=0.7, top_p=0.9), Filters(temperature=1.3, top_p=0.5)):
        assert torch.equal(
            made(model, filters=filters, options=EngineOptions(compiled=True)), made(model, filters=filters)
        )
        assert len(list(cache_folder.iterdir())) == 1


@pytest.mark.parametrize(("channels", "is_kept"), [(16, True), (8, False)])
def test_a_compiled_step_that_holds_weights_is_not_taken_for_others(
    channels: int, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The compiler writes the values of vectors of 8 and fewer numbers into the code.
    keys: list[str] = []

    def compile_nothing(exported: object, settings: object, key: str) -> Path:
        keys.append(key)
        raise OSError

    monkeypatch.setattr(compiled, "_package", compile_nothing)
    model = wavenet(channels)
    for _ in range(2):
        with pytest.raises(InputError, match="cannot be compiled"):
            made(model, options=EngineOptions(compiled=True))
        move_weights(model)
    assert (keys[0] == keys[1]) == is_kept


def test_the_compiled_steps_that_were_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "NUM_KEPT", 2)
    for name, used in {"a": 3, "b": 1, "c": 4, "d": 2}.items():
        (tmp_path / f"{name}.pt2").touch()
        os.utime(tmp_path / f"{name}.pt2", (used, used))
    compiled._remove_old_steps(tmp_path)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c"]


def move_weights(model: TokenModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("memory", ["float32", "bfloat16"])
def test_every_rounding_goes_on_after_a_prompt(model: TokenModel, weights: Any, memory: Any) -> None:
    # The prompt fills memories and ends within a segment. Few of many waveforms are sent another way by rounding.
    given: dict[str, Any] = {"num_waveforms": 64, "num_samples": 5, "prompt": torch.arange(14) % VOCABULARY}
    sampler = Sampler(model, num_waveforms=64, options=EngineOptions(weights=weights, memory=memory))
    (got,) = sampler.generate(num_samples=5, start_token=SILENCE, seed=0, prompt=given["prompt"])
    assert (got == made(model, **given)).all(dim=1).float().mean() > 0.8
    plain = Sampler(model, num_waveforms=64)
    next(iter(plain.generate(num_samples=1, start_token=SILENCE, seed=0)))
    # Fewer bytes in larger models; as small as this, 8-bit matrices are mostly padding.
    assert (sampler.bytes_per_step != plain.bytes_per_step) == ((weights, memory) != ("float32", "float32"))
