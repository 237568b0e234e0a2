"""A kernel without a native library, as many on the Hub are: its layers are Triton or plain torch."""

from . import layers

__all__ = ["layers"]
