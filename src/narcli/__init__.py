"""narcli: run, see, measure and train next-neighbor autoregressive (NAR) image and video models.

``narcli.load("emoji").images(classes=[207], seed=0)`` makes pictures in memory;
``for event in narcli.run(narcli.Recipe(classes="dog")): ...`` writes files, as the commands do.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would delay the handlers of signals
if TYPE_CHECKING:
    from .errors import NarError as NarError
    from .order import Order as Order
    from .pipeline import Pipeline as Pipeline
    from .pipeline import load as load
    from .records import Record as Record
    from .results import Result as Result
    from .runs.recipe import Recipe as Recipe
    from .runs.run import run as run

__version__ = "0.1.0"
__all__ = ["NarError", "Order", "Pipeline", "Recipe", "Record", "Result", "__version__", "load", "run"]

_HOMES = {
    "NarError": "errors",
    "Order": "order",
    "Pipeline": "pipeline",
    "Recipe": "runs.recipe",
    "Record": "records",
    "Result": "results",
    "load": "pipeline",
    "run": "runs.run",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used; ``load``, ``Pipeline`` and ``Result`` import torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
