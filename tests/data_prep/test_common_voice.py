"""Common Voice: quotes without partners, missing clips, official splits, releases without them, several languages."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from audio_ct.errors import InputError
from data_prep.common_voice import CORPUS, gather
from data_prep.corpus import Candidate
from data_prep.options import PrepOptions
from data_prep.source import Source
from tests.data_prep.replicas import stored, write_audio, write_text

COLUMNS = (
    *("client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes", "age", "gender"),
    *("accents", "variant", "locale", "segment"),
)
HEADER = "\t".join(COLUMNS)
ANNA, BERT, CLEO = (hashlib.sha512(name.encode()).hexdigest() for name in ("anna", "bert", "cleo"))


def row(client_id: str, number: int, sentence: str, *, language: str = "en") -> str:
    fields = {"client_id": client_id, "path": f"common_voice_{language}_{number}.mp3", "sentence": sentence}
    values = fields | {"sentence_id": "ab12", "up_votes": "2", "down_votes": "0", "locale": language}
    return "\t".join(values.get(column, "") for column in COLUMNS)


def write_table(path: Path, *rows: str, header: str = HEADER) -> None:
    write_text(path, "".join(f"{line}\n" for line in (header, *rows)))


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release with two languages; a clip of English is missing."""
    release = tmp_path / "cv-corpus-17.0-2024-03-15"
    english = release / "en"
    for number in (17, 18, 100, 5, 900):
        write_audio(english / f"clips/common_voice_en_{number}.mp3", rate_hz=32_000)
    write_table(
        english / "train.tsv",
        row(BERT, 100, '"He said nothing.'),
        row(BERT, 17, 'A "quoted" word.'),
        row(ANNA, 18, "Line\u2028separated \x85 text."),
        row(ANNA, 19, "Its clip is missing."),
    )
    write_table(english / "dev.tsv", row(CLEO, 5, "”Good-bye,” said the boy."))
    write_table(english / "test.tsv")
    write_table(english / "validated.tsv", row(CLEO, 900, "Not in a split."))
    write_table(english / "clip_durations.tsv", "common_voice_en_17.mp3\t4000", header="clip\tduration[ms]")
    write_audio(release / "cy/clips/common_voice_cy_3.mp3", rate_hz=48_000)
    write_table(release / "cy/train.tsv", row(ANNA, 3, "Bore da.", language="cy"))
    return release


def shown(candidates: list[Candidate]) -> list[tuple[str, str, str | None, str | None]]:
    return [(each.name, each.speaker, each.text, each.split) for each in candidates]


def test_official_splits_of_a_language(release: Path) -> None:
    gathered = gather(Source(str(release / "en")), PrepOptions())
    expected = [
        ("clips/common_voice_en_18", ANNA[:16], "Line\u2028separated \x85 text.", "train"),
        ("clips/common_voice_en_17", BERT[:16], 'A "quoted" word.', "train"),
        ("clips/common_voice_en_100", BERT[:16], '"He said nothing.', "train"),
        ("clips/common_voice_en_5", CLEO[:16], "”Good-bye,” said the boy.", "validation"),
    ]
    assert shown(gathered.candidates) == sorted(expected, key=lambda each: each[1])
    clip = next(each for each in gathered.candidates if each.name.endswith("_17"))
    assert clip.path == "clips/common_voice_en_17.mp3"
    assert clip.num_bytes == (release / "en" / clip.path).stat().st_size
    assert [(each.source, each.reason, each.detail) for each in gathered.rejects] == [
        ("clips/common_voice_en_19.mp3", "missing", "is named by row 5 of train.tsv and not there.")
    ]


def test_languages_of_a_release(release: Path) -> None:
    gathered = gather(Source(str(release)), PrepOptions(subsets=("cy",)))
    assert shown(gathered.candidates) == [("cy/clips/common_voice_cy_3", ANNA[:16], "Bore da.", "train")]
    assert len(gather(Source(str(release)), PrepOptions()).candidates) == 5
    # A language's own folder may be named by its subset too.
    assert len(gather(Source(str(release / "cy")), PrepOptions(subsets=("cy",))).candidates) == 1


