"""Speculative samples are the model's own, whatever drafts them."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from audio_ct.errors import InputError
from audio_ct.models.compressive_transformer import CompressiveTransformer
from audio_ct.models.interface import TokenModel
from audio_ct.models.linear_prediction import LinearPredictionSettings
from audio_ct.models.wavenet import WaveNet
from audio_ct.sampling import engine, speculation
from audio_ct.sampling.engine import EngineOptions, generate
from audio_ct.sampling.filters import Filters
from audio_ct.sampling.speculation import SpeculativeSampler

VOCABULARY, SILENCE = 16, 8
PREDICTING = LinearPredictionSettings(order=3, windows=[9], frame_length=4)


def wavenet(seed: int, *, vocabulary_size: int = VOCABULARY, predicting: bool = False, scale: float = 1.0) -> WaveNet:
    torch.manual_seed(seed)
    sizes = {"num_stacks": 1, "layers_per_stack": 3, "residual_channels": 8, "skip_channels": 8}
    settings = PREDICTING if predicting else None
    model = WaveNet(vocabulary_size=vocabulary_size, **sizes, linear_prediction=settings)
    with torch.no_grad():
        model.readout.weight *= scale
    return model


def compressive_transformer(**changes: Any) -> TokenModel:
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 16, "segment_length": 8, "memory_length": 8}
    compressed = {"compressed_memory_length": 3, "compression_rate": 2}
    local = {"front_dilations": [1, 2], "short_convolution_width": 3, "linear_prediction": PREDICTING}
    return CompressiveTransformer(vocabulary_size=VOCABULARY, **sizes, **compressed, **local, **changes)


def made(sampler: SpeculativeSampler, num_samples: int = 101, seed: int = 0, prompt: Tensor | None = None) -> Tensor:
    blocks = sampler.generate(num_samples=num_samples, start_token=SILENCE, seed=seed, prompt=prompt)
    return torch.cat(list(blocks), dim=1)


@pytest.mark.parametrize("prompt", [None, [3] * 13])
@pytest.mark.parametrize("num_drafted", [1, 3, 7])
@pytest.mark.parametrize("predicting", [True, False])
def test_the_likeliest_path_is_the_models_whatever_was_drafted(
    predicting: bool, num_drafted: int, prompt: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (engine, speculation):
        monkeypatch.setattr(module, "BLOCK_SAMPLES", 37)
    model = compressive_transformer()
    given = None if prompt is None else torch.tensor(prompt)
    greedy = Filters(temperature=0.0)
    settings = {"num_samples": 101, "start_token": SILENCE, "seed": 0, "prompt": given, "filters": greedy}
    expected = torch.cat(list(generate(model, num_waveforms=1, **settings)), dim=1)  # type: ignore[arg-type]
    draft = wavenet(1, predicting=predicting)
    sampler = SpeculativeSampler(model, draft, num_drafted=num_drafted, filters=greedy)
    assert torch.equal(made(sampler, prompt=given), expected)
    assert sampler.num_kept / sampler.num_judged < 0.5, "a draft that knows nothing is mostly wrong"
    alike = SpeculativeSampler(model, model, num_drafted=num_drafted, filters=greedy)
    assert torch.equal(made(alike, prompt=given), expected)
    assert alike.num_kept == alike.num_judged, "a draft that is the model itself is always right"
    # Rounds end at the ends of frames of 4 and of blocks; one token is drawn beside those that are kept.
    assert alike.num_rounds < 101 / min(num_drafted + 1, 4) + 8


def test_a_mixture_may_be_drafted_for_and_draft() -> None:
    mixture, softmax = compressive_transformer(output="mixture_of_logistics"), compressive_transformer()
    greedy = Filters(temperature=0.0)
    settings: dict[str, Any] = {"num_samples": 40, "start_token": SILENCE, "seed": 0, "filters": greedy}
    for model, draft in ((mixture, softmax), (softmax, mixture), (mixture, mixture)):
        expected = torch.cat(list(generate(model, num_waveforms=1, **settings)), dim=1)
        sampler = SpeculativeSampler(model, draft, filters=greedy)
        assert torch.equal(made(sampler, num_samples=40), expected)
    assert sampler.num_kept == sampler.num_judged


@pytest.mark.parametrize("cache_length", [16, 2])
def test_samples_follow_the_models_distribution(cache_length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # In stretches of 2 the rounds are cut short by their ends.
    monkeypatch.setattr("audio_ct.models.wavenet.CACHE_LENGTH", cache_length)
    model, draft = (wavenet(seed, vocabulary_size=3, scale=6.0) for seed in (1, 2))
    sampler = SpeculativeSampler(model, draft, num_drafted=2)
    num_runs, length = 1500, 3
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(num_runs):
        blocks = sampler.generate(num_samples=length, start_token=1, seed=seed)
        counts[tuple(torch.cat(list(blocks), dim=1)[0].tolist())] += 1
    paths = torch.cartesian_prod(*[torch.arange(3)] * length)
    inputs = torch.cat([torch.ones(len(paths), 1, dtype=torch.int64), paths[:, :-1]], dim=1)

    def probabilities(one: WaveNet) -> Tensor:
        with torch.no_grad():
            logits = one(inputs, one.initial_state(len(paths))).logits
        return logits.log_softmax(-1).gather(-1, paths[..., None]).sum((1, 2)).exp().double()

    def chi_square(expected: Tensor) -> float:
        observed = torch.tensor([counts[tuple(path)] for path in paths.tolist()]).double()
        return float(((observed - expected * num_runs) ** 2 / (expected * num_runs)).sum())

    # 26 degrees of freedom: 99.9 % of all draws stay below 54.1. The draft's own distribution is far from it.
    assert chi_square(probabilities(model)) < 54.1
    assert chi_square(probabilities(draft)) > 200
    assert 0.2 < sampler.num_kept / sampler.num_judged < 0.9


# Of torch's own making, while it compiles.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_compiled_round_makes_the_same_samples(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, draft = compressive_transformer(), wavenet(1, predicting=True)
    plain, compiled = (
        SpeculativeSampler(model, draft, options=EngineOptions(compiled=value)) for value in (False, True)
    )
    for seed in (0, 1):
        assert torch.equal(made(compiled, seed=seed), made(plain, seed=seed))
    assert (compiled.num_rounds, compiled.num_kept) == (plain.num_rounds, plain.num_kept)


def test_a_seed_says_all_and_the_models_are_left_alone() -> None:
    model, draft = compressive_transformer(), wavenet(1)
    sampler = SpeculativeSampler(model, draft)
    first = made(sampler)
    assert first.shape == (1, 101)
    assert torch.equal(made(sampler), first)
    assert not torch.equal(made(sampler, seed=1), first)
    assert torch.equal(made(sampler, num_samples=40)[0, :30], first[0, :30])
    assert model.training
    assert draft.training


def test_what_does_not_fit_is_refused() -> None:
    model = compressive_transformer()
    with pytest.raises(InputError, match="3 token values"):
        SpeculativeSampler(model, wavenet(0, vocabulary_size=3))
    with pytest.raises(InputError, match="drafted=16"):
        SpeculativeSampler(model, wavenet(0), num_drafted=16)
