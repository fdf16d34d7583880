"""Manifests hold to Kubernetes' own schemas, and to what our server and the Dockerfile say.

A RayService is KubeRay's own kind, whose schema no package has: its pod templates are checked as Kubernetes' own, the
rest by a small schema of ours, and its Serve configuration by Ray's.
"""

from __future__ import annotations

import ast
import copy
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from edge.cli import build_parser
from edge.runtime.errors import SettingsError
from edge.runtime.extras import BROUGHT, brings
from edge.server.settings import ServerSettings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OLDEST, NEWEST = "1.29", "1.37"
SCHEMA = json.loads((Path(__file__).parent / "rayservice.schema.json").read_text(encoding="utf-8"))
PARTS = ("serve", "model-server", "ray")
KUBECTL = shutil.which("kubectl")
Manifest = dict[str, Any]  # Any: YAML


def manifests() -> dict[str, Manifest]:
    """Every document by its file."""
    return {
        path.relative_to(FOLDER).as_posix(): yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in sorted(FOLDER.rglob("*.yaml"))
    }


ALL = manifests()
RESOURCES = {name: one for name, one in ALL.items() if not name.endswith("kustomization.yaml")}
RAY = RESOURCES["ray/rayservice.yaml"]


def templates(manifest: Manifest) -> Iterator[Manifest]:
    """Pod templates."""
    if manifest["kind"] == "RayService":
        cluster = manifest["spec"]["rayClusterConfig"]
        yield from (group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]))
    elif manifest["kind"] == "Deployment":
        yield manifest["spec"]["template"]


def as_pod(template: Manifest) -> Manifest:
    metadata = {"name": "x", **template.get("metadata", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


PODS = [(name, as_pod(template)) for name, one in RESOURCES.items() for template in templates(one)]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", sorted(RESOURCES.keys() - {"ray/rayservice.yaml"}))
def test_manifests_hold_to_kubernetes_schemas(name: str, version: str) -> None:
    kubernetes_validate.validate(RESOURCES[name], version, strict=True)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(("name", "pod"), PODS, ids=[name for name, _ in PODS])
def test_pods_hold_to_kubernetes_schemas(name: str, pod: Manifest, version: str) -> None:
    kubernetes_validate.validate(pod, version, strict=True)


def test_a_wrong_pod_is_found() -> None:
    pod = copy.deepcopy(PODS[0][1])
    pod["spec"]["containers"][0]["readinessprobe"] = pod["spec"]["containers"][0].pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, NEWEST, strict=True)


def test_the_ray_service_holds_to_what_kuberay_reads() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(RAY, SCHEMA)
    for path, value in (
        (("spec", "rayclusterConfig"), {}),
        (("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams"), {"num-cpus": 0}),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "minReplicas"), "1"),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "minReplica"), 1),
    ):
        wrong = copy.deepcopy(RAY)
        place: Any = wrong  # Any: YAML
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


