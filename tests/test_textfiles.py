"""Files that people give: regular ones only, read up to a limit, lines ended by line ends alone."""

import os
import re
import socket
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from narcli.checkpoints.load import load_tokenizer
from narcli.checkpoints.save import save_model
from narcli.errors import CheckpointError, UsageError
from narcli.media.textfiles import (
    check_regular,
    decode_text,
    expand,
    read_bytes,
    read_json,
    read_text,
    split_lines,
)  # fmt: skip
from narcli.models.vq import VQConfig, VQTokenizer
from narcli.order import Order
from narcli.runs.orders import write_orders


@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a socket", "a device"])
def test_what_is_no_regular_file_is_called_by_its_kind_without_waiting(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = tmp_path / "it"
    match kind:
        case "a folder":
            path.mkdir()
        case "a named pipe":
            os.mkfifo(path)
        case "a socket":
            socket.socket(socket.AF_UNIX).bind("it")
        case "a device":
            path.symlink_to("/dev/zero")
    for read in (check_regular, read_json, lambda p: read_bytes(p, 10, "x"), lambda p: read_text(p, "x")):
        with pytest.raises(CheckpointError, match=f"it is {kind}.*expected a file"):
            read(path)


def test_a_file_that_is_not_there_or_too_large_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"Could not read .*absent.*no such file"):
        check_regular(tmp_path / "absent")
    (tmp_path / "large").write_bytes(b"12345")
    assert read_bytes(tmp_path / "large", 5, "a test") == b"12345"
    with pytest.raises(CheckpointError, match="larger than 4 bytes, too large for a test"):
        read_bytes(tmp_path / "large", 4, "a test")


def test_text_is_utf_8_with_or_without_a_mark_and_errors_name_the_line(tmp_path):
    (tmp_path / "t").write_bytes(b"\xef\xbb\xbfcat\n")
    assert read_text(tmp_path / "t", "text") == "cat\n"
    assert decode_text("ä".encode(), "here") == "ä"
    with pytest.raises(CheckpointError, match=r"here is not UTF-8 text \(line 3\)"):
        decode_text(b"one\r\ntwo\rthr\xe4e\nfour", "here")
    with pytest.raises(CheckpointError, match=r"\(line 2\)"):
        decode_text(b"one\n\xe4", "here")
    with pytest.raises(CheckpointError, match="here is UTF-16 text"):
        decode_text("cat".encode("utf-16"), "here")


def test_only_line_ends_end_a_line():
    assert split_lines("a\nb\r\nc\rd") == ["a", "b", "c", "d"]
    assert split_lines("a\n\n") == ["a", ""] and split_lines("") == []
    odd = "a\fb\vc\x1cd\x85e\u2028f\u2029g"
    assert split_lines(odd + "\n") == [odd]


def test_json_is_an_object(tmp_path):
    path = tmp_path / "j"
    for text, message in (("[1]", "expected an object"), ("{", "not valid JSON"), ("[" * 10**5, "not valid")):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_json(path)
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_every_path_of_every_command_expands_the_home_folder():
    """A path is read by ``expand``, or is text that ``resolve`` or ``resolve_outputs`` reads."""
    from narcli.cli import app

    found = {}
    for typer_app, words in (
        (app, ""),
        *((group.typer_instance, group.name) for group in app.registered_groups),
    ):
        for command in typer_app.registered_commands:
            for name, value in get_type_hints(command.callback, include_extras=True).items():
                if re.search(r"pathlib\.(_local\.)?Path|PosixPath", str(value)):  # _local in Python 3.13
                    if not hasattr(value, "__metadata__"):  # Python 3.10 adds None to hints with that default
                        value = get_args(value)[0]
                    (info,) = [m for m in value.__metadata__ if hasattr(m, "parser")]
                    found[f"{words} {command.callback.__name__} {name}"] = info.parser
    assert len(found) >= 20 and all(parser is expand for parser in found.values()), found


def test_a_tilde_is_the_home_folder_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expand("~") == tmp_path and expand("~/a b") == tmp_path / "a b" and expand("a~/~") == Path("a~/~")
    assert expand(expand("./~/x")) == tmp_path / "~" / "x"
    with pytest.raises(UsageError, match="no such user"):
        expand("~nobody-of-this-name/x")
    for make in (
        lambda: save_model("~/made", tokenizer=VQTokenizer(VQConfig(32, (1, 1), 1, 32, codebook_size=16))),
        lambda: load_tokenizer("~/made"),
        lambda: write_orders([Order((2, 2))], "~/order.json", overwrite=False),
        lambda: write_orders([Order((2, 2))], "~/folder/", overwrite=False),
    ):
        make()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "made", "order.json"]
    with pytest.raises(UsageError, match="no such user"):
        write_orders([Order((2, 2))], "~nobody-of-this-name/", overwrite=False)
