"""A shop that signs bundles, and a machine that installs them, for tests."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.runtime.bundle import MANIFEST, Bundle, open_bundle
from edge.runtime.errors import UpdateError
from edge.update.install import Installed, Steps, install
from edge.update.keys import make_pair, read_public
from edge.update.release import sign_bundle
from edge.update.slots import Slots
from edge.update.source import Source, open_source
from tests.forging import forge_file, forge_manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

# Files of a bundle that are looked at here and read by no engine, so a few of them are as good as all.
FEW = ("config.json", "golden.npz")
CHANGED = "generation_config.json"  # differs from release to release; the weights do not


@dataclass(frozen=True)
class Shop:
    """Where releases are made."""

    folder: Path
    bundle: Path
    private: Path

    @classmethod
    def open(cls, folder: Path, bundle: Path) -> Shop:
        folder.mkdir(parents=True, exist_ok=True)
        private, few = folder / "release.key", folder / "few"
        few.mkdir()
        for name in (MANIFEST, CHANGED, *FEW):
            shutil.copy(bundle / name, few)
        forge_manifest(few, cls._shortened)
        make_pair(private)
        return cls(folder, few, private)

    @staticmethod
    def _shortened(manifest: dict[str, Any]) -> None:
        """A manifest that is read in no time."""
        name, tensor = next((name, one) for name, one in manifest["tensors"].items() if len(one["shape"]) == 2)
        files = {name: manifest["files"][name] for name in (CHANGED, *FEW)}
        manifest.update(files=files, tensors={name: tensor}, checks=[])

    @property
    def public(self) -> Path:
        return self.private.with_name("release.key.pub")

    @property
    def trusted(self) -> list[Ed25519PublicKey]:
        return [read_public(self.public)]

    def release(self, sequence: int, content: bytes | None = None) -> Path:
        """A signed bundle whose one small file says its number."""
        made = self.folder / f"release-{sequence}"
        shutil.copytree(self.bundle, made)
        forge_file(made, CHANGED, b'{"release": %d}' % sequence if content is None else content)
        sign_bundle(made, [self.private], sequence)
        return made


@dataclass
class Machine:
    """Where they are installed. Its self-test looks at every file, and fails on demand."""

    folder: Path
    shop: Shop
    tested: list[str] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    fails: set[int] = field(default_factory=set)  # releases whose self-test fails
    server_fails: set[int] = field(default_factory=set)  # that the server does not start with

    @property
    def slots(self) -> Slots:
        return Slots(self.folder)

    def install(self, source: Path | str | Source, *, retry: bool = False, tells: bool = False) -> Installed:
        given = open_source(str(source)) if isinstance(source, Path | str) else source
        steps = Steps(self.self_test, self.tell if tells else None)
        return install(self.folder, given, self.shop.trusted, steps, retry=retry)

    def self_test(self, bundle: Path) -> None:
        open_bundle(bundle).check_hashes()
        self.tested.append(bundle.name)
        if number_in(bundle) in self.fails:
            raise UpdateError("the self-test of the release failed with status 1: golden logits")

    def tell(self) -> None:
        number = self.current()
        if number in self.server_fails:
            raise UpdateError("the command 'systemctl' failed")
        self.told.append(number)

    def current(self) -> int:
        """The number of the bundle that is used, every file of which is looked at."""
        bundle = open_bundle(self.slots.link)
        bundle.check_hashes()
        release = self.slots.release(self.slots.current())
        assert release is not None
        assert release.sequence == number_of(bundle)
        return release.sequence


def number_of(bundle: Bundle) -> int:
    return number_in(bundle.path)


def number_in(folder: Path) -> int:
    return int(json.loads((folder / CHANGED).read_text())["release"])
