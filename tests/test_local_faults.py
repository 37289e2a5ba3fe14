"""Faults of this machine and its user, met by the real command: signals, full disks, no memory, odd places.

Each: the documented exit code, one clear message, nothing under a final name that is not whole, nothing
temporary left but by SIGKILL, and the same command works afterwards.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from narcli.cli import app
from narcli.media.readers import read_metadata
from test_cli_image import ENVIRONMENT, MAIN, PROLOGUE, names
from test_faults import one_message

WORDS = ["--class", "dog", "--seed", "1", "--scale", "1", "-o", "a.png"]
WHOLE = ["a.png", "a_frontier.gif"]
PAUSE = """
import os, time
def pause(*_, **__):
    os.write(2, b"now\\n")
    time.sleep(300)
"""
#: Where in a run to stop, and what is written by then.
PHASES = {
    "import": (
        """
class Pausing:
    def find_spec(self, name, *_):
        if name == "torch":
            pause()
sys.meta_path.insert(0, Pausing())
""",
        [],
    ),
    "load": ("import narcli.checkpoints.load; narcli.checkpoints.load._fill = pause\n", []),
    "sampling": (
        """
import narcli.kernels.program
original = narcli.kernels.program.generate
def generate(*arguments, **options):
    for step in original(*arguments, **options):
        yield step
        pause()
narcli.kernels.program.generate = generate
""",
        [],
    ),
    # The data is in the temporary file, which has no final name yet.
    "writing": ("import narcli.media.atomic; narcli.media.atomic._move_to_free_name = pause\n", []),
    "frontier": ("import narcli.media.gif; narcli.media.gif.palette_frames = pause\n", ["a.png"]),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def start(code, *arguments, environment=None, **options):
    return subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + code + MAIN, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT | (environment or {}),
        **options,
    )


def works(folder, tiny, *more):
    """The same command, without the fault."""
    words = WORDS[:2] + WORDS[4:] if "--seed" in more else WORDS
    result = CliRunner().invoke(app, ["image", *words, "--model", str(tiny), *more])
    assert result.exit_code == 0, result.output
    for name in result.stdout.split():
        with Image.open(folder / name) as picture:
            picture.load()
    return result.stdout.split()


SAID = ("Terminated.\n", "Interrupted.\n")  # of other signals, of Ctrl-C


def until(process, words):
    """Read stderr up to the line that has those words."""
    while words not in (line := process.stderr.readline()):
        assert line, f"stderr ended before {words}"


def stop_in(phase, number, tiny, *more):
    """Run until the phase, send the signal; the exit code, stdout, and stderr from then on."""
    process = start(PAUSE + PHASES[phase][0], "image", *WORDS, "--model", tiny, *more)
    assert process.stderr.readline() == b"now\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    return process.returncode, out.decode().split(), err.decode()


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        *((phase, number) for phase in PHASES for number in (signal.SIGINT, signal.SIGHUP)),
        *(("writing", number) for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGXCPU, signal.SIGUSR1)),
        *(("writing", getattr(signal, name, 15)) for name in ("SIGVTALRM", "SIGRTMIN")),
    ],
)
def test_a_signal_in_any_phase_leaves_whole_files_only(phase, number, tiny, here):
    written, said = PHASES[phase][1], SAID[number == signal.SIGINT]
    assert stop_in(phase, number, tiny) == (128 + number, written, said)
    assert names(here) == written  # nothing temporary either
    assert all(read_metadata(here / name)["seed"] == 1 for name in written)
    assert len(works(here, tiny)) == 2


def test_every_signal_that_would_end_the_process_is_handled():
    code = """
from narcli.cli import signals
signals.catch()
left = [n for n in sorted(signal.valid_signals()) if signal.getsignal(n) == signal.SIG_DFL]
print(*(signal.Signals(n).name for n in left))
"""
    process = subprocess.run(
        [sys.executable, "-c", "import signal\n" + code], capture_output=True, text=True, check=True
    )
    harmless = {"SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGINFO"}
    faults = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS", "SIGEMT"}
    assert set(process.stdout.split()) <= harmless | faults | {"SIGKILL", "SIGSTOP"}


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_during_the_cleanup_changes_nothing(second, tiny, here):
    slow = """
import pathlib
original = pathlib.Path.unlink
def unlink(path, **options):
    os.write(2, b"cleaning\\n")
    time.sleep(1)
    original(path, **options)
pathlib.Path.unlink = unlink
"""
    process = start(PAUSE + slow + PHASES["writing"][0], "image", *WORDS, "--model", tiny)
    assert process.stderr.readline() == b"now\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == b"cleaning\n"
    for _ in range(3):
        process.send_signal(second)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, b"", b"Interrupted.\n")
    assert names(here) == []


@pytest.mark.parametrize(
    ("code", "number"),
    [
        # While the last words are said, and while Python shuts down.
        ("import narcli.cli.console as c; c._say = lambda text: (print(text, file=sys.stderr), pause())", 2),
        ("import atexit; atexit.register(pause)\n" + PHASES["writing"][0], 15),
    ],
)
def test_a_second_signal_at_the_end_changes_neither_words_nor_code(code, number, tiny):
    code = PAUSE.replace("300", "1") + code + "\n"
    process = start(code, "image", *WORDS, "--model", tiny if "atexit" in code else "nothing-here")
    lines = [process.stderr.readline()]
    if "atexit" in code:
        process.send_signal(number)
    while lines[-1] != b"now\n" or ("atexit" in code and lines.count(b"now\n") < 2):
        lines.append(process.stderr.readline())
    for _ in range(3):
        process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (143 if "atexit" in code else 2, b"", b"")
    assert b"Traceback" not in b"".join(lines)


LOST = {
    "in a destructor": """
