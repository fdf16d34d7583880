"""Search, open and quote documents of a local folder, as GLM-4's `simple_browser` does with web pages."""

from edge.tools.browser.library import LibraryLimits
from edge.tools.browser.session import Browser, Citation
from edge.tools.browser.tool import browser_tool

__all__ = ["Browser", "Citation", "LibraryLimits", "browser_tool"]
