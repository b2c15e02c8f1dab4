"""`python -m vector_store`: info, serve and help."""

import subprocess
import sys

from tests.integration.vector_store.embedded.served import store_at
from vector_store.server.process import embedded_server


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vector_store", *arguments], capture_output=True, text=True, timeout=60
    )


def test_info_shows_collections_points_and_manifests(tmp_path, manifest, make_points):
    with embedded_server(tmp_path) as url:
        store = store_at(url)
        store.ensure(manifest)
        store.upsert(make_points(3))
        for place in (url, str(tmp_path)):
            shown = run("info", place)
            assert shown.returncode == 0, shown.stderr
            assert "references: 3 points" in shown.stdout
            assert '"fingerprint":"f1"' in shown.stdout


def test_a_served_directory_is_not_served_twice(tmp_path):
    with embedded_server(tmp_path):
        second = run("serve", str(tmp_path))
    assert second.returncode == 75
    assert "already served" in second.stderr


def test_help_has_an_example():
    assert "python -m vector_store serve ./store" in run("--help").stdout
