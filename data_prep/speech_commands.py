"""Speech Commands v0.02: one-second clips of single words by thousands of speakers; its digits are SC09.

Models of raw audio (WaveGAN, SampleRNN, WaveNet, SaShiMi, DiffWave) report on the digits zero to nine at 16 kHz, in the
official splits: `validation_list.txt`, `testing_list.txt`, and all other clips for training, 31,158 in SC09.

- `zero/0132a06d_nohash_3.wav`: the hash is the speaker, and the number counts the repetitions of the word by it; no
  speaker is in two splits.
- About a tenth of the clips are shorter than a second, some are cut within the word or hold noise. All stay, and are
  padded by silence.
- `_background_noise_` holds minutes of noise and no words; it is left out.
"""

from audio_ct.errors import MissingError

from .corpus import Archive, Candidate, Corpus, Gathered
from .layout import corpus_folder, not_there
from .options import PrepOptions
from .source import Source, printable

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OTHER_WORDS = (
    *("backward", "bed", "bird", "cat", "dog", "down", "follow", "forward", "go", "happy", "house", "learn", "left"),
    *("marvin", "no", "off", "on", "right", "sheila", "stop", "tree", "up", "visual", "wow", "yes"),
)
LISTS = {"validation_list.txt": "validation", "testing_list.txt": "test"}


def gather(source: Source, options: PrepOptions) -> Gathered:
    """Name the clips of the chosen words, by default of the digits, by speaker and word.

    Args:
        source: The folder that holds the words' folders and the two lists, or the one around it.
        options: `subsets` are the words.

    Raises:
        InputError: If the source is no Speech Commands.
        MissingError: If a list or a word's folder is not there.
    """
    root = corpus_folder(
        source,
        names=("speech_commands_v0.02", "sc09"),
        holding=tuple(LISTS),
        remedy="Give the folder in which speech_commands_v0.02.tar.gz was unpacked.",
    )
    words = options.subsets or DIGITS
    if absent := [word for word in words if not source.exists(root + word)]:
        raise MissingError(f"source={source.address!r} holds no folder {', '.join(absent)}; unpack the corpus whole.")
    list_of = {line.strip(): name for name in LISTS for line in source.read_text(root + name).splitlines()}
    candidates = []
    for word in words:
        for file in source.files(root + word, suffixes=frozenset({".wav"})):
            clip = file.path.removeprefix(root)
            split = LISTS.get(list_of.pop(clip, ""), "train")
            name = printable(clip.removesuffix(".wav"))
            speaker = name.removeprefix(f"{word}/").partition("_nohash_")[0]
            candidates.append(Candidate(file.path, name, speaker, file.num_bytes, text=word, split=split))
    # What is left in the lists are the clips of other words, and those that are not there.
    missing = sorted(clip for clip in list_of if clip.partition("/")[0] in words)
    candidates.sort(key=lambda each: (each.speaker, each.path))
    return Gathered(candidates, [not_there(root + clip, list_of[clip]) for clip in missing])


CORPUS = Corpus(
    name="speech-commands",
    title="Speech Commands v0.02: single words in one-second clips, 16 kHz; by default the digits, known as SC09",
    gather=gather,
    licence="CC-BY-4.0",
    citation="Warden, Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition, arXiv:1804.03209, 2018",
    address="https://arxiv.org/abs/1804.03209",
    defaults={"sample_rate_hz": 16_000, "pad_to_seconds": 1.0},
    subsets=DIGITS + OTHER_WORDS,
    default_subsets=DIGITS,
    archives={
        "": (
            Archive(
                url="http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
                known_hash="sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
                num_bytes=2_428_923_189,
            ),
        )
    },
)
