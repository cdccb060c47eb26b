"""The command line: wrong use is one line and exit status 2, and the first run works from recordings to a page."""

import json
import logging
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from audio_ct import cli
from audio_ct.errors import InputError
from audio_ct.recipe import load_recipe

ROOT = Path(__file__).parent.parent
Shell = Callable[..., tuple[int, str, str]]

SMALL = [
    "training.batch_size=2",
    "training.window_length=256",
    "training.max_tokens=1024",
    "training.precision=float32",
    "evaluation.max_validation_tokens=1000",
    "tracking.enabled=false",
    "training.sample_every_windows=0",
]
TRANSFORMER = [
    *("model.num_layers=1", "model.d_model=16", "model.num_heads=2", "model.d_ff=16", "model.segment_length=256"),
    *("model.memory_length=256", "model.compressed_memory_length=64"),
]
WAVENET = [
    *("model.layers_per_stack=4", "model.residual_channels=8", "model.skip_channels=8"),
    # Compiled in half the time.
    "model.linear_prediction=null",
]
RECIPE = ROOT / "recipes/demo/wavenet.yaml"

RUN_IN_A_PROCESS = """
import sys
from audio_ct.cli import main
sys.argv = ["audio-ct", *sys.argv[1:]]
try:
    main()
except SystemExit as exit:
    print(exit.code, sorted({"torch", "numpy", "librosa", "mlflow", "matplotlib"} & set(sys.modules)))
"""


