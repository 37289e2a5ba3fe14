"""narcli: run, see, measure and train next-neighbor autoregressive (NAR) image and video models.

``narcli.load("emoji").images(classes=[207], seed=0)`` makes pictures; see ``narcli.pipeline``.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would delay the handlers of signals
if TYPE_CHECKING:
    from typing import Any

    from .pipeline import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """``narcli.load`` imports torch when it is first used, not before."""
    if name == "load":
        from .pipeline import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
