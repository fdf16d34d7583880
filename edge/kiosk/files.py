"""All files of a kiosk's folder that are text.

In: the settings, the page's configuration, the system message. Out: name -> text. Knows nothing about where they are
written; the prefix, which takes a model, is made elsewhere.
"""

from __future__ import annotations

import json

from edge.kiosk import settings as names
from edge.kiosk.browser import browser_script
from edge.kiosk.readme import readme
from edge.kiosk.settings import KioskSettings
from edge.kiosk.units import Memory, browser_unit, server_unit
from edge.server.page_config import PageConfig


def texts(settings: KioskSettings, page: PageConfig, system: str, memory: Memory | None = None) -> dict[str, str]:
    """Return the files. memory: what a server like this one takes."""
    return {
        names.PAGE: json.dumps(page.to_json(), ensure_ascii=False, indent=2) + "\n",
        names.SYSTEM: system,
        names.SERVER_UNIT: server_unit(settings, memory),
        names.BROWSER_UNIT: browser_unit(settings),
        names.BROWSER_SCRIPT: browser_script(settings),
        names.README: readme(settings),
    }
