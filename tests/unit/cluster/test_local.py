"""What is known of a cluster on this machine, without one."""

import json
import shutil

from cluster.local import STATE, known_cluster
from vector_store.server.access import identity


def test_the_state_of_a_copied_home_is_no_cluster_of_the_copys(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    saved = {
        "id": "a", "host": "127.0.0.1", "address": "http://127.0.0.1:1", "gcs": "127.0.0.1:2", "temp_dir": "/tmp/a",
        "workers": ["worker-1"], "cpus_per_worker": 1, "gpus_per_worker": 0, "head_cpus": 0, "store_url": None,
        "home": identity(home),
    }  # fmt: skip
    (home / STATE).write_text(json.dumps(saved))
    monkeypatch.setenv("REFBERT_HOME", str(home))
    assert known_cluster().id == "a"
    shutil.copytree(home, tmp_path / "copy")
    monkeypatch.setenv("REFBERT_HOME", str(tmp_path / "copy"))
    assert known_cluster() is None, "`down` would stop the original's"
