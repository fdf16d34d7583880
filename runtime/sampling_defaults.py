"""The sampling that a model's makers recommend, from its generation_config.json.

In: the text of the file. Out: a `Sampling`. Fields that do not say how to sample are left alone, and so are values that
cannot be used. Names and meanings: GenerationConfig of huggingface/transformers 4.57.6, where sampling is off unless
`do_sample` is true.
"""

from __future__ import annotations

import logging

from edge.runtime.errors import EXPORT_AGAIN, BundleError, SettingsError
from edge.runtime.json_reader import parse_json
from edge.runtime.settings import Sampling

_WHEN_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_ALWAYS = ("repetition_penalty",)

logger = logging.getLogger(__name__)


def recommended_sampling(generation_config: str | None) -> Sampling:
    """Return it as a `Sampling`; greedy if there is none. Raises BundleError for text that is not JSON."""
    values = parse_json(generation_config or "{}", "generation_config.json", BundleError, EXPORT_AGAIN)
    if not isinstance(values, dict):
        return Sampling()
    names: tuple[str, ...] = _ALWAYS
    chosen: dict[str, object] = {}
    if values.get("do_sample") is True:
        names, chosen = (*_WHEN_SAMPLING, *_ALWAYS), {"temperature": 1.0}
    for name in names:
        value = values.get(name)
        if value is None:
            continue
        try:
            Sampling(**{name: value})
        except SettingsError as error:
            logger.warning("generation_config.json: %s; it is left out", error)
        else:
            chosen[name] = value
    return Sampling(**chosen)  # type: ignore[arg-type]  # each was checked
