"""`python -m cluster.check` passes on this checkout, and finds the mistake in a broken file."""

import shutil

import pytest
import yaml

from cluster.check.__main__ import PARTS, main
from cluster.check.images import compose_mistakes, dockerfile_mistakes
from cluster.check.kubernetes import launcher_mistakes, manifest_mistakes, values_mistakes
from cluster.check.monitoring import dashboard_mistakes, exported, rule_mistakes
from cluster.check.schemas import custom_mistakes
from cluster.monitoring import resources
from jobs.run.session import ENVIRONMENT, NODE_ENVIRONMENT
from tests.conftest import REPOSITORY


def broken(tmp_path, file, old, new):
    """A copy of the file's folder, with a piece of the file replaced; returns the copy of the file."""
    shutil.copytree(REPOSITORY / "cluster", tmp_path / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "docker", tmp_path / "docker", ignore=shutil.ignore_patterns("__pycache__", "secrets"))
    path = tmp_path / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_this_checkout_passes(capsys):
    assert main([str(REPOSITORY)]) == 0, capsys.readouterr().out


def test_a_services_proxies_have_their_limits_whoever_starts_them():
    """Without, Ray reads messages of 2 GiB, waits for a request's head without end, and misses a dead proxy for 30 s."""
    wanted = {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "jobs.service.proxy.middlewares",
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(64 * 2**20),
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    }
    documents = yaml.safe_load_all((REPOSITORY / "cluster" / "kubernetes" / "serve.yaml").read_text())
    (spec,) = (document["spec"] for document in documents if document["kind"] == "RayService")
    assert "proxy_location: EveryNode" in spec["serveConfigV2"]
    nodes = spec["rayClusterConfig"]
    groups = [nodes["headGroupSpec"], *nodes["workerGroupSpecs"]]
    containers = [group["template"]["spec"]["containers"][0] for group in groups]
    services = yaml.safe_load((REPOSITORY / "docker" / "compose.yaml").read_text())["services"]
    for environment in (
        NODE_ENVIRONMENT,
        *({variable["name"]: variable.get("value") for variable in one["env"]} for one in containers),
        *(services[name]["environment"] for name in ("ray-head", "ray-worker")),
    ):
        assert wanted.items() <= environment.items()
    alone = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "jobs.service.proxy.of_one_service"}
    assert (wanted | alone).items() <= ENVIRONMENT.items(), "what a job starts for its service alone"


def test_a_missing_part_is_a_mistake(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert f"{len(PARTS)} mistakes" in capsys.readouterr().out


def test_help_is_no_folder(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "python -m cluster.check FOLDER" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("ARG BASE=debian:bookworm-20260824-slim@", "ARG BASE=debian@", "wants a tag and a digest"),
        ("USER 1000:1000", "USER root", "DL3002"),
        ("USER 1000:1000", "USER root", "other than root"),
        ("RUN useradd", "RUN sudo useradd", "DL3004"),
        ("ca-certificates python3", "ca-certificates python3 gcc", "installs gcc"),
        ("HEALTHCHECK --", "LABEL --", "wants a HEALTHCHECK"),
        ("FROM runtime AS gpu", "FORM runtime AS gpu", "unexpected"),
    ],
)
def test_a_mistake_in_the_dockerfile_is_found(tmp_path, old, new, wanted):
    found = dockerfile_mistakes(broken(tmp_path, "docker/Dockerfile", old, new))
    assert any(wanted in mistake for mistake in found), found


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("restart: unless-stopped\n  shm_size", "restarts: unless-stopped\n  shm_size", "restarts"),
        ("${LISTEN:-127.0.0.1}:8265:8265", "8265:8265", "publishes 8265:8265 beyond loopback"),
        ("${LISTEN:-127.0.0.1}:3000:3000", "0.0.0.0:3000:3000", "beyond loopback"),
        ("127.0.0.1:9090:9090", "${LISTEN:-127.0.0.1}:9090:9090", "has no key of its own and stays on loopback"),
        ("RAY_AUTH_MODE: token", "RAY_AUTH_MODE: disabled", "without RAY_AUTH_MODE: token"),
        ("RAY_AUTH_TOKEN_PATH: /run/secrets/ray_token", "RAY_AUTH_TOKEN: abc", "RAY_AUTH_TOKEN stands in the file"),
        (
            "../cluster/alerts.yaml:/etc",
            "../cluster/alarms.yaml:/etc",
            "mounts ../cluster/alarms.yaml, which is not there",
        ),
        ("secrets: [grafana_password]", "secrets: [grafana_pass]", "wants the secret grafana_pass"),
    ],
)
def test_a_mistake_in_the_compose_file_is_found(tmp_path, old, new, wanted):
    found = compose_mistakes(broken(tmp_path, "docker/compose.yaml", old, new))
    assert any(wanted in mistake for mistake in found), found


