"""The `corpus` commands: what is done with token stores. Heavy imports happen inside commands."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from audio_ct.errors import InputError
from audio_ct.prep import Out, Overwrite, Store


class ShowByDefault(TyperGroup):
    """Commands of which `show` need not be named: `audio-ct corpus STORE` is `audio-ct corpus show STORE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `show` in front of what begins with no command."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["show", *args]
        return super().parse_args(ctx, args)


corpus = typer.Typer(cls=ShowByDefault, help="Look into token stores, and make others of them.", no_args_is_help=True)

StoreAddress = Annotated[str, typer.Argument(metavar="STORE", help="A token store: a folder, or s3://bucket/store.")]


@corpus.command()
def show(
    store: StoreAddress,
    verify: Annotated[bool, typer.Option("--verify", help="Read every shard and check its SHA-256.")] = False,
) -> None:
    """Show what a token store holds; `audio-ct corpus STORE` does the same."""
    from audio_ct.corpora.contents import describe
    from audio_ct.tokens.store import TokenStore

    opened = TokenStore.open(store)
    if verify:
        opened.verify()
    for line in describe(opened):
        print(line)
    print("every shard is what was written" if verify else "sizes are right; --verify reads every shard")


@corpus.command()
def export(
    store: StoreAddress,
    out: Out,
    name: Annotated[str | None, typer.Argument(help="Of a recording.")] = None,
    split: Annotated[str | None, typer.Option(help="The recording's, or the speaker's, split.")] = None,
    index: Annotated[
        int | None, typer.Option(help="The recording's place in --split, from 0, instead of NAME.")
    ] = None,
    speaker: Annotated[str | None, typer.Option(help="All recordings of a speaker; --out is a folder.")] = None,
    file_format: Annotated[str | None, typer.Option("--format", help="Of a speaker's files: wav, flac, ...")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write recordings as files again, such as `export STORE NAME --out file.wav`."""
    from audio_ct.corpora.export import export as export_one
    from audio_ct.corpora.export import export_speaker, find
    from audio_ct.locks import hold
    from audio_ct.tokens.store import TokenStore

    if [name, index, speaker].count(None) != 2 or (index is not None and split is None):
        raise InputError("name what to export: NAME, or --split and --index, or --speaker.")
    if file_format is not None and speaker is None:
        raise InputError(f"format={file_format!r} is about --speaker; of one recording, --out's suffix names it.")
    opened = TokenStore.open(store)
    if speaker is not None:
        with hold(out, name=f"--out {str(out)!r}"):
            its_files = export_speaker(opened, speaker, out, split=split, file_format=file_format, overwrite=overwrite)
        print(f"{len(its_files)} recordings: {out}")
        return
    if name is not None:
        split, index = find(opened, name, split)
    assert split is not None
    assert index is not None
    print(export_one(opened, split, index, out, overwrite=overwrite))


@corpus.command()
def merge(
    stores: Annotated[list[str], typer.Argument(metavar="STORE STORE...", help="Of the same rate and bits.")],
    out: Store,
    overwrite: Overwrite = False,
) -> None:
    """Put several stores into one, each recording in its split.

    What is in two splits stays only in the one that is held out more: test, then validation, then train.
    """
    from audio_ct.corpora.merging import merge as merge_all
    from audio_ct.tokens.store import TokenStore

    merged = merge_all([TokenStore.open(store) for store in stores], out, overwrite=overwrite)
    if merged.num_left_out:
        print(f"{merged.num_left_out} recordings were left out, which are in a split that is held out more")
    if merged.renamed:
        print("names clashed: each begins with its store's now")
    if several := merged.speakers_in_several_splits:
        shown = ", ".join(map(repr, several[:5])) + (", ..." if len(several) > 5 else "")
        print(f"warning: {len(several)} speakers are in several splits now: {shown}")
    print(f"token store: {merged.store.address}")


@corpus.command()
def subset(
    store: StoreAddress,
    out: Store,
    hours: Annotated[float | None, typer.Option(help="So much in all, every split by the same share.")] = None,
    speakers: Annotated[str | None, typer.Option(help="Only these, such as anna,ben.")] = None,
    split: Annotated[list[str] | None, typer.Option("--split", help="Only this one; may be repeated.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Put some recordings of a store into one of their own, chosen by a hash of their names."""
    from audio_ct.corpora.subsets import subset as choose
    from audio_ct.tokens.store import TokenStore

    chosen = choose(
        TokenStore.open(store),
        out,
        splits=split or (),
        speakers=speakers.split(",") if speakers is not None else (),
        hours=hours,
        overwrite=overwrite,
    )
    print(f"token store: {chosen.address}")


@corpus.command()
def page(store: StoreAddress, out: Out) -> None:
    """Draw what a store holds on a page: durations, levels, bandwidth, spectrum, tokens and their entropies."""
    from audio_ct.corpus_page import write_page
    from audio_ct.locks import hold
    from audio_ct.tokens.store import TokenStore

    opened = TokenStore.open(store)
    with hold(out, name=f"--out {str(out)!r}"):
        print(f"page: {write_page(opened, out)}")
