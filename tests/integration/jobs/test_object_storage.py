"""A corpus in an object store, over S3's protocol from a server of its own."""

import json

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from jobs.corpus.prepared import prepare
from refbert.errors import InputError

pytestmark = pytest.mark.usefixtures("ray_cluster", "home")


@pytest.fixture
def bucket():
    """A bucket that is empty: its filesystem, and the URI of a folder in it."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    filesystem, _ = fs.FileSystem.from_uri(f"s3://testing:testing@bucket?{options}")
    filesystem.create_dir("bucket")
    yield filesystem, f"s3://testing:testing@bucket/corpus?{options}"
    server.stop()


def put(filesystem, name: str, texts: list[str]) -> None:
    with filesystem.open_output_stream(f"bucket/corpus/{name}") as stream:
        stream.write("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())


def test_a_corpus_in_object_storage_is_read_again_when_an_object_changes(tiny_run, bucket):
    filesystem, uri = bucket
    for number in range(3):
        put(filesystem, f"{number}.jsonl", [f"text {row} of file {number}" for row in range(40)])
    config = tiny_run(corpus={"path": uri, "heldout_fraction": 0.2})
    corpus = prepare(config)
    assert (corpus.counts.train + corpus.counts.heldout, corpus.counts.rejected) == (120, 0)
    sources = corpus.table("train")["source"].to_pylist()
    assert sources == sorted(sources)
    assert set(sources) == {f"bucket/corpus/{number}.jsonl" for number in range(3)}
    assert prepare(config).directory == corpus.directory

    put(filesystem, "1.jsonl", ["another text", "and one more"] * 10)
    assert prepare(config).directory != corpus.directory


def test_a_missing_bucket_is_reported_in_one_line(tiny_run, bucket):
    _, uri = bucket
    config = tiny_run(corpus={"path": uri.replace("bucket/corpus", "no-such-bucket/corpus"), "heldout_fraction": 0.2})
    with pytest.raises(InputError, match=r"no-such-bucket/corpus.*does not exist|cannot be listed") as caught:
        prepare(config)
    assert "\n" not in str(caught.value)
