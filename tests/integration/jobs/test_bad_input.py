"""Whatever is wrong, a job ends with one clear line and its exit code, and what is stored stays stored."""

from contextlib import nullcontext

import pytest
import yaml

from jobs import distill, evaluate, ingest, serve
from jobs.launch import run_job
from jobs.memory.store import running_store
from jobs.run.failures import BAD_INPUT, OK, UNAVAILABLE
from vector_store.client import connect
from vector_store.store import Store

pytestmark = pytest.mark.usefixtures("ray_cluster", "prepared_home", "running_ray")


@pytest.fixture
def running_ray(monkeypatch):
    import jobs.run.session

    monkeypatch.setattr(jobs.run.session, "ray_session", nullcontext)


@pytest.fixture
def run_file(tmp_path, tiny_run):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_run().model_dump(mode="json")))
    return str(path)


@pytest.mark.parametrize(
    ("job", "override", "code", "message"),
    [
        (ingest, "corpus.path=/no/such/corpus", BAD_INPUT, "does not exist"),
        (ingest, "corpus.path=ftp4://x/y", BAD_INPUT, "no URI that pyarrow can open"),
        (ingest, "corpus.text_field=body", BAD_INPUT, "has no column 'body'"),
        (ingest, "teacher.model=/no/such/teacher", BAD_INPUT, "cannot be loaded"),
        (ingest, "teacher.model=no-such/model-on-the-hub", BAD_INPUT, "cannot be loaded"),
        (ingest, "nonsense.key=1", BAD_INPUT, "unknown key nonsense"),
        (ingest, "store={url: 'http://127.0.0.1:9', write_deadline_s: 1}", UNAVAILABLE, "did not answer"),
        (distill, "store={url: 'http://127.0.0.1:9', write_deadline_s: 1}", UNAVAILABLE, "did not answer"),
        (evaluate, "name=never-trained", BAD_INPUT, "holds no complete run; train one first"),
        (serve, "name=never-trained", BAD_INPUT, "holds no student; train one first"),
    ],
)
def test_a_mistake_ends_the_job_with_one_line_and_its_exit_code(run_file, capsys, job, override, code, message):
    assert run_job(job, [run_file, override]) == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


@pytest.mark.usefixtures("in_process")
def test_a_memory_of_another_teacher_is_refused_and_left_unchanged(run_file, tiny_run, capsys):
    assert run_job(ingest, [run_file]) == OK
    capsys.readouterr()
    for job in (ingest, distill):
        assert run_job(job, [run_file, "teacher.model=pypi:all-MiniLM-L6-v2", "name=other"]) == BAD_INPUT
        assert "was written by " in capsys.readouterr().err.splitlines()[-1]
    config = tiny_run()
    with running_store(config) as url, connect(config.store, url) as client:
        assert Store(client, config.store).count() > 300


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        run_job(distill, ["--help"])
    assert ended.value.code == 0
    assert "python jobs/distill.py RUN.yaml train.steps=2000" in capsys.readouterr().out
