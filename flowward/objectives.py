"""The equations as functions on plain tensors, each from its algorithm's file."""

from .algorithms.advantageflow import advantageflow

__all__ = ["advantageflow"]
