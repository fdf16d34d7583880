"""Python code of a model, run in a sandbox: no network, one folder of files, one process, limits on the rest."""

from edge.tools.python.limits import Limits
from edge.tools.python.tool import python_tool

__all__ = ["Limits", "python_tool"]
