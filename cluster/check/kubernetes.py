"""Check Kubernetes manifests, the values of Qdrant's chart and Ray's cluster launcher file.

Beyond the schemas, in the manifests: each container declares its resources, drops privileges and takes keys from secrets, what
it mounts is there, the jobs accept the run's YAML, and Ray Serve accepts the service's config. A secret that manifests or chart
values name is one that docs/kubernetes.md makes. The launcher file starts Ray with a token.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from cluster.check.schemas import custom_mistakes, kubernetes_mistakes
from jobs.config import load_config
from refbert.errors import InputError

MADE_BY_HAND = {"ray-token", "redis", "qdrant-keys", "qdrant-tls", "service-keys"}
"""Secrets that docs/kubernetes.md tells the user to create."""

CUSTOM_GROUPS = ("ray.io/", "monitoring.coreos.com/")
SECRET_NAME = re.compile(r"KEY|TOKEN|PASSWORD|SECRET")
SECRET_ARGUMENT = re.compile(rf'--[\w-]+[= ]"?\$[{{(]?\w*({SECRET_NAME.pattern})')
RUN_FILE = "/etc/refbert/run.yaml"


def documents(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read every document of a folder's YAML files, each with the file's name."""
    found = []
    for path in sorted(folder.glob("*.yaml")):
        found += [(path.name, document) for document in yaml.safe_load_all(path.read_text()) if document]
    return found


def manifest_mistakes(folder: Path) -> list[str]:
    """Check every manifest of a folder, and the references between them."""
    every = documents(folder)
    found = []
    for name, document in every:
        where = f"{name}: {document.get('kind')} {document.get('metadata', {}).get('name')}"
        is_custom = str(document.get("apiVersion", "")).startswith(CUSTOM_GROUPS)
        schema = custom_mistakes(document["kind"], document) if is_custom else kubernetes_mistakes(document)
        found += [f"{where}: {mistake}" for mistake in schema]
        if not schema:
            claims = {claim["metadata"]["name"] for claim in document.get("spec", {}).get("volumeClaimTemplates", ())}
            found += [f"{where}: {mistake}" for pod in pods(document) for mistake in pod_mistakes(pod, claims)]
            found += [f"{where}: {mistake}" for mistake in reference_mistakes(document, every)]
    return [*found, *run_mistakes(every)]


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod specification anywhere below a node of a document."""
    if isinstance(node, dict):
        if isinstance(node.get("containers"), list):
            yield node
        for child in node.values():
            yield from pods(child)
    elif isinstance(node, list):
        for child in node:
            yield from pods(child)


def pod_mistakes(pod: dict[str, Any], claims: set[str]) -> Iterator[str]:
    """Check a pod by this project's rules; `claims` are the volumes that its StatefulSet provides."""
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "securityContext wants runAsNonRoot: true and seccompProfile RuntimeDefault"
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    for container in pod["containers"]:
        name = container["name"]
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= resources.get("requests", {}).keys() or "memory" not in resources.get("limits", {}):
            yield f"{name} wants requests of cpu and memory, and a limit of memory"
        limits = container.get("securityContext", {})
        if limits.get("allowPrivilegeEscalation") is not False or limits.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name} wants allowPrivilegeEscalation: false and capabilities dropped"
        if container["image"].endswith(":latest") or ":" not in container["image"]:
            yield f"{name} wants an image with a version, not {container['image']}"
        if name != "submitter" and not {"livenessProbe", "readinessProbe"} <= container.keys():
            yield f"{name} wants a liveness and a readiness probe"
        for variable in container.get("env", ()):
            if SECRET_NAME.search(variable["name"]) and "value" in variable:
                yield f"{name}: {variable['name']} stands in the file; take it from a secret"
        if SECRET_ARGUMENT.search(" ".join((*container.get("command", ()), *container.get("args", ())))):
            yield f"{name} gives a secret to its process as an argument, which every listing of processes shows"
        missing = {mount["name"] for mount in container.get("volumeMounts", ())} - volumes
        if missing - claims:
            yield f"{name} mounts {', '.join(sorted(missing))}, which the pod does not have"


