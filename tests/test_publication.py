"""An exported folder is a model: read, sampled and scored as its checkpoint, checked, described, and of no machine."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import audio_ct
from audio_ct.errors import DamagedError
from audio_ct.publication import NOTES

ROOT = Path(__file__).parent.parent
SETTINGS = [
    *("model.num_stacks=1", "model.layers_per_stack=4", "model.residual_channels=8", "model.skip_channels=8"),
    *("model.linear_prediction=null", "training.batch_size=2", "training.window_length=256"),
    *("training.max_tokens=1024", "evaluation.max_validation_tokens=1000", "tracking.enabled=false"),
    "training.sample_every_windows=0",
]


@pytest.fixture(scope="module")
def run(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WaveNet after two windows."""
    recipe = audio_ct.load_recipe(ROOT / "recipes/demo/wavenet.yaml", [*SETTINGS, f"corpus.store={store_path}"])
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    audio_ct.train(recipe, folder)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, command: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "tiny-model"
    assert command("export", run, "--out", folder) == 0
    return folder


def test_it_is_the_checkpoints_model(
    run: Path, exported: Path, store_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["README.md", "manifest.json", "model.safetensors", "recipe.yaml"]
    assert sorted(path.name for path in exported.iterdir()) == names
    ours, theirs = audio_ct.load(run), audio_ct.load(exported)
    assert theirs.label == "tiny-model"
    (expected,), (got,) = (audio_ct.sample(model, seconds=0.01, seed=3) for model in (ours, theirs))
    assert got.tolist() == expected.tolist()
    assert command("evaluate", run, "--json") == 0
    bits = json.loads(capsys.readouterr().out)["bits_per_sample"]
    assert command("evaluate", exported) == 2
    assert "by --store" in capsys.readouterr().err
    assert command("evaluate", exported, "--store", store_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["bits_per_sample"] == bits
    assert command("sample", exported, "--out", exported.parent / "out", "--seconds", 0.01) == 0


def test_its_card_says_what_is_known_and_names_no_place_of_the_machine(exported: Path, store_path: Path) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    front_matter = yaml.safe_load(card.split("---")[1])
    assert front_matter == {
        "library_name": "audio-ct",
        "license": "other",
        "license_name": "CC0",
        "pipeline_tag": "audio-to-audio",
        "tags": ["audio-ct", "wavenet", "audio", "speech"],
    }
    bits = audio_ct.load(exported).manifest.validation_bits_per_sample
    for needed in ("A WaveNet of", "24000 Hz", "CC0, the data's", f"{bits:.4f} bits per sample", "in 2 steps"):
        assert needed in card
    assert "step.pt2" not in card
    for path in exported.iterdir():
        assert str(store_path.parent).encode() not in path.read_bytes(), path.name


def test_damage_is_refused(exported: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "recipe.yaml", "manifest.json"):
        damaged = tmp_path / name.partition(".")[0]
        shutil.copytree(exported, damaged)
        content = bytearray((damaged / name).read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / name).write_bytes(content)
        with pytest.raises(DamagedError, match=r"SHA-256|not a manifest"):
            audio_ct.load(damaged)
        (damaged / name).unlink()
        with pytest.raises((DamagedError, FileNotFoundError)):
            audio_ct.load(damaged)


def test_what_is_written_by_hand_is_kept(exported: Path, tmp_path: Path, command: Callable[..., int]) -> None:
    edited = Path(shutil.copytree(exported, tmp_path / "edited"))
    with (edited / "README.md").open("a", encoding="utf-8") as card:
        card.write("## Known faults\n\nIt hums.\n")
    assert command("export", edited, "--out", tmp_path / "again", "--licence", "CC-BY-4.0") == 0
    generated, _, notes = (tmp_path / "again/README.md").read_text(encoding="utf-8").partition(NOTES)
    assert notes == "\n\n## Known faults\n\nIt hums.\n"
    assert "license: cc-by-4.0\n" in generated
    assert "| licence | CC-BY-4.0 |" in generated


def test_a_folder_that_is_there_is_left_alone(
    exported: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    assert command("export", exported, "--out", exported) == 2
    message = f"audio-ct: out={str(exported)!r} is there already; choose another place, or remove it first.\n"
    assert capsys.readouterr().err == message
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


def test_the_cards_loop_makes_sound_from_the_program_alone(run: Path, tmp_path: Path) -> None:
    arguments = ["export", run, "--out", "folder", "--program"]
    subprocess.run([sys.executable, "-m", "audio_ct", *arguments], cwd=tmp_path, timeout=300, check=True)
    card = (tmp_path / "folder/README.md").read_text(encoding="utf-8")
    loop = next(block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "step.pt2" in block)
    assert len(loop.strip().splitlines()) <= 12
    short = loop.replace("range(24000)", "range(40)")
    assert short != loop
    end = "\nimport sys\nassert 'audio_ct' not in sys.modules\ntorch.save(waveform, 'waveform.pt')\n"
    subprocess.run([sys.executable, "-c", short + end], cwd=tmp_path / "folder", timeout=300, check=True)
    waveform = torch.load(tmp_path / "folder/waveform.pt")
    assert waveform.shape == (40,)
    assert 0 < waveform.abs().max() <= 1
    codec = audio_ct.load(tmp_path / "folder").codec
    tokens = codec.encode(waveform.numpy())  # type: ignore[attr-defined]
    torch.testing.assert_close(torch.from_numpy(codec.decode(tokens)), waveform, rtol=0, atol=1e-6)
