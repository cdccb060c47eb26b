"""Documents: what is linked is there, no path of a machine is in them, and the page of recipes has every key."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from audio_ct.recipe import Recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes" / "README.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there_on_the_git_host_too(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [name for name in targets if name and "://" not in name and not (page.parent / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_machines_folders(page: Path) -> None:
    assert re.findall(r"(?<![\w.~])/(?:tmp|root|home|work)/\S+", page.read_text("utf-8")) == []


def test_the_notebook_is_kept_without_what_it_printed() -> None:
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text("utf-8"))
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_the_reference_of_recipes_has_every_key() -> None:
    path = ROOT / "docs" / "site" / "recipe_reference.py"
    spec = importlib.util.spec_from_file_location("recipe_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.recipe_reference()

    def keys(schema: Any) -> set[str]:
        found = set()
        if isinstance(schema, dict):
            found |= set(schema.get("properties", ()))
            for part in schema.values():
                found |= keys(part)
        return found | {key for part in schema for key in keys(part)} if isinstance(schema, list) else found

    every_key = keys(Recipe.model_json_schema())
    assert len(every_key) > 80
    assert {key for key in every_key if f"| `{key}` |" not in page} == set()
    # A key's cells are its name, its values, its default and what it is.
    rows = [line.replace("\\|", "").split("|") for line in page.splitlines() if line.startswith("| `")]
    assert {row[1].strip(" `") for row in rows} == every_key
    assert [row[1] for row in rows if not row[4].strip()] == []
    assert "| `learning_rate` | number, above 0, at most 1,000 | **to be given** | The highest of the run. |" in page
    assert "Checked of several keys together: spikes are above the mean; schedule cuts no update." in page
