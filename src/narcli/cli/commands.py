"""The commands of ``narcli``.

A command is a function in a module of its own, registered here in one line; a group of commands is a
``typer.Typer`` there, added with ``app.add_typer(module.app, name=...)``. These modules import only
light things at module level (no torch, numpy, Pillow or huggingface_hub), so that ``--help`` is quick.
"""

from __future__ import annotations

from collections import Counter
from inspect import signature
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from ..errors import NarError, UsageError
from . import bench, classes, compare, decode, image, models, rerun, show, train, video, view, visualize_order
from .console import ARGUMENTS, fail


class _Commands(TyperGroup):
    """Group that reports the errors of all its commands; Typer reports its own usage errors."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (NarError, KeyboardInterrupt, MemoryError, BrokenPipeError, EOFError) as error:
            raise typer.Exit(fail(error)) from error
        except typer.BadParameter as error:  # newer Typers say "Invalid value: Value error, ..."
            error.message = error.message.removeprefix("Value error, ")
            raise


class _Command(TyperCommand):
    """Command that groups its options in the help, and refuses one that is given twice."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (row := parameter.get_help_record(ctx)) is not None:
                plain = "Arguments" if parameter.param_type_name == "argument" else "Options"
                last = "Behaviour" if parameter.name == "help" and "Behaviour" in panels else plain
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or last, []).append(row)
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option, times in Counter(given).items():
            if times > 1 and not (option.multiple or getattr(option, "is_flag", False)):
                name = max(option.opts, key=len)
                raise UsageError(
                    f"{name} is given {'twice' if times == 2 else f'{times} times'}, and takes one value.",
                    "Leave out all but one.",
                )
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="narcli",
    cls=_Commands,
    help="Run, see, measure, compare and train autoregressive image and video models: next-neighbor ones"
    " (NAR) and those that they are compared with.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich would double the start-up time
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 10_000,  # as wide as the terminal
    },
)

app.command("image")(image.image)
app.command("video")(video.video)
app.command("rerun")(rerun.rerun)
app.command("decode")(decode.decode)
app.command("show")(show.show)
app.command("view")(view.view)
app.command("bench")(bench.bench)
app.command("compare")(compare.compare)
app.command("visualize-order")(visualize_order.visualize_order)
app.command("classes")(classes.classes)
app.add_typer(models.app, name="models")
app.add_typer(train.app, name="train")
for _typer in (app, models.app, train.app):
    for _registered in _typer.registered_commands:
        _registered.cls = _Command
        assert _registered.callback is not None
        ARGUMENTS.update(signature(_registered.callback).parameters)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"narcli {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass
