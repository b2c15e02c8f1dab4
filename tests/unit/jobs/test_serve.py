"""The application that Ray Serve's config files build: what is refused before a replica starts, and in which words."""

import os

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from jobs import serve as job
from jobs.service import replica
from jobs.service.keys import Keys
from refbert.errors import InputError, UnavailableError

VARIABLE = "REFBERT_TEST_KEYS"


@pytest.fixture
def arguments(served_run, tmp_path):
    """What a config file says of the run `served`; the keyword `overrides` adds options."""
    (tmp_path / "run.yaml").write_text("{name: served, corpus: {path: x}}")

    def make(*overrides):
        keys = f"serve.api_keys_env={VARIABLE}"
        return {"run": str(tmp_path / "run.yaml"), "overrides": [keys, *overrides]}

    return make


def bound(application):
    return application._bound_deployment


def test_a_serve_config_file_builds_the_application_and_tells_its_replicas_that_keys_are_wanted(arguments, monkeypatch):
    with pytest.raises(InputError, match="without a key"):
        job.app(arguments())
    monkeypatch.setenv(VARIABLE, "sk-one")
    built = bound(job.app(arguments("serve.num_replicas=2")))
    assert (built.name, built.num_replicas) == ("StudentService", 2)
    scaled = bound(job.app(arguments("serve.max_replicas=3")))
    assert scaled._deployment_config.autoscaling_config.max_replicas == 3
    config, deployer = built.init_args
    assert "sk-one" not in str(built.init_args)
    assert deployer.wants_keys
    assert VARIABLE in deployer.secrets
    monkeypatch.delenv(VARIABLE)  # as in a replica on a node where it was not exported
    with pytest.raises(InputError, match="wants keys"):
        Keys(config.serve.api_keys_env, config.serve.api_keys_file, are_wanted=deployer.wants_keys)


def test_a_replica_has_the_deployers_home_and_names_the_secrets_that_it_lacks(
    served_run, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("REFBERT_HOME", "/of/another/process")
    monkeypatch.setenv("REFBERT_TEST_STORE_KEY", "is here")
    deployer = replica.Deployer(str(tmp_path), wants_keys=False, secrets=(VARIABLE, "REFBERT_TEST_STORE_KEY"))
    monkeypatch.setattr(replica, "set_up_worker", lambda *given: None)
    with pytest.raises(RayServeException):  # as it is no replica of Ray Serve's
        replica.Replica(served_run(threads_per_replica=1), deployer)
    assert os.environ["REFBERT_HOME"] == str(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{VARIABLE} is set where this service was deployed, but not here: export it before `ray start`"
    ]


def test_without_keys_replicas_serve_only_what_the_deployer_allows(arguments):
    allowed = bound(job.app(arguments("serve.allow_public_without_key=true")))
    assert not allowed.init_args[1].wants_keys


def test_the_store_that_a_cluster_serves_reaches_the_replicas(arguments, monkeypatch):
    monkeypatch.setenv(VARIABLE, "sk-one")
    monkeypatch.setenv("REFBERT_STORE_URL", "http://10.0.0.1:6334")
    assert bound(job.app(arguments())).init_args[0].store.url == "http://10.0.0.1:6334"
    named = bound(job.app(arguments("store.url=http://10.0.0.2:6334")))
    assert named.init_args[0].store.url == "http://10.0.0.2:6334"


def test_a_mistake_in_a_config_file_is_the_applications_status_at_once_and_in_one_line(arguments):
    for given, message in (
        (arguments(), "under args.overrides set serve.api_keys_file=FILE"),
        ({**arguments(), "override": []}, "args.override: "),
        ({"run": "/nowhere.yaml"}, "cannot be read"),
        (arguments("name=other"), "holds no student"),
        (
            {**arguments("serve.allow_public_without_key=true"), "student": "/no/such/folder"},
            "/no/such/folder holds no",
        ),
        (
            arguments("serve.allow_public_without_key=true", "serve.models.reviews=/no/such/folder"),
            "serve.models.reviews: /no/such/folder holds no student",
        ),
    ):
        # Serve shows an error of this class at once, and any other after four tries.
        with pytest.raises(RayServeException) as refused:
            job.app(given)
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_students_folder_is_served_where_its_run_is_not(
    serve_in_process, served_home, tmp_path, arguments, monkeypatch
):
    folder = served_home / "runs/served/student"
    monkeypatch.setenv("REFBERT_HOME", str(tmp_path))
    with pytest.raises(RayServeException, match="holds no student"):
        job.app(arguments("serve.allow_public_without_key=true"))
    job.app(arguments("serve.allow_public_without_key=true", f"serve.student={folder}"))
    with serve_in_process(student=str(folder)) as client:
        assert client.post("/v1/embeddings", json={"input": "a text"}).json()["model"] == "served"


def test_a_wrong_folder_of_a_further_student_is_refused_by_its_name_before_ray_serve_starts(served_run):
    with (
        pytest.raises(InputError, match=r"^serve\.models\.reviews: /no/such/folder holds no student"),
        job.memories_of(served_run(models={"reviews": "/no/such/folder"})),
    ):
        pass


def test_a_killed_replica_is_missed_within_seconds(arguments, monkeypatch):
    monkeypatch.setenv(VARIABLE, "sk-one")
    assert bound(job.app(arguments()))._deployment_config.health_check_period_s <= 1


@pytest.fixture
def ray_serve(monkeypatch):
    """Ray Serve's calls in order, as they are made; `state` says what they do."""
    calls, state = [], {"start": [], "run": []}

    def call(name):
        def made(*args, **options):
            calls.append((name, options))
            if state.get(name):
                raise state[name].pop(0)

        return made

    for name in ("start", "run", "delete", "shutdown"):
        monkeypatch.setattr(job.serve, name, call(name))
    monkeypatch.setattr(job, "student_run", lambda config, folder: (config, folder))
    monkeypatch.setattr(job, "application", lambda config, **options: None)
    monkeypatch.setattr(job, "_serve_is_running", lambda: False)
    monkeypatch.setattr(job, "_answers", lambda host, port: True)
    return calls, state


def names(calls):
    return [name for name, _ in calls]


def test_a_proxy_that_is_slower_than_rays_fixed_minute_is_waited_for(ray_serve, tiny_run, monkeypatch):
    calls, state = ray_serve
    state["start"].append(TimeoutError("HTTP proxies not available after 60s."))
    state["run"].append(TimeoutError("Proxies not available after 60s."))
    answers = iter([False, False, True])
    monkeypatch.setattr(job, "_answers", lambda host, port: next(answers))
    with job.served(tiny_run()):
        assert names(calls) == ["start", "start", "run"]
        assert calls[0][1]["proxy_location"] == "EveryNode"
    assert next(answers, None) is None


def test_a_service_that_does_not_start_is_one_line_and_leaves_nothing_running(ray_serve, tiny_run, monkeypatch):
    calls, state = ray_serve
    monkeypatch.setattr(job, "START_S", 0.0)
    monkeypatch.setattr(job, "_answers", lambda host, port: False)
    with (
        pytest.raises(UnavailableError, match=r"the service did not start on .* is the machine very busy"),
        job.served(tiny_run()),
    ):
        pass
    state["start"].append(RayActorError())
    with pytest.raises(UnavailableError, match="the service did not start"), job.served(tiny_run()):
        pass
    state["run"].append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt), job.served(tiny_run()):
        pass
    assert names(calls) == ["start", "run", "delete", "start", "delete", "start", "run", "delete"]
