"""The documentation says what is so: help texts, tables, links, and the snippets run as written.

``python tests/test_docs.py`` writes the help texts and the tables of models and fields anew.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
from typer.main import get_command

import narcli
import test_order
from narcli import errors as errors_of_narcli
from narcli.cli import app
from narcli.cli.models import MAKES
from narcli.hub import catalog as registry
from narcli.media import schema
from narcli.order import named

ROOT = Path(__file__).parents[1]
SOURCE = Path(narcli.__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CLI, MODELS = ROOT / "docs" / "cli.md", ROOT / "docs" / "models.md"
REPEATING = ROOT / "docs" / "repeating.md"

HELP = re.compile(r"<!-- help:([\w -]*)-->\n```text\n(.*?)```\n", re.DOTALL)
TABLE = re.compile(r"(?<=<!-- models -->\n).*?(?=<!-- /models -->)", re.DOTALL)
FIELDS = re.compile(r"(?<=<!-- fields -->\n).*?(?=<!-- /fields -->)", re.DOTALL)
SNIPPET = re.compile(r"^```(sh|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def help_of(words):
    """What ``narcli WORDS --help`` prints on a terminal of 100 columns."""
    text = io.StringIO()
    with mock.patch.dict(os.environ, {"COLUMNS": "100"}), redirect_stdout(text):
        app([*words.split(), "--help"], prog_name="narcli", standalone_mode=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def commands(command=None, path=""):
    """The words of every command and group."""
    command = command or get_command(app)
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{path} {name}".strip())


def table_of_models():
    titles = ("name", "makes", "repository", "file", "to fetch, about", "tokenizer")
    lines = [titles, ("---",) * len(titles)]
    for row in registry.MODELS.values():
        what, note = MAKES[row.kind], row.note if row.repo else ""
        what += (" " if row.kind.endswith(("tokenizer", "encoder")) else ", " if note else "") + note
        repo = f"`{row.repo}`" if row.repo else "built in"
        file = f"`{row.file}`" if row.file else "only one" if row.repo else ""
        size = "nothing" if not row.repo else f"{row.size / 1e6:,.0f} MB" if row.size else "not known"
        tokenizer = f"`{row.tokenizer}`" if row.tokenizer else "" if row.repo else "its own"
        lines.append((f"`{row.name}`", what, repo, file, size, tokenizer))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def table_of_fields():
    flags = {"classes": "class", "prompt_file": "prompt-file"}
    lines = [("field", "what it says", "expected", "options that it stands for"), ("---",) * 4]
    for part, fields in schema.PARTS.items():
        lines.append((f"**{part}**", "", "", ""))
        for field in fields:
            options = " ".join(f"`--{flags.get(name, name).replace('_', '-')}`" for name in field.options)
            lines.append((f"`{field.name}`", field.about, field.rule[0], options))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def refresh():
    """Write what is generated anew."""
    text = HELP.sub(
        lambda found: f"<!-- help:{found[1]}-->\n```text\n{help_of(found[1])}```\n", CLI.read_text("utf-8")
    )
    CLI.write_text(text, "utf-8")
    MODELS.write_text(TABLE.sub(lambda _: table_of_models(), MODELS.read_text("utf-8")), "utf-8")
    REPEATING.write_text(FIELDS.sub(lambda _: table_of_fields(), REPEATING.read_text("utf-8")), "utf-8")


# --- what is generated ---------------------------------------------------------------------------


def test_every_command_has_its_help_text_in_the_reference():
    shown = {found[1].strip(): found[2] for found in HELP.finditer(CLI.read_text("utf-8"))}
    assert set(shown) == set(commands())
    for words, text in shown.items():
        # Releases of Typer break lines differently.
        assert "".join(text.split()) == "".join(help_of(words).split()), "run: python tests/test_docs.py"


def test_the_table_of_models_is_the_registry():
    found = TABLE.search(MODELS.read_text("utf-8"))
    assert found and found[0] == table_of_models(), "run: python tests/test_docs.py"


def test_the_table_of_fields_is_the_schema():
    found = FIELDS.search(REPEATING.read_text("utf-8"))
    assert found and found[0] == table_of_fields(), "run: python tests/test_docs.py"


def test_the_passes_of_orders_are_those_of_the_orders():
    page = (ROOT / "docs" / "orders.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w:]+)` \|(.*)\|(.*)\|(.*)\|$", page, re.MULTILINE)
    assert len(rows) == 8
    for name, *cells in rows:
        for side, cell in zip((16, 24, 32), cells, strict=True):
            if numbers := re.findall(r"\d+", cell):
                order = named(name, (side, side))
                assert [len(order.passes), order.cells][: len(numbers)] == list(map(int, numbers))


def test_the_exit_codes_are_listed():
    listed = set(map(int, re.findall(r"^\| (\d+) \|", CLI.read_text("utf-8"), re.MULTILINE)))
    errors = [kind for kind in vars(errors_of_narcli).values() if isinstance(kind, type)]
    assert listed == {0, 130, 143, *(error.exit_code for error in errors)} and len(errors) > 4


def test_every_promise_names_tests_that_exist():
    text = (ROOT / "docs" / "promises.md").read_text("utf-8")
    promises = re.findall(r"^- \*\*.*?(?=^- |^#|\Z)", text.split("## Errors")[0], re.MULTILINE | re.DOTALL)
    assert len(promises) == text.count("\n- **")
    for promise in promises:
        kept = re.findall(r"\(`(tests/\w+\.py)`: ((?:`test_\w+`(?:, )?)+)\)", promise)
        assert kept, promise
        for file, names in kept:
            there = set(re.findall(r"^def (test_\w+)", (ROOT / file).read_text("utf-8"), re.MULTILINE))
            assert set(re.findall(r"test_\w+", names)) <= there, promise


def test_the_numbers_of_classes_are_the_tables():
    from narcli.classes import load_table

    rows = load_table("emoji").rows
    stands = [[id for id in row.ids if id < 1000] for row in rows]
    page = " ".join((ROOT / "docs" / "builtin-models.md").read_text("utf-8").split())
    assert f"It has {len(rows)} classes" in page
    assert f"{sum(map(bool, stands))} classes stand for {sum(map(len, stands))} ImageNet ids" in page


# --- links ---------------------------------------------------------------------------------------


def anchors(page):
    titles = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text("utf-8")):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


# --- snippets ------------------------------------------------------------------------------------


def snippets():
    """Each once, whatever pages have it."""
    found = {
        snippet.groups(): f"{page.stem}-{number}"
        for page in reversed(PAGES)
        for number, snippet in enumerate(SNIPPET.finditer(page.read_text("utf-8")))
    }
    return [pytest.param(language, code, id=name) for (language, code), name in found.items()]


@pytest.fixture
def environment(tmp_path):
    """A ``narcli`` on the path, a home of its own, and no Hub."""
    bin = tmp_path / "bin"
    bin.mkdir()
    code = "import sys; from narcli.cli import main; sys.exit(main())"
    (bin / "narcli").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    (bin / "narcli").chmod(0o755)
    kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "LANG", "LC_ALL") if name in os.environ}
    return kept | {
        "PATH": os.pathsep.join([str(bin), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(SOURCE),
        "PYTHONIOENCODING": "utf-8",
        "HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }


@pytest.mark.skipif(shutil.which("sh") is None, reason="the snippets are for a POSIX shell")
@pytest.mark.parametrize(("language", "code"), snippets())
def test_snippets_run_as_written(language, code, environment, tmp_path):
    command = ["sh", "-euc", code] if language == "sh" else [sys.executable, "-c", code]
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_the_pattern_of_the_python_page_overwrites_nothing(environment, tmp_path):
    code = next(
        code
        for language, code in SNIPPET.findall((ROOT / "docs" / "python.md").read_text("utf-8"))
        if "save(" in code
    )
    assert "[207, 208," in code, "two breeds, for which one emoji stands"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    names = [path.name for path in tmp_path.glob("*.png")]
    assert len(names) == 6 and "nar-image_c208-Labrador_retriever_s1.png" in names


def test_the_order_of_the_contributing_page_has_the_properties_of_orders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("## Adding an order")[1]
    names = {}
    exec(SNIPPET.search(page)[2], names)
    for sizes in [(1, 1), (3, 4), (5, 2)]:
        order = names["columns"](sizes)
        for check in (
            test_order.test_every_order_decodes_every_cell_once_from_what_is_known,
            test_order.test_every_place_sees_itself_and_nothing_that_is_fed_later,
            test_order.test_predecessors_are_fed_by_the_pass_that_reads_them,
        ):
            check.hypothesis.inner_test(order)


# --- start-up ------------------------------------------------------------------------------------


def test_no_help_text_needs_a_heavy_import():
    code = (
        "import sys; from narcli.cli import app\n"
        f"for words in {list(commands())}:\n"
        "    app([*words.split(), '--help'], prog_name='narcli', standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'huggingface_hub', 'safetensors', 'rich'}\n"
        "print('IMPORTED', sorted(heavy & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.endswith("IMPORTED []\n")


if __name__ == "__main__":
    refresh()