@pytest.fixture
def shell(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Shell:
    """`audio-ct` in this process: (exit status, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = command(*arguments)
        written = capsys.readouterr()
        return status, written.out, written.err

    return run


def settings(*changes: str) -> list[str]:
    return [part for each in (*SMALL, *changes) for part in ("--set", each)]


def of_wavenet(store: Path) -> list[str]:
    return settings(*WAVENET, f"corpus.store={store}")


def test_a_resumed_run_keeps_its_own_recipe(shell: Shell, wavenet_run: Path, store_path: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(wavenet_run, tmp_path / "run"))
    saved, before = run / "recipe.yaml", load_recipe(run / "recipe.yaml")
    status, out, err = shell("train", RECIPE, "--run-dir", run, "--resume", "--set", "training.max_tokens=2048")
    assert (status, "step-00000004" in out) == (0, True), err
    lines = err.splitlines()
    assert f"{before.name}: training.max_tokens=2048, was 1024 in {saved}" in lines
    assert (
        f"{before.name}: corpus.store={str(store_path)!r} as in {saved}, not 'stores/demo' as in {RECIPE}; or --set it"
        in lines
    )
    longer = before.training.model_copy(update={"max_tokens": 2048})
    assert load_recipe(saved) == before.model_copy(update={"training": longer})

    again = "training.max_tokens=2048"
    status, _, err = shell("train", saved, "--run-dir", run, "--resume", "--set", again)
    assert (status, "as in" in err, "was" in err) == (0, False, False), err


@pytest.fixture(scope="module")
def wavenet_run(command: Callable[..., int], store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a WaveNet, trained a few steps through the command."""
    run = tmp_path_factory.mktemp("runs") / "wavenet"
    assert command("train", RECIPE, "--run-dir", run, *of_wavenet(store_path)) == 0
    return run


@pytest.fixture(scope="module")
def byte_run(command: Callable[..., int], byte_store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a model of bytes, which wrote a text of 20 bytes while it trained."""
    run = tmp_path_factory.mktemp("runs") / "bytes"
    sampling = ["training.sample_every_windows=2", "sampling.num_bytes=20"]
    changes = settings(*TRANSFORMER, f"corpus.store={byte_store_path}", *sampling)
    assert command("train", ROOT / "recipes/enwik8/small.yaml", "--run-dir", run, *changes) == 0
    return run


def test_a_store_is_found_from_the_folders_above_the_run(
    shell: Shell,
    store_path: Path,
    byte_store_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    store = Path(shutil.copytree(store_path, project / "stores/tiny"))
    monkeypatch.chdir(project)
    run = ["train", RECIPE, "--run-dir", "runs/net"]
    assert shell(*run, *of_wavenet(Path("stores/tiny")))[0] == 0
    few = ["--max-tokens", 1]
    _, plain, _ = shell("evaluate", "runs/net", *few)
    assert not [each for each in caplog.messages if "is taken" in each], "the plain path is not spoken of"

    # A path like the recipe's leads to another store from here.
    shutil.copytree(byte_store_path, elsewhere / "stores/tiny")
    monkeypatch.chdir(elsewhere)
    for path in (project / "runs/net", "../project/runs/net"):
        caplog.clear()
        status, out, err = shell("evaluate", path, *few)
        assert (status, out) == (0, plain), err
        newest = Path(path) / "checkpoints/step-00000002"
        assert f"corpus.store='stores/tiny': {store} is taken, on which {newest} was trained" in caplog.messages
    page = ["--num", 1, "--seconds", 0.01, "--out", "page"]
    caplog.clear()
    assert shell("compare", project / "runs/net", project / "runs/net", *few, *page)[0] == 0
    assert sum("is taken" in each for each in caplog.messages) == 1
    longer = ["--resume", "--set", "training.max_tokens=2048"]
    status, out, err = shell("train", RECIPE, "--run-dir", project / "runs/net", *longer)
    assert (status, "step-00000004" in out) == (0, True), err
    assert "store: stores/tiny\n" in (project / "runs/net/recipe.yaml").read_text()

    # Runs on another disk, behind a link.
    (project / "runs").rename(tmp_path / "disk")
    (project / "runs").symlink_to(tmp_path / "disk")
    assert shell("evaluate", project / "runs/net", *few)[0] == 0
    status, _, err = shell("evaluate", tmp_path / "disk/net", *few)
    assert (status, err.count("\n")) == (2, 1)
    assert "corpus.store='stores/tiny' is not the store that net/checkpoints/step-00000004 was trained on" in err
    shutil.rmtree(elsewhere / "stores")
    status, _, err = shell("evaluate", tmp_path / "disk/net", *few)
    assert (status, err.count("\n")) == (2, 1)
    assert "is not there, from here or from the folders above the checkpoint; name it" in err
    shutil.rmtree(store)
    status, _, err = shell("train", RECIPE, "--run-dir", project / "runs/net", *longer)
    assert (status, err.splitlines()[-1]) == (
        2,
        "audio-ct: 'stores/tiny' holds no corpus.json; name a token store or prepare one first.",
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["prep", "folder", "--help"], ["--version"]], ids=" ".join
)
def test_help_is_instant_and_imports_nothing_heavy(arguments: list[str]) -> None:
    began = time.perf_counter()
    program = [sys.executable, "-c", RUN_IN_A_PROCESS, *arguments]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert time.perf_counter() - began < 10
    assert done.stderr == ""


def test_help_lists_commands_in_the_order_of_work_and_says_debug(shell: Shell) -> None:
    status, out, _ = shell("--help")
    assert status == 0
    assert "--debug" in out
    listed = re.findall(r"^│ ([a-z]+)  ", out, flags=re.MULTILINE)
    assert listed == list(cli.COMMANDS)


def test_a_shell_completes_commands_and_options(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_AUDIO_CT_COMPLETE", "complete_bash")
    for words, index, expected in (("audio-ct tr", 1, {"train", "track"}), ("audio-ct train --re", 2, {"--resume"})):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(index))
        _, out, _ = shell()
        assert set(out.split()) == expected


@pytest.mark.fault("recipe")
def test_a_wrong_recipe_stops_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    program = [sys.executable, "-c", RUN_IN_A_PROCESS, "train", "recipe.yaml", "--run-dir", "x"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    assert done.stdout.startswith("2 ")
    assert "torch" not in done.stdout
    assert "model is missing; add it." in done.stderr


# Of torch's own making, while it compiles.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_fast_engine_through_the_command(
    shell: Shell, wavenet_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rounded = ["--weights", "int8", "--memory", "bfloat16"]
    arguments = ["--out", tmp_path / "fast", "--seconds", 0.02, "--compiled", *rounded]
    status, out, err = shell("sample", wavenet_run, *arguments)
    assert status == 0, err
    assert (len(out.splitlines()), len(list((tmp_path / "cache/audio-ct/steps").glob("*.pt2")))) == (1, 1)
    bits = []
    for options in ([], rounded):
        status, out, err = shell("evaluate", wavenet_run, "--max-tokens", 1, "--json", *options)
        assert status == 0, err
        bits.append(json.loads(out)["bits_per_sample"])
    assert 0 < abs(bits[0] - bits[1]) < 0.05


def test_the_first_run(shell: Shell, recordings_folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "stores/mine"
    status, out, _ = shell("prep", "folder", recordings_folder, "--out", store, "--jobs", 1, "--split-by", "recording")
    assert status == 0
    assert "token store:" in out
    status, out, _ = shell("corpus", store, "--verify")
    assert (status, "every shard is what was written" in out) == (0, True)

    run = tmp_path / "runs/wavenet"
    training = ["train", RECIPE, "--run-dir", run, *of_wavenet(store)]
    status, out, err = shell(*training)
    assert status == 0, err
    assert f"checkpoint: {run / 'checkpoints/step-00000002'}" in out
    status, _, err = shell(*training)
    assert (status, err.count("\n"), "--resume" in err) == (2, 1, True)
    longer = ["--set", "training.max_tokens=2048", "--resume"]
    status, out, err = shell(*training, *longer)
    assert (status, "step-00000004" in out) == (0, True), err

    status, out, err = shell("sample", run, "--out", tmp_path / "audio", "--num", 2, "--seconds", 0.02, "--seed", 3)
    assert status == 0, err
    files = sorted((tmp_path / "audio").glob("*.wav"))
    assert [soundfile.info(path).frames for path in files] == [480, 480]
    assert all(str(path) in out for path in files)
    prompt = ["--prompt", files[0], "--prompt-seconds", 0.01, "--format", "flac", "--seconds", 0.01]
    status, out, err = shell("sample", run, "--out", tmp_path / "continued", *prompt)
    assert status == 0, err
    assert soundfile.info(next((tmp_path / "continued").glob("*.flac"))).frames == 480

    status, out, err = shell("evaluate", run, "--json")
    assert status == 0, err
    figures = json.loads(out)
    assert figures.keys() >= {"split", "bits_per_sample", "interval", "tokens", "cold_start_bits_per_sample"}
    assert figures["interval"] == [None, None], "one recording says nothing about others"
    assert 0 < figures["bits_per_sample"] < 9
    status, out, err = shell("evaluate", run)
    assert f"{figures['bits_per_sample']:.4f} bits per sample" in out
    moved = store.rename(tmp_path / "moved")
    status, _, err = shell("evaluate", run)
    assert (status, err.count("\n")) == (2, 1)
    status, out, err = shell("evaluate", run, "--store", moved, "--max-tokens", 40_000)
    assert status == 0, err


def test_from_a_file_of_bytes_to_bits_per_byte(
    shell: Shell, byte_run: Path, byte_store_path: Path, text_path: Path, tmp_path: Path
) -> None:
    fractions = ["--validation-fraction", 0.1, "--test-fraction", 0.1]
    status, out, err = shell("prep", "bytes", text_path, "--out", tmp_path / "store", *fractions)
    assert status == 0, err
    assert (tmp_path / "store/corpus.json").read_bytes() == (byte_store_path / "corpus.json").read_bytes()
    assert f"report: {tmp_path / 'store/report.json'}\n" in out
    assert json.loads(out[: out.index("\n}") + 2])["splits"]["test"]["num_bytes"] == 6000
    status, out, _ = shell("corpus", tmp_path / "store")
    assert out.splitlines()[:3] == [
        "train: 48,000 bytes in 1 stretches",
        "validation: 6,000 bytes in 1 stretches",
        "test: 6,000 bytes in 1 stretches",
    ]
    assert out.splitlines()[3].startswith("bytes, digest ")

    assert (byte_run / "samples/step-00000002-00.txt").stat().st_size == 20
    status, out, err = shell("evaluate", byte_run, "--cold-start-samples", 0)
    assert status == 0, err
    assert re.fullmatch(r"\d\.\d{4} bits per byte on 6,000 bytes of 1 test stretches\n", out)
    status, out, _ = shell("evaluate", byte_run, "--json")
    assert json.loads(out)["unit"] == "byte"

    status, out, err = shell("sample", byte_run, "--out", tmp_path / "texts", "--num", 2, "--num-bytes", 30)
    assert status == 0, err
    files = [tmp_path / f"texts/enwik8-small-0{i}.txt" for i in range(2)]
    assert out.splitlines() == [str(path) for path in files]
    assert [path.stat().st_size for path in files] == [30, 30]
    prompt = ["--prompt", text_path, "--num-bytes", 5, "--format", "bin"]
    status, out, err = shell("sample", byte_run, "--out", tmp_path / "continued", *prompt)
    assert status == 0, err
    continued = (tmp_path / "continued/enwik8-small-00.bin").read_bytes()
    assert (continued[:-5], len(continued)) == (text_path.read_bytes(), 60_005)


@pytest.mark.fault("sampling")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "recipes/nowhere.yaml", "--run-dir", "x"], "recipes/nowhere.yaml' is not a file"),
        (["sample", "nowhere", "--out", "x"], "nowhere"),
        (["evaluate", "nowhere"], "nowhere"),
        (["compare", "nowhere", "elsewhere", "--out", "x"], "nowhere"),
        (["corpus", "nowhere"], "nowhere"),
        (["prep", "folder", "nowhere", "--out", "x"], "nowhere"),
        (["sample", "RUN", "--out", "x", "--temperature", "-1"], "temperature=-1.0"),
        (["sample", "RUN", "--out", "x", "--top-k", "0"], "top-k=0"),
        (["sample", "RUN", "--out", "x", "--top-p", "1.5"], "top-p=1.5"),
        (["sample", "RUN", "--out", "x", "--seconds", "0"], "seconds=0.0"),
        (["sample", "RUN", "--out", "x", "--seconds", "nan"], "seconds=nan"),
        (["sample", "RUN", "--out", "x", "--seconds", "inf"], "seconds=inf"),
        (["sample", "RUN", "--out", "x", "--num", "0"], "num=0"),
        (["sample", "RUN", "--out", "x", "--seconds", "0.01", "--format", "exe"], "no audio format"),
        (["sample", "RUN", "--out", "x", "--prompt", "nowhere.wav"], "nowhere.wav"),
        (["sample", "RUN", "--out", "x", "--prompt-seconds", "1"], "prompt-seconds=1.0 is about --prompt"),
        (["evaluate", "RUN", "--split", "dev"], "dev"),
        (["evaluate", "RUN", "--cold-start-samples", "99999999"], "cold_start_samples=99999999"),
        (["compare", "RUN", "RUN", "--out", "x", "--num", "0"], "num=0"),
        (["sample", "RUN", "--out", "x", "--format", ".wav"], "format='.wav'"),
        (["compare", "RUN", "RUN", "--out", "x", "--seconds", "nan"], "seconds=nan"),
        (["compare", "RUN", "RUN", "--out", "x", "--seconds", "inf"], "seconds=inf"),
        (["compare", "BYTES", "BYTES", "--out", "x"], "measure each by `audio-ct evaluate`"),
        (
            ["sample", "BYTES", "--out", "x", "--seconds", "1"],
            "seconds=1.0: this is a model of bytes; give --num-bytes",
        ),
        (["sample", "BYTES", "--out", "x", "--prompt", "TEXT", "--prompt-seconds", "1"], "shorten the prompt's file"),
        (["sample", "BYTES", "--out", "x", "--num-bytes", "0"], "num-bytes=0"),
        (["sample", "BYTES", "--out", "x", "--format", "wav"], "format='wav': bytes are written as txt or bin"),
        (["sample", "BYTES", "--out", "x", "--prompt", "nowhere"], "prompt='nowhere' is not there"),
        (["sample", "BYTES", "--out", "x", "--prompt", "."], "prompt='.' must be a regular file"),
        (["sample", "RUN", "--out", "x", "--num-bytes", "5"], "num-bytes=5: this is a model of audio; give --seconds"),
        (["prep", "bytes", "nowhere", "--out", "x"], "source='nowhere' is not there"),
        (["prep", "bytes", ".", "--out", "x/y"], "source='.' must be a regular file"),
        (["prep", "bytes", "TEXT", "--out", "x", "--test-fraction", "1"], "test_fraction=1.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line_and_status_2(
    shell: Shell,
    wavenet_run: Path,
    byte_run: Path,
    text_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"RUN": wavenet_run, "BYTES": byte_run, "TEXT": text_path}
    status, _, err = shell(*(names.get(each, each) for each in arguments))
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("audio-ct: ")
    assert message in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["train"],
        ["sample", "x", "--out", "y", "--num", "many"],
        ["sample", "x", "--out", "y", "--seed", "-1"],
        ["sample", "x", "--out", "y", "--seed", str(2**70)],
        ["evaluate", "x", "--max-tokens", "0"],
        ["compare", "x", "--out", "y", "--max-tokens", "-5"],
        ["evaluate", "x", "--cold-start-samples", "-1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2_without_a_traceback(shell: Shell, arguments: list[str]) -> None:
    status, _, err = shell(*arguments)
    assert status == 2
    assert "Traceback" not in err


@pytest.mark.fault("recipe")
def test_every_fault_of_a_recipe_has_its_line(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.read_text().replace("seed:", "sead:"))
    wrong = ["--set", "model.num_stack=2"]
    status, _, err = shell("train", tmp_path / "recipe.yaml", "--run-dir", tmp_path / "run", *wrong)
    assert status == 2
    assert len(err.splitlines()) == 2
    assert "did you mean seed?" in err
    assert "did you mean model.num_stacks?" in err
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(shell: Shell, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        shell("--debug", "train", RECIPE, "--run-dir", tmp_path, "--set", "nonsense")


def test_a_file_system_error_is_one_line(shell: Shell, wavenet_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, _, err = shell("sample", wavenet_run, "--out", tmp_path / "file/below", "--seconds", 0.001)
    assert (status, err.count("\n")) == (2, 1)
    assert "file" in err


@pytest.mark.fault("signals")
def test_an_interrupted_run_is_status_130(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from audio_ct.training import loop

    def interrupted(*arguments: object, **options: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)
    status, _, err = shell("train", RECIPE, "--run-dir", tmp_path)
    assert status == 130
    assert "Traceback" not in err


def test_logging_is_left_to_the_command_line() -> None:
    assert not logging.getLogger("audio_ct").handlers
