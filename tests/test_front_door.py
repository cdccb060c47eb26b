"""The front door: ten names, imported when they are needed, with examples that run."""

import doctest
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import audio_ct
from audio_ct import api
from audio_ct.errors import InputError
from audio_ct.pretrained import Pretrained
from audio_ct.sampling.engine import Sampler
from audio_ct.tokens.codec import ByteCodec, MuLawCodec

pytestmark = pytest.mark.xdist_group("pitch")

ROOT = Path(__file__).parent.parent
SHRUNK = [
    *("model.layers_per_stack=4", "model.residual_channels=8", "model.skip_channels=8", "training.batch_size=2"),
    *("training.window_length=256", "training.max_tokens=1024", "training.precision=float32"),
    *("evaluation.max_validation_tokens=1000", "tracking.enabled=false", "training.sample_every_windows=0"),
]


def run_examples(name: str, docstring: str | None) -> int:
    """Run a docstring's examples as written; their number."""
    names = {"audio_ct": audio_ct, "np": np, "torch": torch}
    test = doctest.DocTestParser().get_doctest(docstring or "", names, name, None, None)
    shown: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.FAIL_FAST)
    runner.run(test, out=shown.append)
    assert not runner.failures, "".join(shown)
    return len(test.examples)


@pytest.fixture(scope="module")
def house(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of the examples: a store, a small recipe, and the runs that the first examples train."""
    folder = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "stores").mkdir()
        (folder / "stores/speech").symlink_to(store_path)
        recipe = audio_ct.load_recipe(ROOT / "recipes/small/wavenet.yaml", [*SHRUNK, "corpus.store=stores/speech"])
        (folder / "recipes/small").mkdir(parents=True)
        (folder / "recipes/small/wavenet.yaml").write_text(recipe.to_yaml())
        assert run_examples("audio_ct", audio_ct.__doc__)
        assert run_examples("train", audio_ct.train.__doc__)
        yield folder


@pytest.fixture(scope="module")
def model(house: Path) -> Pretrained:
    return audio_ct.load("runs/wavenet")


def test_importing_takes_no_torch_and_offers_ten_names() -> None:
    code = "import sys, audio_ct\nprint(len(audio_ct.__all__), 'torch' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["10", "False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        audio_ct.fly  # noqa: B018


@pytest.mark.parametrize("name", [name for name in audio_ct.__all__ if name != "train"])
def test_every_name_is_documented_with_an_example_that_runs(house: Path, name: str) -> None:
    docstring = getattr(audio_ct, name).__doc__
    assert docstring
    in_package = f"audio_ct.{name}" in (audio_ct.__doc__ or "")
    assert run_examples(name, docstring) or in_package


def test_bits_of_waveforms_are_those_that_evaluation_finds(model: Pretrained) -> None:
    found = audio_ct.evaluate(model, cold_start_samples=0)
    store = model.open_store()
    waveforms = [store.codec.decode(store.tokens("test", recording)) for recording in store.recordings("test")]
    bits = [len(waveform) * audio_ct.bits_per_sample(model, waveform, 24_000) for waveform in waveforms]  # type: ignore[arg-type]
    assert found.tokens.sum() == sum(map(len, waveforms))
    assert sum(bits) / found.tokens.sum() == pytest.approx(found.bits_per_sample, rel=1e-5)


def test_samples_and_continuations_are_the_engines(model: Pretrained) -> None:
    codec = model.codec
    assert isinstance(codec, MuLawCodec)
    speech = np.sin(np.arange(300) / 10) / 2
    for prompt, made in (
        (None, audio_ct.sample(model, num=2, seconds=0.01, seed=3)),
        (codec.encode(speech), audio_ct.continue_waveform(model, speech, 24_000, num=2, seconds=0.01, seed=3)),
    ):
        sampler = Sampler(model.model, num_waveforms=2)
        (expected,) = sampler.generate(num_samples=240, start_token=codec.start_token, seed=3, prompt=prompt)
        for waveform, tokens in zip(made, expected, strict=True):
            np.testing.assert_array_equal(waveform, codec.decode(tokens))
    likeliest = audio_ct.sample(model, num=2, seconds=0.01, temperature=0.0)
    np.testing.assert_array_equal(likeliest[0], likeliest[1])


def test_a_model_of_bytes_makes_bytes_and_hears_nothing(model: Pretrained) -> None:
    of_bytes = replace(model, codec=ByteCodec())
    (text,) = audio_ct.sample(of_bytes, num_bytes=20)
    assert isinstance(text, bytes)
    assert len(text) == 20
    for ask in (audio_ct.bits_per_sample, audio_ct.continue_waveform):
        with pytest.raises(InputError, match="model of bytes"):
            ask(of_bytes, np.zeros(10), 24_000)


@pytest.mark.parametrize("waveform", [np.zeros((2, 100)), np.zeros(0), np.full(10, np.nan)])
def test_a_waveform_that_is_none_is_refused(model: Pretrained, waveform: np.ndarray) -> None:
    with pytest.raises(InputError):
        audio_ct.bits_per_sample(model, waveform, 24_000)


def test_a_run_that_cannot_compile_its_samples_is_refused_at_once(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "can_prepare", lambda device: False)
    changes = ["training.sample_every_windows=1", "sampling.compiled=true"]
    recipe = audio_ct.load_recipe("recipes/small/wavenet.yaml", changes)
    with pytest.raises(InputError, match=r"sampling.compiled=True: there is no compiler here"):
        audio_ct.train(recipe, "runs/compiled")
    assert not Path("runs/compiled").exists()


def test_a_run_makes_samples_of_itself(house: Path) -> None:
    changes = ["training.sample_every_windows=2", "sampling.num_samples=2", "sampling.seconds=0.01"]
    audio_ct.train(audio_ct.load_recipe("recipes/small/wavenet.yaml", changes), "runs/heard")
    names = sorted(path.name for path in Path("runs/heard/samples").iterdir())
    assert names == [f"step-00000002-0{i}.{suffix}" for i in range(2) for suffix in ("json", "png", "wav")]