@pytest.mark.slow
def test_ray_takes_the_serve_configuration() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="ray is not installed")
    (application,) = schema.ServeDeploySchema.parse_obj(yaml.safe_load(RAY["spec"]["serveConfigV2"])).applications
    assert application.import_path == "edge.server.ray:app"
    from edge.server.ray import app

    app(application.args)
    with pytest.raises(SettingsError, match="no argument of this application"):
        app({**application.args, "replica": 2})
    cluster = RAY["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_ray_is_of_the_extras_bounds_and_reports_to_nobody() -> None:
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"ray[serve]>={RAY['spec']['rayClusterConfig']['rayVersion'].rpartition('.')[0]}" in extras
    for template in templates(RAY):
        (container,) = template["spec"]["containers"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]


@pytest.mark.parametrize(("name", "pod"), PODS, ids=[name for name, _ in PODS])
def test_pods_have_no_rights(name: str, pod: Manifest) -> None:
    """Those of the Dockerfile's user, and less."""
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    user = "5000" if name.startswith("model-server") else "10001"
    assert str(spec["securityContext"]["runAsUser"]) == user
    assert user == "5000" or f"USER {user}" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for container in spec["containers"]:
        rights = container["securityContext"]
        assert (rights["allowPrivilegeEscalation"], rights["capabilities"]) == (False, {"drop": ["ALL"]})
        assert rights.get("readOnlyRootFilesystem", False) is not name.startswith("model-server")
        assert {"readinessProbe", "livenessProbe", "resources"} <= container.keys()
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize(("name", "pod"), PODS, ids=[name for name, _ in PODS])
def test_what_is_named_is_there(name: str, pod: Manifest) -> None:
    spec = pod["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    claims = {one["metadata"]["name"] for one in RESOURCES.values() if one["kind"] == "PersistentVolumeClaim"}
    assert {
        volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "persistentVolumeClaim" in volume
    } <= claims
    for container in spec["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container and isinstance(container[probe]["httpGet"]["port"], str):
                assert container[probe]["httpGet"]["port"] in ports


@pytest.mark.parametrize("part", ["serve", "model-server"])
def test_a_service_leads_to_its_pods(part: str) -> None:
    deployment, service = RESOURCES[f"{part}/deployment.yaml"], RESOURCES[f"{part}/service.yaml"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]
    ports = {port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_our_server_takes_the_arguments() -> None:
    """After those of the Dockerfile, whose bundle and key are where the volumes are."""
    (line,) = [
        line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if line.startswith("ENTRYPOINT")
    ]
    _, *first = json.loads(line.removeprefix("ENTRYPOINT "))
    (container,) = RESOURCES["serve/deployment.yaml"]["spec"]["template"]["spec"]["containers"]
    given = build_parser().parse_args([*first, *container["args"]])
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {given.bundle, given.api_key_file} <= mounts
    assert ServerSettings().port == container["ports"][0]["containerPort"]
    assert RESOURCES["serve/service.yaml"]["metadata"]["name"] in container["args"], "clients use the service's name"


def images() -> dict[str, set[str]]:
    """The images that printed commands build -> the extras in them."""
    files = (ROOT / "Dockerfile", ROOT / "docs" / "scaling-out.md", FOLDER / "ray" / "rayservice.yaml")
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    (usual,) = re.findall(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)
    found: dict[str, set[str]] = {}
    for extras, image in re.findall(r"docker build (?:--build-arg EXTRAS=(\S+) )?-t (\S+) \.", text):
        built = set((extras or usual).split(","))
        assert found.setdefault(image, built) == built, f"{image} is built in two ways"
    return found


def imported(*folders: str) -> set[str]:
    """Packages of extras that modules of ours import, wherever they do."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for folder in folders for path in (ROOT / folder).glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    named = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    named |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in named} & {module for modules in BROUGHT.values() for module in modules}


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("serve/deployment.yaml", ("edge/server",)),
        ("ray/rayservice.yaml", ("edge/server", "edge/server/ray")),
    ],
)
def test_images_have_what_their_pods_import(name: str, folders: tuple[str, ...]) -> None:
    """And each is one that a printed command builds, of this release."""
    kustomization = ALL[f"{name.partition('/')[0]}/kustomization.yaml"]
    tags = {one["name"]: one["newTag"] for one in kustomization.get("images", [])}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    needed = imported(*folders)
    assert "starlette" in needed
    assert ("ray" in needed) is name.startswith("ray")
    for template in templates(RESOURCES[name]):
        (container,) = template["spec"]["containers"]
        image, _, tag = container["image"].partition(":")
        assert (tag or tags[image]).partition("-")[0] == version
        extras = images()[container["image"]]
        missing = {module for module in needed if not any(brings(extra, module) for extra in extras)}
        assert not missing, f"{container['image']} is built with {sorted(extras)}"
        assert {"onnx", "openvino"} <= extras, "a bundle may have the files of either engine"


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not here")
@pytest.mark.parametrize("part", PARTS)
def test_kustomize_builds_it(part: str) -> None:
    assert KUBECTL is not None
    done = subprocess.run([KUBECTL, "kustomize", str(FOLDER / part)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    listed = [name for name in RESOURCES if name.startswith((f"{part}/", "bundles/"))]
    assert sorted(one["kind"] for one in built) == sorted(RESOURCES[name]["kind"] for name in listed)
    for one in built:
        for template in templates(one):
            image = template["spec"]["containers"][0]["image"]
            assert ":" in image, f"{image} is of no release"
            assert not image.endswith(":latest")
