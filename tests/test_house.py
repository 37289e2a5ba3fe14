"""How the source is laid out: imports point one way, and files stay readable."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import narcli
from narcli.cli import commands, console

SOURCE = Path(narcli.__file__).parent
FILES = {
    ".".join(("narcli", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}
#: Rooms from the ground up; a module imports from rooms on lower levels only, and from its own.
LEVELS = (
    {"errors", "endings", "allocator"},
    {"rules", "order", "classes", "devices", "limits", "textfiles", "atomic"},
    {"prompts"},
    {"settings"},
    {"media", "viz", "models"},
    {"sampling"},
    {"kernels"},
    {"records"},
    {"checkpoints"},
    {"hub"},
    {"encoding", "decoding", "memory"},
    {"outpaint"},
    {"results"},
    {"pipeline"},
    {"runs"},
    {"training"},
    {"bench"},
    {"cli"},
    {"__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
#: Two modules of ``media`` that everything may use.
GROUND = {"narcli.media.textfiles": "textfiles", "narcli.media.atomic": "atomic"}
#: The loop of a training, whose lines go to a log as well.
PRINTS = {"narcli.training.stop"}


def imports_of(name):
    """The modules of narcli that a module imports, wherever in it, type-checking imports included."""
    path, found = FILES[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parts, *(node.module or "").split(".")]).strip(".")
            found.update(
                f"{module}.{a.name}" if f"{module}.{a.name}" in FILES else module for a in node.names
            )
    return {other for other in found if other in FILES and other != name}


EDGES = {name: imports_of(name) for name in FILES}


def room(name):
    return GROUND.get(name) or (name.split(".")[1] if "." in name else "narcli")


def test_imports_point_downwards():
    upward = [
        f"{name} imports {other}"
        for name, others in EDGES.items()
        for other in others
        if room(name) != "narcli"  # which exports lazily what is above it
        and other != "narcli"
        and room(other) != room(name)
        and LEVEL[room(other)] >= LEVEL[room(name)]
    ]
    assert upward == []


def test_no_module_imports_itself_through_others():
    reached = defaultdict(set)
    for name in FILES:
        waiting = [other for other in EDGES[name] if FILES[other].name != "__init__.py"]
        while waiting:
            other = waiting.pop()
            if other not in reached[name]:
                reached[name].add(other)
                waiting += [more for more in EDGES[other] if FILES[more].name != "__init__.py"]
    assert [name for name in FILES if name in reached[name]] == []


def test_files_are_short_or_say_why_they_are_not():
    long = {
        path.relative_to(SOURCE).as_posix()
        for path in FILES.values()
        if len((text := path.read_text(encoding="utf-8")).splitlines()) > 400
        and "Longer than 400 lines" not in text[:1500]
    }
    assert long == set()


def test_the_top_level_has_at_most_sixteen_modules():
    assert len([path for path in SOURCE.glob("*.py") if not path.name.startswith("__")]) <= 16


def test_only_the_command_line_names_options_and_prints():
    """Messages below it write an argument as `name` or `name=value`, which ``cli.console`` spells."""
    named = []
    for name, path in FILES.items():
        if room(name) == "cli":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docs = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, nodes) and node.body
                and isinstance(node.body[0], ast.Expr)}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                text = re.sub(r"narcli [^`]*", "", node.value)
                if re.search(r"(^|[\s(\"'])--[a-z]{2}", text):
                    named.append(f"{name}:{node.lineno}: {node.value}")
            if isinstance(node, ast.Name) and node.id == "print" and name not in PRINTS:
                named.append(f"{name}:{node.lineno}: print")
    assert named == []


def test_every_argument_in_a_message_is_an_option_of_some_command():
    names = set()
    for path in FILES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                for text in filter(lambda text: isinstance(text, str), texts):
                    names.update(re.findall("`([a-z][a-z_]*)(?:=[^`]*)?`", text))
    assert commands.app and len(names) > 20
    assert names - console.ARGUMENTS == {"path"}  # of Python alone


def test_options_are_spelled_and_the_words_of_a_person_are_not():
    said = "`top_k` is 5. Use `classes=dog`, or `sheet`; `cat` and `narcli show` stay."
    spelled = "--top-k is 5. Use --class dog, or --grid; `cat` and `narcli show` stay."
    assert console._options(said) == spelled
