"""narcli: run, see, measure and train next-neighbor autoregressive (NAR) image and video models."""

__version__ = "0.1.0"