class Dies:
    def __del__(self):
        pause()
import narcli.cli.commands
def load(*_, **__):
    Dies()
    time.sleep(300)
""",
    "by what catches everything": """
def load(*_, **__):
    try:
        pause()
    except BaseException:
        pass
    time.sleep(300)
""",
    "as another exception": """
def load(*_, **__):
    try:
        pause()
    except BaseException:
        pass
    raise ImportError("numpy.core.multiarray failed to import")
""",
}


@pytest.mark.parametrize("way", LOST)
def test_a_signal_whose_exception_is_lost_still_ends_the_run(way, tiny, here):
    code = PAUSE + LOST[way] + "import narcli.checkpoints.load; narcli.checkpoints.load._fill = load\n"
    process = start(code, "image", *WORDS, "--model", tiny)
    assert process.stderr.readline() == b"now\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (143, b"", b"Terminated.\n")
    assert names(here) == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_from_the_start_stays_so(number, tiny, here):
    """As nohup does, and shells for what runs in the background."""
    code = PAUSE.replace("300", "1") + "import narcli.media.atomic as w; plain = w._move_to_free_name\n"
    code += "w._move_to_free_name = lambda *names: (pause(), plain(*names))[1]\n"
    process = start(
        code, "image", *WORDS, "--model", tiny, preexec_fn=lambda: signal.signal(number, signal.SIG_IGN)
    )
    assert process.stderr.readline() == b"now\n"
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == 0 and names(here) == WHOLE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("module", ["typer", "typer.core", "narcli.cli.commands", "torch._C", "numpy"])
def test_a_signal_during_the_start_is_one_message(module, number, tiny, here):
    pausing = PHASES["import"][0].replace('"torch"', repr(module))
    process = start(PAUSE + pausing, "image", *WORDS, "--model", tiny)
    assert process.stderr.readline() == b"now\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    words = err.decode().replace("now\n", "")  # an import that catches everything is tried again
    assert (process.returncode, out, words) == (128 + number, b"", SAID[number == signal.SIGINT])
    assert names(here) == []


@pytest.mark.parametrize("again", [False, True], ids=["once", "again"])
@pytest.mark.parametrize("number", [signal.SIGHUP])
def test_a_signal_to_a_training_leaves_a_run_that_goes_on(number, again, here, tmp_path):
    """The first is heeded after the step, the second at once."""
    pictures = tmp_path / "pictures"
    for kind in ("a", "b"):
        (pictures / kind).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (16, 16), (60 * k, 0, 90)).save(pictures / kind / f"{k}.png")
    command = ["train", "tokenizer", pictures, "-o", here / "run", "--size", "16", "--steps", "6"]
    command += ["--channels", "32", "--multipliers", "1", "--codes", "16", "--batch-size", "2"]
    slow = "import narcli.training.tokenizer as t; plain = t.batch_indices\n"
    slow += "t.batch_indices = lambda *a: pause() if a[2] == 3 else plain(*a)\n"
    process = start((PAUSE if again else PAUSE.replace("300", "3")) + slow, *command)
    until(process, b"now")
    process.send_signal(number)
    until(process, b"Stopping after this step; once more stops at once.")
    if again:
        process.send_signal(number)
    _, err = process.communicate(timeout=240)
    assert (process.returncode, err.decode().splitlines()[-1]) == (128 + number, SAID[False].strip())
    assert not [path for path in here.rglob("*") if path.name.endswith(".part")]
    process = start("", *command)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err


def test_sigkill_in_mid_write_leaves_the_name_free_or_the_old_file(tiny, here):
    assert stop_in("writing", signal.SIGKILL, tiny) == (-signal.SIGKILL, [], "")
    (left,) = names(here)
    assert left.startswith(".narcli-") and left.endswith(".part")
    assert works(here, tiny) == WHOLE
    before = (here / "a.png").read_bytes()
    # With --overwrite the file is moved over the old one: stopped just before that.
    pausing = "import narcli.media.atomic as a\na.os = type('Os', (), {**vars(os), 'replace': pause})\n"
    words = [*WORDS[:2], *WORDS[4:], "--model", tiny, "--seed", "2", "--overwrite"]
    process = start(PAUSE + pausing, "image", *words)
    assert process.stderr.readline() == b"now\n"
    process.kill()
    process.communicate(timeout=120)
    assert (here / "a.png").read_bytes() == before
    assert works(here, tiny, "--seed", "2", "--overwrite") == WHOLE
    assert read_metadata(here / "a.png")["seed"] == 2


def test_a_disk_that_fills_in_mid_run_keeps_the_whole_pictures(tiny, here, disk):
    room = 60_000
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - room))
    words = ["--class", "dog", "--num", "100", "--batch-size", "10", "--seed", "1", "--frontier", "none"]
    process = start("", "image", *words, "--model", tiny, "-o", f"{disk}/")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1
    one_message(err.decode(), "Could not write", "the disk is full", "--output")
    written = sorted(out.decode().splitlines())
    assert 0 < len(written) < 100
    assert written == sorted(str(path) for path in disk.iterdir() if path.name != "ballast")
    for path in written:
        with Image.open(path) as picture:
            picture.load()
    (disk / "ballast").unlink()
    assert len(works(here, tiny)) == 2


# In MB: too little to load torch at all, and too little for the run once it is loaded.
@pytest.mark.parametrize(
    ("limit", "code"),
    [
        (400, ""),
        (None, "import torch, narcli.pipeline, narcli.runs.budget, PIL.Image, narcli.viz.frontier\n"),
    ],
)
def test_out_of_memory_exits_5(limit, code, tiny, here):
    limiting = f"""
