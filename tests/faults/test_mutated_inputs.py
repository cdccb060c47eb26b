"""Ten thousand mutated inputs, --long: each is read right or refused in one line; none crashes, hangs or passes."""

import contextlib
import hashlib
import itertools
import json
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from audio_ct import checkpoint
from audio_ct.audio.files import MPEG_SLACK_FRAMES, RejectedAudioError
from audio_ct.errors import AudioCTError, InputError
from audio_ct.recipe import MAX_RECIPE_BYTES, load_recipe, parse_recipe
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import Recording, TokenStore
from audio_ct.tokens.store_builder import TokenStoreBuilder
from data_prep.decoding import Decoder
from tests.faults.mutations import mutated

ROOT = Path(__file__).parent.parent.parent
RATE_HZ = 16_000
AUDIO = [
    *(("wav", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM")),
    *(("flac", "PCM_16"), ("flac", "PCM_24"), ("ogg", "VORBIS"), ("opus", "OPUS"), ("mp3", "MPEG_LAYER_III")),
    *(("aiff", "PCM_16"), ("aiff", "FLOAT"), ("caf", "PCM_16"), ("w64", "PCM_16"), ("au", "PCM_16")),
]
# No input here has more than some 30 KB.
SLOWEST_SECONDS, MOST_GROWTH_KIB = 20.0, 512 << 10


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Memory does not follow what an input claims."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_GROWTH_KIB


class Tally:
    """Outcomes by kind, and how long the slowest took."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.slowest_seconds = 0.0

    @contextlib.contextmanager
    def refusal(self, error: type[Exception] = AudioCTError, *, lines: int = 1) -> Iterator[None]:
        """Count what is refused, in at most so many lines, or read; any other error is a test's failure."""
        began, message = time.monotonic(), None
        try:
            yield
        except error as refused:
            message = str(refused)
        self.outcomes["read" if message is None else "refused"] += 1
        assert message is None or 1 <= len(message.splitlines()) <= lines, message
        self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
        assert self.slowest_seconds < SLOWEST_SECONDS

    def __str__(self) -> str:
        outcomes = ", ".join(f"{number} {outcome}" for outcome, number in sorted(self.outcomes.items()))
        return f"{outcomes}, the slowest in {self.slowest_seconds:.1f} s"


@pytest.mark.fault("audio")
def test_audio(tmp_path: Path, times: Callable[[int, int], int], measured: Callable[[str], None]) -> None:
    source, tally, rejects = random.Random(0), Tally(), Counter[str]()
    waveform = 0.5 * np.sin(np.arange(4000) / 9) + 0.1 * np.random.default_rng(0).standard_normal(4000)
    path, num_files = tmp_path / "mutated", times(6, 350)
    with Decoder() as decoder:

        def decoded() -> int:
            """The number of samples at the file's own rate, as long as it keeps to that of the whole one."""
            return sum(map(len, decoder.blocks(path, sample_rate_hz=RATE_HZ)))

        for suffix, subtype in AUDIO:
            whole_path = tmp_path / f"whole.{suffix}"
            container = {"opus": "OGG"}.get(suffix, suffix.upper())
            soundfile.write(whole_path, waveform, RATE_HZ, subtype=subtype, format=container)
            whole = whole_path.read_bytes()
            path.write_bytes(whole)
            num_samples = decoded()
            for _ in range(num_files):
                kind, content = mutated(whole, source)
                path.write_bytes(content)
                with tally.refusal(RejectedAudioError):
                    try:
                        found = decoded()
                    except RejectedAudioError as error:
                        rejects[error.reason] += 1
                        raise
                    slack = MPEG_SLACK_FRAMES if suffix == "mp3" else 0
                    if kind == "cut":
                        assert abs(found - num_samples) <= slack, f"{suffix}, {subtype}: {found} of {num_samples}"
    assert not rejects["hangs"] + rejects["crashes"], rejects
    measured(f"{num_files * len(AUDIO)} audio files of {len(AUDIO)} kinds: {tally}, 0 hangs, 0 crashes")


ABSURD: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63, 10**30, 1e-300, 1e300, float("inf"), float("nan"), "3e-4", "", "\0", "é" * 99),
    *([], {}, [[]], {"a": {}}, [0] * 999, {0: -1}, "../../etc/passwd", "!!python/name:os.system", "x" * 70_000),
]
BOMBS = [
    "a: &a [x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 8)}]\n" for a, b in itertools.pairwise("abcdefghi")),
    "name: !!python/object/apply:os.system ['exit 1']\n",
    "a: " + "[" * 100_000,
    "a: " + "{a: " * 20_000,
    "- " * 50_000,
    "name: tiny\nname: tiny\n",
    "? " * 10_000,
    "name: |\n" + " x\n" * 50_000,
    "\ufeff\x85\u2028name: x",
    "&a : *a",
    "<<: {name: x}",
    "#" * (MAX_RECIPE_BYTES + 1),
]


