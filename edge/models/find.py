"""The one place that turns what a user typed for a bundle into its folder.

In: a path, or a name. Out: the folder, or an error of one line that says where was looked, and what names are alike.
Opens no bundle. A path works everywhere:

    ./glm4, a/glm4, C:\\glm4     a path, whatever is or is not there
    glm4                        the bundle ./glm4 if there is one, else the bundle of that name in the models folder
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from edge.models.config_file import models_folder
from edge.models.names import check_name, is_word, key_of
from edge.runtime.bundle import is_bundle
from edge.runtime.errors import BundleError, OutputError, shown
from edge.runtime.files import shown_path
from edge.runtime.rules import FilePath, check_value

_MANY, _FEW = 8, 3  # names in a message: of all, and of those that are alike
_ALIKE = 0.5  # of difflib


def find_bundle(given: str) -> Path:
    """Return the folder that is meant. Raises BundleError where a word is neither a path nor a name.

    Whether the folder is a bundle is found out when it is opened.
    """
    path = Path(check_value("bundle", FilePath(), given))
    if not is_word(given) or is_bundle(path):
        return path
    folder = models_folder()
    named = None if folder is None else _named(folder, given)
    if named is not None:
        return named
    if os.path.lexists(path):
        return path
    if folder is None:
        return path  # opening it says that there is none
    names = list(names_in(folder))
    if alike := _alike(given, names):
        hint = f"did you mean {', '.join(map(shown, alike))}? `edge list` shows all names"
    elif names:
        hint = f"there are {', '.join(map(shown, names[:_MANY]))}; `edge list` shows all names"
    else:
        hint = "no bundle has a name yet; make one with `edge export SOURCE NAME`"
    raise BundleError(f"{shown_path(given)}: no such path, and no bundle of that name in {shown_path(folder)}; {hint}")


def find_named(given: str) -> Path | None:
    """Return the folder of a bundle in the models folder; None if no bundle has that name."""
    folder = models_folder() if is_word(given) else None
    return None if folder is None else _named(folder, given)


def place_for(given: str) -> Path:
    """Return where a new bundle is to go: a path as it is, a word to the models folder.

    A word is a path, too, where a folder of that name is here already, and for a user without a models folder. Raises
    SettingsError for a word that cannot be a name, and OutputError for one that differs from another in case alone.
    """
    path = Path(check_value("out", FilePath(), given))
    if not is_word(given) or path.is_dir():
        return path
    folder = models_folder()
    if folder is None:
        return path
    name = check_name(given)
    for other in names_in(folder):
        if other != name and key_of(other) == key_of(name):
            raise OutputError(
                f"{shown(name)} and {shown(other)}, which is in {shown_path(folder)}, would be one name on some file "
                "systems; choose another"
            )
    return folder / name


def name_of(bundle: Path) -> str | None:
    """Return by what name a folder is found from anywhere; None for one outside the models folder."""
    folder = models_folder()
    if folder is None or os.path.realpath(folder) != os.path.realpath(bundle.parent):
        return None
    return bundle.name


def names_in(folder: Path) -> Iterator[str]:
    """Names of bundles, damaged ones included, in their order; none if the folder cannot be read."""
    try:
        found = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return
    yield from (name for name in found if is_bundle(folder / name) or (folder / name).is_symlink())


def _alike(given: str, names: list[str]) -> list[str]:
    """Return a few names that begin like this, or differ from it in some letters."""
    key = key_of(given)
    begin = [name for name in names if key_of(name).startswith(key)]
    close = get_close_matches(key, [key_of(name) for name in names], _FEW, _ALIKE)
    return list(dict.fromkeys([*begin, *(name for one in close for name in names if key_of(name) == one)]))[:_FEW]


def _named(folder: Path, given: str) -> Path | None:
    """Of two names that differ in case alone, which a copied folder may have, the very one is meant."""
    if is_bundle(folder / given):
        return folder / given
    found = [name for name in names_in(folder) if key_of(name) == key_of(given)]
    return folder / found[0] if len(found) == 1 else None