@pytest.mark.parametrize(
    ("file", "old", "new", "wanted"),
    [
        ("ray-cluster", "workerGroupSpecs:", "workerGroups:", "'workerGroups' was unexpected"),
        ("ray-cluster", "upscalingMode: Default", "upscalingMode: Fast", "'Fast' is not one of"),
        ("ray-cluster", "containerPort: 8265", "containerPort: http", "'http' is not of type"),
        ("ray-cluster", "periodSeconds: 5", "everySeconds: 5", "everySeconds"),
        ("ray-cluster", 'limits: {cpu: "8", memory: 32Gi}', 'limits: {cpu: "8"}', "a limit of memory"),
        ("ray-cluster", "claimName: refbert-home", "claimName: home", "names the claim home"),
        ("ray-cluster", "configMap: {name: refbert-run}", "configMap: {name: run}", "names the ConfigMap run"),
        ("ray-cluster", "secretName: ray-token", "secretName: token", "names the secret token"),
        ("ray-cluster", "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot: true"),
        ("ray-cluster", "0.1.0-cpu", "latest", "an image with a version"),
        ("ray-cluster", "livenessProbe:", "startupProbe:", "a liveness and a readiness probe"),
        (
            "serve",
            "- {name: REFBERT_HOME, value: /data}",
            "- {name: QDRANT_API_KEY, value: abc}",
            "QDRANT_API_KEY stands in the file",
        ),
        ("serve", "import_path: jobs.serve:app", "import_paths: jobs.serve:app", "import_path"),
        ("serve", "serve.request_log=true", "serve.request_logs=true", "unknown key serve.request_logs"),
        ("distill", "ray.io/cluster: refbert", "ray.io/cluster: other", "the RayCluster other"),
        ("distill", "python jobs/distill.py", "python jobs/distil.py", "the entrypoint runs jobs/distil.py"),
        ("foundation", "hidden_size: 84", "hiddens: 84", "unknown key student.hiddens"),
        ("foundation", "accessModes: [ReadWriteMany]", "accessMode: [ReadWriteMany]", "accessMode"),
        ("redis", "serviceName: redis", "services: redis", "services"),
        (
            "redis",
            "--dir /data <<END",
            '--dir /data --requirepass "$REDIS_PASSWORD" <<END',
            "gives a secret to its process",
        ),
        ("monitors", "scheme: https", "scheme: tls", "'tls' is not one of"),
    ],
)
def test_a_mistake_in_a_manifest_is_found(tmp_path, file, old, new, wanted):
    path = broken(tmp_path, f"cluster/kubernetes/{file}.yaml", old, new)
    found = manifest_mistakes(path.parent)
    assert any(wanted in mistake and f"{file}" in mistake for mistake in found), found


def test_mistakes_in_chart_values_and_launcher_file_are_found(tmp_path):
    (found,) = values_mistakes(broken(tmp_path / "a", "cluster/qdrant-values.yaml", "replicaCount: 3", "replicas: 3"))
    assert "'replicas' was unexpected" in found
    found = launcher_mistakes(broken(tmp_path / "b", "cluster/ray-cluster.yaml", "max_workers: 24", "workers: 24"))
    assert any("'workers' was unexpected" in mistake for mistake in found), found
    found = launcher_mistakes(broken(tmp_path / "c", "cluster/ray-cluster.yaml", "RAY_AUTH_MODE=token ray", "ray"))
    assert len(found) == 2


def test_mistakes_in_rules_and_dashboards_are_found(tmp_path):
    path = broken(tmp_path / "a", "cluster/alerts.yaml", "refbert_queued_texts) >", "refbert_queued_words >")
    (found,) = rule_mistakes(path)
    assert "is not PromQL" in found
    path.write_text(path.read_text().replace("max(refbert_queued_words >", "max(refbert_queued_words) >"))
    (found,) = rule_mistakes(path)
    assert found == "alerts.yaml: QueueFilling: nobody exports refbert_queued_words"
    path = broken(tmp_path / "b", "cluster/grafana-serving.json", "refbert_texts_total", "refbert_txts_total")
    (found,) = dashboard_mistakes(path)
    assert found.endswith("nobody exports refbert_txts_total")


def test_exported_metrics_are_those_of_the_code():
    assert {"refbert_requests", "refbert_request_seconds", "ray_refbert_train_step", "ray_node_mem_used"} <= exported()
    assert "ray_serve_deployment_replica_starts" in exported()
    assert "ray_refbert_train_stride" not in exported()


def test_rules_and_dashboards_become_valid_kubernetes_resources():
    rules, *dashboards = resources("refbert", "monitoring")
    assert custom_mistakes("PrometheusRule", rules) == []
    assert rules["spec"] == yaml.safe_load((REPOSITORY / "cluster/alerts.yaml").read_text())
    assert {"dashboard-serving", "dashboard-cluster"} == {each["metadata"]["name"] for each in dashboards}
    assert all(each["metadata"]["labels"] == {"grafana_dashboard": "1"} for each in dashboards)