@pytest.mark.fault("recipe")
def test_recipes(tmp_path: Path, times: Callable[[int, int], int], measured: Callable[[str], None]) -> None:
    source, tally = random.Random(0), Tally()
    texts = [path.read_text() for path in sorted((ROOT / "recipes").glob("*/*.yaml"))]
    recipes = [yaml.safe_load(parse_recipe(text).to_yaml()) for text in texts[:12]]
    path, num_recipes = tmp_path / "recipe.yaml", times(60, 1500)
    contents = [bomb.encode() for bomb in BOMBS]
    while len(contents) < num_recipes:
        if source.random() < 0.5:
            contents.append(mutated(source.choice(texts).encode(), source)[1])
        else:
            values = json.loads(json.dumps(source.choice(recipes)))
            for _ in range(source.randint(1, 3)):
                spoil(values, source)
            contents.append(yaml.safe_dump(values, allow_unicode=True).encode())
    for content in contents:
        path.write_bytes(content)
        with tally.refusal(InputError, lines=40):
            recipe = load_recipe(path)
            assert parse_recipe(recipe.to_yaml()) == recipe
    measured(f"{len(contents)} recipes: {tally}")


def spoil(values: dict[str, Any], source: random.Random) -> None:
    """Give a key, of a section or a section itself, another name or an absurd value, or take it away."""
    section = values
    while isinstance(inner := section[source.choice(list(section))], dict) and inner:
        section = inner
        if source.random() < 0.1:
            break
    if not section:
        return
    key = source.choice(list(section))
    match source.choice(["value", "value", "value", "name", "absent"]):
        case "value":
            section[key] = source.choice(ABSURD)
        case "name":
            section[str(key)[:-1] + source.choice("abc\n")] = section.pop(key)
        case "absent":
            del section[key]


HOSTILE: list[Any] = [
    *("../secret.bin", "/etc/passwd", "a\0.bin", "a\nb.bin", "\ud800", "", ".", "..", "CON", "x" * 5000, "0" * 64),
    *(-1, 0, 1, 2**31, 2**60, 2**64, 10**30, 1.5, 1e308, True, None, [], {}, [[]], {"a": 1}),
]


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "whole"
    with TokenStoreBuilder(path, MuLawCodec(24_000, 8)) as builder:
        for split in ("train", "train", "validation"):
            tokens = np.random.default_rng(0).integers(0, 256, 300).astype(np.uint8)
            rows = [Recording(f"{split}/{i}", "anna", f"{i}.wav", None, 0, 100 * i, 100) for i in range(3)]
            builder.add_shard(split, tokens, rows)
        builder.commit()
    return path


