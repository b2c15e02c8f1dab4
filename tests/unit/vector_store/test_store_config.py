import subprocess
import sys

import pytest
from pydantic import ValidationError

from vector_store.config import StoreConfig


def test_the_default_is_the_embedded_store():
    assert StoreConfig().url == "embedded"


@pytest.mark.parametrize("url", ["http://127.0.0.1:6334", "https://cluster.example:6334", "http://a:1,http://b:2"])
def test_addresses_are_accepted(url):
    assert StoreConfig(url=url).url == url


def test_a_url_may_name_the_nodes_of_a_cluster():
    assert StoreConfig(url="http://a:1, http://b:2").nodes == ("http://a:1", "http://b:2")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"url": "localhost:6334"}, "neither `embedded` nor"),
        ({"upsert_bytes": 10, "message_bytes": 10}, "upsert_bytes=10 is not below message_bytes=10"),
        ({"collection": "a/b"}, "pattern"),
        ({"lookup_deadline_ms": 0}, "greater than 0"),
        ({"timeout": 1}, "Extra inputs"),
        ({"rest_port": 70_000}, "less than or equal to 65535"),
        (
            {"url": "http://a:1", "rest_port": 0},
            "store.rest_port=0 is for store.url=embedded, and http://a:1 is served",
        ),
        ({"url": "http://a:1,b:2"}, "neither `embedded` nor"),
        ({"shard_number": 4}, "store.shard_number=4 needs a Qdrant cluster"),
        ({"replication_factor": 2}, "store.replication_factor=2 needs a Qdrant cluster"),
        (
            {"url": "http://a:1", "replication_factor": 2, "write_consistency_factor": 3},
            "store.write_consistency_factor=3 needs 3 copies of each shard, replication_factor is 2",
        ),
        ({"url": "http://a:1", "read_fan_out_factor": 1}, "needs 2 copies of each shard"),
        ({"url": "http://a:1", "read_consistency": 2}, "needs 2 copies of each shard"),
        ({"read_consistency": "most"}, "majority"),
    ],
)
def test_invalid_fields_are_named(fields, complaint):
    with pytest.raises(ValidationError, match=complaint):
        StoreConfig(**fields)


def test_config_imports_no_engine_and_no_grpc():
    code = "import sys, vector_store.config; print(sorted({'grpc', 'qdrant_edge', 'qdrant_client'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_users_of_the_server_do_not_load_the_engine():
    code = (
        "import sys, vector_store.server.process, vector_store.retriever, vector_store.store; "
        "print('qdrant_edge' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
