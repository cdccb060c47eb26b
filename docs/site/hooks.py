"""What `mkdocs build` makes by itself: references from the code, an executed notebook, and a check of the result.

Nothing of it is kept in git, so that it cannot be out of date.
"""

import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

# Beside this file, which mkdocs sees to.
from recipe_reference import recipe_reference
from typer.cli import get_docs_for_click

ROOT = Path(__file__).parent.parent.parent
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
# Attributes by which a page loads something, as opposed to linking to it.
LOADING = {"script": "src", "img": "src", "iframe": "src", "audio": "src", "source": "src", "link": "href"}
ELSEWHERE = re.compile(r"^(https?:)?//")
# Of <link>, those that only name another page.
NAMING = {"canonical", "prev", "next", "alternate"}


# Whether the notebook is run: by a whole build, not by `mkdocs serve` or `mkdocs build --dirty` at each change.
is_whole = True


def on_startup(command: str, dirty: bool) -> None:
    """Note what is built."""
    global is_whole
    is_whole = command != "serve" and not dirty


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from code, or that stand outside of docs/."""
    made = {
        "reference/commands.md": command_reference(),
        "reference/recipe.md": recipe_reference(),
        "recipes.md": without_links((ROOT / "recipes" / "README.md").read_text("utf-8")),
        "contributing.md": without_links((ROOT / "CONTRIBUTING.md").read_text("utf-8")),
        "changelog.md": without_links((ROOT / "CHANGELOG.md").read_text("utf-8")),
        "notebook.md": executed_notebook(),
    }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def command_reference() -> str:
    """Every command with its options, from the commands themselves."""
    from audio_ct.cli import app

    command = typer.main.get_command(app)
    whole_summaries(command)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="audio-ct", title="Commands")
    ending = (
        "The exit status is 0 when all went well, 2 after a user's error, which is one line, and where a part of many "
        "failed, and 130 after Ctrl-C or SIGTERM. With `--debug` anywhere on the line an error is a traceback.\n\n"
    )
    return text.replace("**Usage**:", f"{ending}**Usage**:", 1)


def whole_summaries(command: Any) -> None:
    """Let lists of commands have the whole first sentence of each, which are cut off for terminals."""
    for inner in getattr(command, "commands", {}).values():
        inner.short_help = (inner.help or "").split("\n\n")[0].replace("\n", " ")
        whole_summaries(inner)


def without_links(text: str) -> str:
    """A page from outside of docs/, whose links lead to files that the site does not have; those to the web stay."""
    text = re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)
    # Markdown for Python wants a line between a paragraph and a list.
    return re.sub(r"^((?!- |  |#|\|)\S.*)\n(?=- )", r"\1\n\n", text, flags=re.MULTILINE)


def executed_notebook() -> str:
    """The notebook, run from its first cell to its last if the build is a whole one, as a page with its sounds."""
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import MarkdownExporter

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if is_whole:
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": folder}}).execute()
    exporter = MarkdownExporter()
    exporter.filters["indent"] = lambda text: f"```text\n{text.strip()}\n```"
    text, resources = exporter.from_notebook_node(notebook)
    if resources["outputs"]:
        raise PluginError(f"{NOTEBOOK.name} has pictures that are no HTML: {list(resources['outputs'])}")
    return text


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site of which a page loads anything from elsewhere."""
    faults = []
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        loaded = Loaded()
        loaded.feed(page.read_text("utf-8"))
        faults += [f"{page.name}: {address}" for address in loaded.addresses if ELSEWHERE.match(address)]
    for sheet in sorted(Path(config.site_dir).rglob("*.css")):
        found = re.findall(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')]+)", sheet.read_text("utf-8"))
        faults += [f"{sheet.name}: {address}" for address in found]
    if faults:
        raise PluginError("pages must load nothing from elsewhere:\n" + "\n".join(faults))


class Loaded(HTMLParser):
    """The addresses of all that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the address of an element that loads something."""
        values = dict(attrs)
        address = values.get(LOADING.get(tag, ""))
        if address and (values.get("rel") or "") not in NAMING:
            self.addresses.append(address)
