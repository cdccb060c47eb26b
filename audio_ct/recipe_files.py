"""Recipe files: how they are found, by path or by the name of one that comes with the package."""

import difflib
import re
from pathlib import Path

from audio_ct.errors import MissingError

# A folder with it is a study: its other files are no whole recipes, but differences from it.
BASE_FILE = "base.yaml"
# Editors read it.
SCHEMA_LINE = "# yaml-language-server: "


def shipped_folder() -> Path:
    """The recipes that come with the package: within an installed one, in a checkout beside it."""
    package = Path(__file__).parent
    within = package / "recipes"
    return within if within.is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """The whole recipes that come with the package, by names such as demo/wavenet."""
    folder = shipped_folder()
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.yaml"))
        if path.name == BASE_FILE or not path.with_name(BASE_FILE).is_file()
    }


def find_recipe(path: Path) -> Path:
    """The recipe file that a path, or the name of a shipped recipe, stands for; a file goes before a name.

    Raises:
        MissingError: if there is neither, naming the nearest shipped recipe.
    """
    if path.is_file():
        return path
    known = shipped_recipes()
    if path.as_posix() in known:
        return known[path.as_posix()]
    asked = path.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    near = difflib.get_close_matches(asked, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else "`audio-ct recipes list` names the shipped ones."
    raise MissingError(f"recipe {str(path)!r} is not a file, and no shipped recipe has that name; {remedy}")


def find_study(folder: Path) -> Path:
    """The folder that a path, or the name of a shipped folder of recipes such as studies/rates, stands for.

    Raises:
        MissingError: if there is neither, naming the nearest shipped folder.
    """
    if folder.is_dir():
        return folder
    known = {name.rpartition("/")[0]: path.parent for name, path in shipped_recipes().items()}
    if folder.as_posix() in known:
        return known[folder.as_posix()]
    near = difflib.get_close_matches(folder.as_posix().removeprefix("recipes/"), known, n=1)
    remedy = f"did you mean {near[0]}?" if near else "name one with recipes in it."
    raise MissingError(f"study {str(folder)!r} is not a folder, and no shipped one has that name; {remedy}")


def description(text: str) -> str:
    """The first sentence of the comment on top of a recipe's text, without its full stop, or "".

    Example:
        >>> description("# Small. For a CPU.")
        'Small'
    """
    lines = []
    for line in text.splitlines():
        if line.startswith(SCHEMA_LINE):
            continue
        if not line.startswith("#") or not line.strip("# "):
            break
        lines.append(line.strip("# "))
    return re.split(r"(?<!al)\.(?= |$)", " ".join(lines), maxsplit=1)[0]
