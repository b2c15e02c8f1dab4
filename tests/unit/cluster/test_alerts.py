"""Every alert has a documented remedy, and fires under its condition, tested by promtool where it is installed."""

import re
import shutil
import subprocess

import pytest
import yaml

from tests.conftest import REPOSITORY

RULES = REPOSITORY / "cluster" / "alerts.yaml"


def alerts():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_alerts_and_rows_of_remedies_match_one_to_one():
    text = (REPOSITORY / "docs" / "operations.md").read_text().split("## Alerts")[1]
    rows = re.findall(r"^\| (\w+) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    named = [name for name, _, _ in rows if name != "alert"]
    assert sorted(named) == sorted(rule["alert"] for rule in alerts())


def series(name, values):
    return {"series": name, "values": values}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_alerts_fire_exactly_under_their_conditions(tmp_path):
    def case(alert, minutes, inputs, fires):
        found = next(rule for rule in alerts() if rule["alert"] == alert)
        expected = [{"exp_labels": found["labels"] | fires}] if fires is not None else []
        return {
            "interval": "1m",
            "input_series": inputs,
            "alert_rule_test": [{"eval_time": f"{minutes}m", "alertname": alert, "exp_alerts": expected}],
        }

    away = 'refbert_memory_state{state="away"}'
    step, wanted = 'ray_refbert_train_step{run="a"}', 'ray_refbert_train_steps_wanted{run="a"}'

    def replica(number):
        return f'ray_serve_deployment_replica_starts_total{{application="a",deployment="d",replica="{number}"}}'

    def led(number):  # Ray's label of the process that leads the training
        return f'ray_refbert_train_step{{run="a",WorkerId="{number}"}}'

    def references(model, rung, values):
        return series(f'refbert_references_total{{model="{model}",rung="{rung}",step="{rung}"}}', values)

    busy = [references("a", "live", "0+100x30"), references("b", "live", "0x30"), references("b", "null", "0+1x30")]
    reads_none = [series('refbert_memory_state{model="b",state="none"}', "1x30")]
    cases = [
        case("NullReferences", 20, busy, {"model": "b"}),  # few texts, but all that student b was asked
        case("NullReferences", 20, busy + reads_none, None),
        case("KeptReferences", 20, [references("a", "cached", "0+1x30"), *busy], None),
        case("KeptReferences", 20, [references("b", "cached", "0+1x30"), *busy], {"model": "b"}),
        case("MemoryNotRead", 4, [series(away, "1x10")], {}),
        case("MemoryNotRead", 1, [series(away, "1x10")], None),
        case("MemoryNotRead", 4, [series(away, "0x10")], None),
        case("TrainingStalled", 25, [series(step, "40x30"), series(wanted, "100x30")], {"run": "a"}),
        case("TrainingStalled", 25, [series(step, "40+1x30"), series(wanted, "100x30")], None),
        case("TrainingStalled", 25, [series(step, "100x30"), series(wanted, "100x30")], None),
        case("ShardReplicaDead", 6, [series("collection_dead_replicas", "0 0 1x10")], None),
        case("ShardReplicaDead", 9, [series("collection_dead_replicas", "0 0 1x10")], {}),
        case(
            "ReplicasRestart",
            27,
            [series(replica(number), f"_x{5 * number} 1x{5 if number < 4 else 30}") for number in range(5)],
            {"application": "a", "deployment": "d"},
        ),
        case("ReplicasRestart", 25, [series(replica(number), "1x30") for number in range(5)], None),
        case("ServiceBug", 6, [series('refbert_errors_total{kind="bug"}', "0 0 0 1x9")], {"kind": "bug"}),
        case("TrainingRestarts", 40, [series(led(number), "_x5 1+1x9") for number in range(4)], {"run": "a"}),
        case("TrainingRestarts", 40, [series(led(number), "_x5 1+1x9") for number in range(3)], None),
        case("TrainingLossNotFinite", 1, [series('ray_refbert_train_loss{run="a"}', "NaN NaN NaN")], {"run": "a"}),
        case("TrainingLossNotFinite", 1, [series('ray_refbert_train_loss{run="a"}', "1 1 1")], None),
        case(
            "PeersDisagree",
            8,
            [series('cluster_peers_total{instance="a"}', "2x9"), series('cluster_enabled{instance="a"}', "1x9")],
            {},
        ),
    ]
    # promtool compares annotations too; here only who fires matters.
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": cases}))
    checked = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    done = subprocess.run(
        ["promtool", "test", "rules", "tests.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
