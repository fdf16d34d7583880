"""Every setting of the replicas: its default, its bounds, its purpose.

In: values from a command line or a Serve config. Out: a frozen record. Knows nothing about Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.runtime.rules import Flag, Settings, Text, Whole, setting

SHELF = "shelf"  # in place of a URL to fetch from: the machine of the command that started the replicas


@dataclass(frozen=True, slots=True)
class RaySettings(Settings):
    """How many replicas there are, and what becomes of answers when one is lost. Raises SettingsError."""

    replicas: int = setting(1, Whole(1, 10_000), "replicas of the model, each with an engine of its own")
    resume_streams: bool = setting(
        False, Flag(), "go on with a stream on another replica when its own is lost, in place of ending it"
    )
    by_prefix: bool = setting(True, Flag(), "send what begins alike to the same replica")
    name: str = setting("edge", Text(), "name of the application on the cluster")