def reference_mistakes(document: dict[str, Any], every: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """Check that the secrets, ConfigMaps and claims that a document names exist, and the cluster of a RayJob."""
    made = {(other["kind"], other["metadata"]["name"]) for _, other in every}
    text = json.dumps(document)
    secrets = re.findall(r'"(?:secretKeyRef|credentials|secret)": {"name": "([^"]+)"', text)
    secrets += re.findall(r'"secretName": "([^"]+)"', text)
    for name in sorted(set(secrets) - MADE_BY_HAND):
        yield f"names the secret {name}, which docs/kubernetes.md does not make"
    for name in sorted(set(re.findall(r'"configMap": {"name": "([^"]+)"', text))):
        if ("ConfigMap", name) not in made:
            yield f"names the ConfigMap {name}, which no manifest makes"
    for name in sorted(set(re.findall(r'"claimName": "([^"]+)"', text))):
        if ("PersistentVolumeClaim", name) not in made:
            yield f"names the claim {name}, which no manifest makes"
    if document["kind"] == "RayJob":
        cluster = document["spec"].get("clusterSelector", {}).get("ray.io/cluster")
        if ("RayCluster", cluster) not in made:
            yield f"runs on the RayCluster {cluster}, which no manifest makes"


def run_mistakes(every: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """Check the run's YAML as jobs and service read it, with their overrides, and the service's config as Ray Serve does."""
    runs = [(name, other["data"]["run.yaml"]) for name, other in every if "run.yaml" in other.get("data", ())]
    if len(runs) != 1:
        yield f"{len(runs)} ConfigMaps have a run.yaml, wanted one"
        return
    (file, run) = runs[0]
    users = [(name, other) for name, other in every if other["kind"] in ("RayJob", "RayService")]
    if refused := refusal(run, []):
        yield f"{file}: run.yaml: {refused}"
        return
    for name, document in users:
        read = job_arguments if document["kind"] == "RayJob" else service_arguments
        try:
            refused = refusal(run, read(document["spec"]))
        except (InputError, ValueError) as error:
            refused = " ".join(str(error).split())
        if refused:
            yield f"{name}: {document['kind']} {document['metadata']['name']}: {refused}"


def job_arguments(spec: dict[str, Any]) -> list[str]:
    """The overrides in a RayJob's entrypoint; InputError where it is not a job of this project on the run's YAML."""
    _, script, run, *overrides = spec["entrypoint"].split()
    if run != RUN_FILE or not (Path(__file__).parents[2] / script).is_file():
        raise InputError(f"the entrypoint runs {script} {run}, wanted a job and {RUN_FILE}")
    return list(overrides)


def service_arguments(spec: dict[str, Any]) -> list[str]:
    """The overrides of a RayService's application; InputError or ValueError where Ray Serve or jobs.serve would refuse it."""
    from ray.serve.schema import ServeDeploySchema

    from jobs.serve import AppArguments
    from jobs.service.replica import DEPLOYMENT

    config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (application,) = config.applications
    arguments = AppArguments.model_validate(application.args)
    if application.import_path != "jobs.serve:app" or arguments.run != RUN_FILE:
        raise InputError(f"the service is jobs.serve:app with run: {RUN_FILE}")
    if unknown := {deployment.name for deployment in application.deployments} - {DEPLOYMENT}:
        raise InputError(f"there is no deployment {', '.join(sorted(unknown))}; it is {DEPLOYMENT}")
    return arguments.overrides


def refusal(run: str, overrides: list[str]) -> str | None:
    """A job's error message for a run's YAML with these overrides; None where it would start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(run)
        try:
            load_config(path, overrides)
        except InputError as error:
            return str(error).removeprefix(f"{path}: ")
    return None


def values_mistakes(path: Path) -> list[str]:
    """Check the values of Qdrant's chart, and that its keys come from secrets."""
    values = yaml.safe_load(path.read_text())
    found = [f"{path.name}: {mistake}" for mistake in custom_mistakes("QdrantValues", values)]
    named = set(re.findall(r'"(?:secretKeyRef": {"name|secretName)": "([^"]+)"', json.dumps(values)))
    return found + [
        f"{path.name}: names the secret {name}, which nobody makes" for name in sorted(named - MADE_BY_HAND)
    ]


def launcher_mistakes(path: Path) -> list[str]:
    """Check Ray's cluster launcher file against Ray's schema, and that it requires a token."""
    schema = json.loads((files("ray.autoscaler") / "ray-schema.json").read_text())
    config = yaml.safe_load(path.read_text())
    validator = jsonschema.Draft7Validator(schema)
    found = [f"{path.name}: {'.'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(config)]
    for section in ("head_start_ray_commands", "worker_start_ray_commands"):
        if not any("RAY_AUTH_MODE=token" in command for command in config.get(section, ()) if "ray start" in command):
            found.append(f"{path.name}: {section} starts Ray without RAY_AUTH_MODE=token")
    if config.get("head_node_type") not in config.get("available_node_types", {}):
        found.append(f"{path.name}: head_node_type {config.get('head_node_type')} is none of available_node_types")
    return found