import resource
{code}
now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
limit = {limit} * 10**6 if {limit} else now + 40 * 10**6
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""
    words = ["image", *WORDS, "--model", tiny, "--num", "4096", "--batch-size", "4096"]
    process = start(limiting, *words, environment={"OPENBLAS_NUM_THREADS": "1"})
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out, names(here)) == (5, b"", []), err
    one_message(err.decode(), "emory")
    assert len(works(here, tiny)) == 2


# --- places --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["classes", "classes --json", "image --help"])
def test_a_reader_that_goes_away_hears_nothing_more(command):
    narcli = f'"{sys.executable}" -c "{PROLOGUE.strip().replace(chr(10), ";")};{MAIN}" {command}'
    done = subprocess.run(
        ["sh", "-c", f"{{ {narcli}; echo code $? >&2; }} | head -1"],
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr in ("code 0\n", "code 1\n")  # 0 if all fitted into the pipe before head had gone


def test_a_closed_stdout_does_not_keep_files_from_being_written(tiny, here):
    process = start("", "image", *WORDS, "--model", tiny, "--quiet")
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(240) == 1  # the names reached nobody
    assert names(here) == WHOLE
    assert read_metadata(here / "a.png")["seed"] == 1


def test_there_may_be_no_home_folder(tiny, here, tmp_path):
    plain = {k: "" for k in ENVIRONMENT if k.startswith(("HF_", "XDG_", "NARCLI_"))}
    process = start(
        "import os; [os.environ.pop(k) for k in list(os.environ) if not os.environ[k]]\n",
        *("image", *WORDS, "--model", tiny, "--quiet"),
        environment=plain | {"HOME": str(tmp_path / "nobody")},
    )
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out.decode().split(), err) == (0, WHOLE, b"")
    assert not (tmp_path / "nobody").exists()
    without = start(
        # As for a user whom the system does not know: there is nothing to take for a home.
        "import os, pwd\nos.environ.pop('HOME', None)\nos.getuid = lambda: 4242424\n",
        *("models", "list"),
        environment=plain,
    )
    out, err = without.communicate(timeout=240)
    assert (without.returncode, out) == (1, b"")
    one_message(err.decode(), "no home folder", "HOME")


@pytest.mark.parametrize("utf", [True, False])
def test_paths_of_any_letters_in_any_locale(utf, tiny, here):
    odd = here / "a b ü 日本 \N{DOG FACE} 'q' $HOME %s"
    shutil.copytree(tiny, odd / "my model")
    words = ["image", "--class", "dog", "--seed", "1", "--frontier", "mp4", "--quiet"]
    words += ["--model", odd / "my model", "-o", odd / "ü ü" / "{seed} é.png"]
    locale = {"LC_ALL": "C.UTF-8"} if utf else {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = start("", *words, environment=locale)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, b"")
    paths = [Path(os.fsdecode(line)) for line in out.splitlines()]
    assert paths == [odd / "ü ü" / name for name in ("1 é.png", "1 é_frontier.mp4")]
    for path in paths:
        assert read_metadata(path)["seed"] == 1


def test_names_are_of_letters_that_the_file_system_can_write(here):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "from narcli.media.names import clean_name; open(clean_name('pi\\xf1ata'), 'w'); sys.exit()\n"
    process = start(code, environment=locale)
    assert (process.communicate(timeout=60)[1], process.returncode) == (b"", 0)
    assert names(here) == ["pi_ata"]


# --- hostile files -------------------------------------------------------------------------------


def test_a_short_run_of_the_fuzz_finds_nothing():
    script = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
    command = [sys.executable, script, "--checkpoints", "400", "--media", "200", "--jobs", "2"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["findings"] == 0 and said["loaded"] + said["refused"] == 600
    assert said["loaded"] > 30 and said["refused"] > 300  # neither all nor nothing
    assert said["ways"] > 80  # and not all by the first check
