"""The commands of ``narcli``.

A command is a function in a module of its own, registered here in one line; a group of commands is a
``typer.Typer`` there, added with ``app.add_typer(module.app, name=...)``. These modules import only
light things at module level (no torch, numpy, Pillow or huggingface_hub), so that ``--help`` is quick.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import NarError
from . import bench, classes, decode, image, models, rerun, show, train, video, visualize_order
from .console import fail


class _Commands(TyperGroup):
    """Reports the errors of every command below; Typer reports usage errors of its own."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (NarError, KeyboardInterrupt, MemoryError, BrokenPipeError) as error:
            raise typer.Exit(fail(error)) from error
        except typer.BadParameter as error:  # newer Typers say "Invalid value: Value error, ..."
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    name="narcli",
    cls=_Commands,
    help="Run, see, measure and train next-neighbor autoregressive (NAR) image and video models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich would double the start-up time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("image")(image.image)
app.command("video")(video.video)
app.command("rerun")(rerun.rerun)
app.command("decode")(decode.decode)
app.command("show")(show.show)
app.command("bench")(bench.bench)
app.command("visualize-order")(visualize_order.visualize_order)
app.command("classes")(classes.classes)
app.add_typer(models.app, name="models")
app.add_typer(train.app, name="train")


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
