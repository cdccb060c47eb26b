"""Imports go down only, for every pair of rooms, and what could run code from a file stands in one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "audio_ct").rglob("*.py"))
# From the ground up: a room may import from those before it, and from itself.
ROOMS = (
    ("errors",),
    ("device", "durable", "launch", "provenance", "html", "locks", "progress", "signals"),
    ("storage",),
    ("audio",),
    ("tokens",),
    ("corpora",),
    ("models",),
    ("strict_yaml", "recipe_files"),
    ("recipe",),
    ("record", "checkpoint"),
    ("pretrained",),
    ("sampling",),
    ("evaluation",),
    ("corpus_page",),
    ("training",),
    ("studies", "estimates"),
    ("recipe_draft", "publication"),
    ("api", "prep"),
    ("doctor", "mlflow_model", "serving", "watching"),
    ("corpus_commands", "model_commands", "preference_command", "recipe_commands", "track_commands"),
    ("cli",),
    ("__main__",),
)
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
# Beyond the floors: what a room must do without, although it lies below.
APART = {"models": {"audio", "tokens"}, "training": {"sampling", "evaluation"}, "sampling": {"training"}}
ARCHITECTURES = {f"audio_ct.models.{name}" for name in ("compressive_transformer", "gated_convolutions", "memory_cell")}
MAXIMUM_LINES = 400
# What reading `train` means: the files of the training loop and of all that is loaded with it.
CLOSURE_OF_TRAINING_FILES = 50
CLOSURE_OF_TRAINING_LINES = 7700
PUBLIC_NAMES = 10
# Modules of commands, which import nothing heavy at their top.
COMMANDS = (*("prep", "corpus_commands", "model_commands", "preference_command", "recipe_commands", "track_commands"),)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str:
    return name.split(".")[1]


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the names of imported modules; of `from a import b`, both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
OWN_IMPORTS = {name: {each for each in imports(tree) if each in TREES} for name, tree in TREES.items()}


@pytest.mark.parametrize("name", [name for name in TREES if name != "audio_ct"])
def test_imports_go_down(name: str) -> None:
    relative = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.ImportFrom) and node.level]
    assert relative == [], "imports are absolute"
    own = {each for each in OWN_IMPORTS[name] if each != "audio_ct"}
    room = room_of(name)
    wrong = {
        each
        for each in own
        if room_of(each) != room and (FLOORS[room_of(each)] >= FLOORS[room] or room_of(each) in APART.get(room, ()))
    }
    assert wrong == set()
    # To look into memories is to know the layer that has them.
    if room != "models" and name != "audio_ct.evaluation.memory_use":
        assert own & ARCHITECTURES == set(), "training, sampling and evaluation know no architecture by name"
    if room != "prep":
        assert not any(within(each, "data_prep") for each in imports(TREES[name]))


def test_no_module_imports_itself_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for following in sorted(OWN_IMPORTS[name] - {name, "audio_ct"}):
                visit(following, (*way, name))
            done.add(name)

    for name in sorted(TREES):
        visit(name, ())


def test_the_command_line_imports_nothing_heavy_at_its_top() -> None:
    bodies = [node for name in ("cli", *COMMANDS) for node in TREES[f"audio_ct.{name}"].body]
    top = ast.Module([node for node in bodies if isinstance(node, ast.Import | ast.ImportFrom)], [])
    light = ("audio_ct.errors", "audio_ct.launch", *(f"audio_ct.{name}" for name in COMMANDS))
    own = {each for each in imports(top) if within(each, "audio_ct")}
    assert {each for each in own if not any(within(each, one) for one in light)} == set()
    assert not any(within(each, heavy) for each in imports(top) for heavy in ("data_prep", "torch", "numpy", "librosa"))


def test_a_person_can_hold_it_in_mind() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {str(path): count for path, count in lines.items() if count > MAXIMUM_LINES} == {}
    closure: set[str] = set()
    waiting = ["audio_ct.training.loop"]
    while waiting:
        name = waiting.pop()
        if name not in closure:
            closure.add(name)
            body = ast.Module([node for node in TREES[name].body if isinstance(node, ast.Import | ast.ImportFrom)], [])
            waiting += {each for each in imports(body) if each in TREES} - {"audio_ct"}
    total = sum(lines[path] for path in MODULES if name_of(path) in closure)
    assert len(closure) <= CLOSURE_OF_TRAINING_FILES
    assert total <= CLOSURE_OF_TRAINING_LINES
    import audio_ct

    assert len(audio_ct.__all__) <= PUBLIC_NAMES


DANGEROUS = {
    "torch.load": set(),
    "yaml.load": {"audio_ct/strict_yaml.py"},
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


def test_data_prep_does_not_know_its_own_name() -> None:
    """In the wheel it is audio_ct.data_prep."""
    for path in (ROOT / "data_prep").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not any(within(each, "data_prep") for each in imports(tree)), path.name


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
