"""Tool calls of GLM-4-0414: as GLM-4-9B's, without its All Tools; the template takes tools as a variable.

The template of THUDM/GLM-4-9B-0414 writes a blank between the name of an earlier call and its newline, so its models
may do so too.
"""

from __future__ import annotations

from edge.runtime.tools.format import ToolFormat

GLM4_0414 = ToolFormat("glm-4-0414", pads_names=True)
