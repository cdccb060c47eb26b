"""Imports go down only, and what could run code from a file stands in one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "audio_ct").rglob("*.py"))
GROUND = {"audio", "tokens", "models"}
UPPER = {"training", "sampling", "evaluation"}
ARCHITECTURES = {"audio_ct.models.compressive_transformer", "audio_ct.models.wavenet"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the full names of imported modules; of `from a import b`, both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name, imported = name_of(path), set(imports(tree))
    part = path.relative_to(ROOT / "audio_ct").parts[0]
    own = {each for each in imported if within(each, "audio_ct")} - {"audio_ct"}
    if part in GROUND:
        allowed = ("audio_ct.errors", "audio_ct.durable", f"audio_ct.{part}")
        assert {each for each in own if not any(within(each, one) for one in allowed)} == set()
    if name in ("audio_ct.errors", "audio_ct.durable"):
        assert own == set()
    if part in UPPER:
        forbidden = (*ARCHITECTURES, "audio_ct.studies", "audio_ct.cli", "data_prep")
        assert {each for each in imported if any(within(each, one) for one in forbidden)} == set()
    if part == "studies":
        assert not any(within(each, one) for each in imported for one in ARCHITECTURES)
    if name != "audio_ct.cli":
        assert not any(within(each, "data_prep") for each in imported)
        assert name == "audio_ct.__main__" or not any(within(each, "audio_ct.cli") for each in imported)


def test_the_command_line_imports_nothing_heavy_at_its_top() -> None:
    tree = ast.parse((ROOT / "audio_ct/cli.py").read_text(encoding="utf-8"))
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert {each for each in imports(top) if within(each, "audio_ct") and not within(each, "audio_ct.errors")} == set()
    assert not any(within(each, heavy) for each in imports(top) for heavy in ("data_prep", "torch", "numpy", "librosa"))


def test_no_module_imports_itself_in_a_circle() -> None:
    names = {name_of(path): set(imports(ast.parse(path.read_text(encoding="utf-8")))) for path in MODULES}
    edges = {name: {each for each in imported if each in names} - {name} for name, imported in names.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for following in sorted(edges[name]):
                visit(following, (*way, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())


DANGEROUS = {
    "torch.load": {"audio_ct/training/checkpoint.py"},
    "yaml.load": {"audio_ct/recipe.py"},
    "yaml.unsafe_load": set(),
    "yaml.full_load": set(),
    "pickle.load": set(),
    "pickle.loads": set(),
    "np.load": set(),
    "joblib.load": set(),
    "eval": set(),
    "exec": set(),
    "os.system": set(),
}


def test_what_could_run_code_from_a_file_stands_in_one_place() -> None:
    found: dict[str, set[str]] = {name: set() for name in DANGEROUS}
    for path in [*MODULES, *(ROOT / "data_prep").rglob("*.py")]:
        where = str(path.relative_to(ROOT))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in found:
                found[ast.unparse(node.func)].add(where)
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"extractall", "extract"}, where
        if any(within(each, module) for each in imports(tree) for module in ("pickle", "dill", "marshal", "shelve")):
            pytest.fail(f"{where} imports a pickle")
    assert found == DANGEROUS
