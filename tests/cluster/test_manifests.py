"""Example manifests against KubeRay's own schemas, and the Slurm script by its syntax.

The schemas belong to KubeRay: STEERWAY_KUBERAY_CRDS names a folder with its CRDs (ray.io_rayclusters.yaml, ...).
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from control_plane.api.head_variables import HEAD_VARIABLES
from tests.architecture.tree import ROOT

CRDS = os.environ.get("STEERWAY_KUBERAY_CRDS")
EXAMPLES = ROOT / "examples"
MANIFESTS = {"RayCluster": "raycluster.yaml", "RayJob": "rayjob.yaml"}


def schema_of(kind: str) -> dict[str, Any]:
    """The schema of a kind's version v1, strict: an unknown field would be dropped without a word."""
    assert CRDS is not None
    crd = yaml.safe_load((Path(CRDS) / f"ray.io_{kind.lower()}s.yaml").read_text())
    (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if found.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
    keeps = found.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(found.get("properties"), dict) and "additionalProperties" not in found and not keeps:
        found["additionalProperties"] = False
    return found


def manifest(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / "kuberay" / MANIFESTS[kind]).read_text())
    return found


@pytest.mark.skipif(CRDS is None, reason="STEERWAY_KUBERAY_CRDS names no folder with KubeRay's CRDs")
@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifests_fit_the_schemas_of_kuberay(kind: str) -> None:
    validator = Draft202012Validator(schema_of(kind))
    found = manifest(kind)
    assert found["kind"] == kind
    assert [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(found)] == []
    planted = found | {"spec": found["spec"] | {"rayVersoin": "2.60.0"}}
    assert not validator.is_valid(planted)


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifests_set_the_variables_that_a_head_should_have(kind: str) -> None:
    spec = manifest(kind)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        environ = {variable["name"]: variable["value"] for variable in container["env"]}
        wanted = {one.name: one.value for one in HEAD_VARIABLES if one.value != one.default}
        assert wanted.items() <= environ.items()
        assert environ["STEERWAY_HOME"].startswith(container["volumeMounts"][0]["mountPath"])


def test_the_slurm_script_is_one_that_bash_can_parse_and_sets_the_variables() -> None:
    script = EXAMPLES / "slurm" / "train.sbatch"
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = script.read_text()
    assert all(f"{one.name}={one.value}" in text for one in HEAD_VARIABLES if one.value != one.default)