@pytest.mark.fault("damaged store")
def test_stores(
    whole_store: Path, tmp_path: Path, times: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    source, tally = random.Random(0), Tally()
    files = sorted(path.name for path in whole_store.iterdir())
    store, num_stores, num_same = tmp_path / "store", times(60, 1250), 0
    (tmp_path / "elsewhere").write_bytes(b"\0" * 300)
    for _ in range(num_stores):
        shutil.copytree(whole_store, store)
        path = store / source.choice(files)
        harm(path, whole_store / source.choice(files), source, tmp_path / "elsewhere")
        is_same = is_as_written(path, whole_store)
        num_same += is_same
        before = tally.outcomes["refused"]
        with tally.refusal():
            TokenStore.open(store).verify()
        # Of the manifest's own hash, the spaces around it mean nothing.
        assert tally.outcomes["refused"] > before or is_same or path.name == "corpus.json.sha256", path
        shutil.rmtree(store)
    measured(f"{num_stores} stores, {num_same} of them with nothing changed: {tally}")


def harm(path: Path, another: Path, source: random.Random, elsewhere: Path) -> None:
    """Change a file, or put another thing in its place."""
    kind = source.choice(["mutated", "mutated", "mutated", "mutated", "absent", "empty", "another", "link", "folder"])
    if kind == "mutated":
        path.write_bytes(mutated(path.read_bytes(), source)[1])
        return
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "another":
        path.write_bytes(another.read_bytes())
    elif kind == "link":
        path.symlink_to(source.choice([elsewhere, another, Path("/dev/zero"), Path("absent")]))
    elif kind == "folder":
        path.mkdir()


def is_as_written(path: Path, whole: Path) -> bool:
    return not path.is_symlink() and path.is_file() and path.read_bytes() == (whole / path.name).read_bytes()


@pytest.mark.fault("hostile manifest")
def test_manifests(
    whole_store: Path, tmp_path: Path, times: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    """Manifests and tables of recordings, whose hashes somebody made fit."""
    source, tally = random.Random(0), Tally()
    store, num_manifests = tmp_path / "store", times(60, 1000)
    shutil.copytree(whole_store, store)
    manifest, table = json.loads((store / "corpus.json").read_bytes()), store / "recordings-train.jsonl"
    rows = [json.loads(line) for line in table.read_bytes().splitlines()]
    for _ in range(num_manifests):
        forged, forged_rows = json.loads(json.dumps(manifest)), json.loads(json.dumps(rows))
        if source.random() < 0.5:
            forge(forged, source)
        else:
            forge(forged_rows, source)
            table.write_text("".join(json.dumps(row) + "\n" for row in forged_rows))
            forged["splits"]["train"]["recordings_sha256"] = hashlib.sha256(table.read_bytes()).hexdigest()
        content = json.dumps(forged).encode()
        (store / "corpus.json").write_bytes(content)
        (store / "corpus.json.sha256").write_text(hashlib.sha256(content).hexdigest())
        with tally.refusal():
            opened = TokenStore.open(store)
            opened.verify()
            # What is read in spite of it comes from the store's own shards.
            for split in opened.splits:
                for index in range(len(opened.recordings(split))):
                    assert len(opened.tokens(split, index)) <= 300
        shutil.copy(whole_store / table.name, table)
    assert tally.outcomes["refused"] > num_manifests / 2
    measured(f"{num_manifests} forged manifests and tables: {tally}, nothing read from outside")


def forge(values: Any, source: random.Random) -> None:
    """Put something hostile in the place of a value, somewhere in nested dictionaries and lists."""
    inside = values
    while True:
        key = source.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        if not (isinstance(inside[key], dict | list) and inside[key]) or source.random() < 0.1:
            break
        inside = inside[key]
    if isinstance(inside, dict) and source.random() < 0.2:
        inside[source.choice([each for each in HOSTILE if isinstance(each, str)])] = inside.pop(key)
    else:
        inside[key] = source.choice(HOSTILE)


def save(folder: Path, step: int) -> Path:
    generator = torch.Generator().manual_seed(step)
    tensors = {name: torch.rand(3, 5, generator=generator) for name in ("a", "b")}
    return checkpoint.save(
        folder,
        step=step,
        weights=tensors,
        state={"memory": tensors},
        training={"optimizer": {"0": tensors}},
        recipe=f"seed: {step}\n",
        manifest={
            "tokens": step,
            "metrics": {"validation_bits_per_sample": 1.0},
            "model": {"kind": "wavenet", "vocabulary_size": 256},
            "store_digest": "ab" * 32,
            "commit": None,
            "version": "0.1.0",
        },
    )


@pytest.mark.fault("damaged checkpoint")
def test_checkpoints(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    times: Callable[[int, int], int],
    measured: Callable[[str], None],
) -> None:
    """The newest of two is harmed: it is refused, and the older one found."""
    source, tally = random.Random(0), Tally()
    folder, num_checkpoints, num_same = tmp_path / "run", times(60, 750), 0
    older, newest, another = save(folder, 1), save(folder, 2), save(tmp_path / "another", 2)
    shutil.copytree(newest, whole := tmp_path / "whole")
    (tmp_path / "elsewhere").write_bytes(b"\0" * 300)
    for _ in range(num_checkpoints):
        name = source.choice([*checkpoint.FILES, checkpoint.MANIFEST_FILE])
        harm(newest / name, another / source.choice([*checkpoint.FILES, name]), source, tmp_path / "elsewhere")
        is_same = is_as_written(newest / name, whole)
        num_same += is_same
        before = tally.outcomes["refused"]
        with tally.refusal():
            checkpoint.load(newest)
        assert (tally.outcomes["refused"] > before) != is_same, name
        caplog.clear()
        assert checkpoint.find(folder) == (newest if is_same else older)
        assert len(caplog.messages) == (0 if is_same else 1)
        shutil.rmtree(newest)
        shutil.copytree(whole, newest)
    measured(
        f"{num_checkpoints} checkpoints, {num_same} of them with nothing changed: {tally}; else the older one found"
    )


@pytest.mark.fault("malicious checkpoint")
def test_forged_checkpoints(tmp_path: Path, times: Callable[[int, int], int], measured: Callable[[str], None]) -> None:
    """Files of tensors that are mutated, header first, and whose hashes somebody made fit."""
    source, tally = random.Random(0), Tally()
    path, num_checkpoints = save(tmp_path, 1), times(60, 500)
    manifest = checkpoint.read_manifest(path)
    whole = {name: (path / name).read_bytes() for name in checkpoint.FILES}
    for _ in range(num_checkpoints):
        name = source.choice(checkpoint.FILES)
        content = mutated(whole[name], source)[1]
        if name != checkpoint.RECIPE_FILE and source.random() < 0.5:
            content = forged_tensors(whole[name], source)
        (path / name).write_bytes(content)
        records = manifest.files | {name: checkpoint._record(path / name)}
        forged = manifest.model_copy(update={"files": records})
        (path / checkpoint.MANIFEST_FILE).write_bytes(checkpoint._manifest_bytes(forged))
        with tally.refusal():
            checkpoint.load(path)
        (path / name).write_bytes(whole[name])
    assert tally.outcomes["refused"] > num_checkpoints / 4
    measured(f"{num_checkpoints} forged checkpoints: {tally}")


def forged_tensors(content: bytes, source: random.Random) -> bytes:
    """A file of tensors with something hostile in its header."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    forge(header, source)
    forged = json.dumps(header).encode()
    return len(forged).to_bytes(8, "little") + forged + content[end:]