def test_a_release_without_official_splits(release: Path) -> None:
    for name in ("train", "dev", "test"):
        (release / f"en/{name}.tsv").unlink()
    gathered = gather(Source(str(release / "en")), PrepOptions())
    assert shown(gathered.candidates) == [("clips/common_voice_en_900", CLEO[:16], "Not in a split.", None)]


def test_the_first_release_names_clips_without_suffix(tmp_path: Path) -> None:
    name = hashlib.sha512(b"clip").hexdigest()
    write_audio(tmp_path / f"en/clips/{name}.mp3", rate_hz=48_000)
    header = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent"
    write_table(tmp_path / "en/test.tsv", f"{ANNA}\t{name}\tHello.\t2\t0\t\t\t", header=header)
    gathered = gather(Source(str(tmp_path / "en")), PrepOptions())
    assert shown(gathered.candidates) == [(f"clips/{name}", ANNA[:16], "Hello.", "test")]


def test_huge_fields_and_malformed_rows(release: Path) -> None:
    write_table(release / "en/dev.tsv", row(CLEO, 5, "long " * 100_000), "cut off", f"{row(CLEO, 900, 'more')}\tmore")
    gathered = gather(Source(str(release / "en")), PrepOptions())
    assert len(next(each for each in gathered.candidates if each.name.endswith("_5")).text or "") == 499_999
    assert [(each.source, each.reason) for each in gathered.rejects] == [
        ("clips/common_voice_en_19.mp3", "missing"),
        ("clips/.mp3", "missing"),
    ]
    assert len(gathered.candidates) == 5


def test_a_path_that_leads_out_is_missing(release: Path) -> None:
    write_table(release / "en/dev.tsv", row(CLEO, 5, "Fine.").replace("common_voice_en_5", "../../../outside"))
    write_audio(release.parent / "outside.mp3", rate_hz=32_000)
    assert "missing" in [each.reason for each in gather(Source(str(release / "en")), PrepOptions()).rejects]


def test_folders_that_are_something_else(release: Path) -> None:
    def refused(folder: Path, match: str, *subsets: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            gather(Source(str(folder)), PrepOptions(subsets=subsets))
        assert len(str(caught.value).splitlines()) == 1

    refused(release / "en/clips", "has neither train.tsv nor folders that have")
    refused(release, r"subsets=de, tlh must be among the languages .* cy, en", "en", "de", "tlh")
    refused(release / "en", "is the folder of en alone", "cy")
    write_table(release / "cy/train.tsv", "a\tb", header="file\tspeaker")
    refused(release / "cy", "row 2 of train.tsv has no client_id and path, but file, speaker")
    (release / "cy/clips").rename(release / "cy/audio")
    refused(release / "cy", "has no folder clips")
    (release / "en/train.tsv").write_bytes(b"client_id\tpath\n\xff\tx\n")
    refused(release / "en", "cannot be read as .tsv")


def test_the_command_stores_them(command: Callable[..., int], release: Path, tmp_path: Path) -> None:
    write_table(release / "en/test.tsv", row("0" * 128, 900, "In the test."))
    assert command("prep", "common-voice", release / "en", "--out", tmp_path / "store", "--jobs", 1) == 0
    recordings = stored(tmp_path / "store")
    assert {name.removeprefix("clips/common_voice_en_"): split for name, (split, _) in recordings.items()} == {
        "18": "train",
        "17": "train",
        "100": "train",
        "5": "validation",
        "900": "test",
    }
    assert recordings["clips/common_voice_en_100"][1] == '"He said nothing.'


def test_declaration() -> None:
    assert CORPUS.name == "common-voice"
    assert CORPUS.licence == "CC0-1.0"
    assert not CORPUS.archives
    assert "account" in CORPUS.instructions
