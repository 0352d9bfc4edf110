"""Models for the runtimes that serve them: written, verified there, and timed."""

from vitfold.exporting.export import export
from vitfold.exporting.report import Report

__all__ = ["Report", "export"]
