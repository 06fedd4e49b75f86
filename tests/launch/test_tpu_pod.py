"""launch/tpu-pod.sh, from creation to deletion, on a Cloud TPU made of directories."""

import shutil
import threading
import time

import pytest

from tests.launch.rehearsal import Cloud, assert_one_sentence, cloud

HERE = ("--name", "mine", "--zone", "us-west4-a")
SLICE = (*HERE, "--topology", "v5e:4x4", "--spot", "--storage", "gs://my-bucket")
WORDS = ("train", "configs/tiny.yaml", "run_dir=/mnt/rapo/runs/a b", "relabel.goals=[]", "data.columns.prompt=it's")
HEARD = "".join(f"<{word}>" for word in (*WORDS, "--distributed"))


@pytest.fixture
def pod(tmp_path) -> Cloud:
    return cloud(tmp_path)


def watch(pod: Cloud, *more: str):
    return pod.script("tpu-pod.sh", "watch", *SLICE, *more, "--", *WORDS)


@pytest.mark.slow
def test_a_run_outlives_interruptions_a_preemption_and_a_lost_ssh(pod):
    """When this fails, a night on a spot slice ends at the first preemption, or a lost connection ends a run that is well."""
    pod.plans(75, "preempt", "lose-ssh", 76, 0)
    ran = watch(pod)
    assert ran.code == 0, ran.errors[-2000:]
    assert ran.count("queued-resources create") == 2 and ran.count("queued-resources delete") == 1
    assert pod.heard("worker-0") == pod.heard("worker-1") == [HEARD] * 5
    assert "restart 2, after: gone" in ran.out and "The run is done" in ran.out
    assert "launch/tpu-pod.sh delete --name mine" in ran.out


def test_a_mistake_is_shown_and_not_repeated(pod):
    """When this fails, a misspelt key is tried a hundred times on a slice that is paid for."""
    pod.plans(2)
    ran = watch(pod)
    assert ran.code == 2 and "exit code 2" in ran.errors and "this is rapo train" in ran.out
    assert len(pod.heard("worker-0")) == 1


@pytest.mark.slow
def test_three_crashes_end_the_watch(pod):
    """When this fails, a bug is repeated for as long as the money lasts."""
    pod.plans(13, 13, 13, 0)
    ran = watch(pod)
    assert ran.code == 2 and "three crashes" in ran.errors and len(pod.heard("worker-0")) == 3


def test_a_run_that_is_stopped_by_hand_stays_stopped(pod):
    """When this fails, the watch starts again what its user has just stopped."""
    pod.plans("wait", 0)

    def stop():
        deadline = time.monotonic() + 60
        while not pod.heard("worker-1") and time.monotonic() < deadline:
            time.sleep(0.1)
        pod.script("tpu-pod.sh", "stop", *HERE)

    thread = threading.Thread(target=stop)
    thread.start()
    ran = watch(pod)
    thread.join()
    assert ran.code == 0 and "stopped" in ran.out and len(pod.heard("worker-0")) == 1


@pytest.mark.slow
def test_every_verb_can_be_repeated(pod):
    """When this fails, a second try after a lost connection pays for a second slice, or starts a second run."""
    pod.plans("wait")
    for _ in range(2):
        assert pod.script("tpu-pod.sh", "create", *SLICE).code == 0
        assert pod.script("tpu-pod.sh", "install", *HERE).code == 0
        assert pod.script("tpu-pod.sh", "run", *HERE, "--", *WORDS).code == 0
    assert pod.heard("worker-0") == [HEARD]
    status = pod.script("tpu-pod.sh", "status", *HERE).out
    assert "request  ACTIVE" in status and "slice    READY" in status and status.count(" running") == 2
    assert "this is rapo train" in pod.script("tpu-pod.sh", "logs", *HERE).out
    pod.script("tpu-pod.sh", "stop", *HERE)
    for _ in range(2):
        assert pod.script("tpu-pod.sh", "delete", *HERE).code == 0
    assert not (pod.directory / "request").exists()


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_what_is_left_of_a_slice_is_deleted_before_a_new_one_is_asked_for(pod, state):
    """When this fails, a slice that was preempted while nobody watched has to be deleted by hand."""
    (pod.directory / "request").write_text(state)
    ran = pod.script("tpu-pod.sh", "create", *SLICE)
    assert ran.code == 0 and ran.count("delete") == 1 and ran.count("queued-resources create") == 1


def test_the_export_is_made_there_and_copied(pod):
    """When this fails, a finished run cannot be had without knowing where its bucket lies."""
    pod.plans(0, 0)
    pod.script("tpu-pod.sh", "create", *SLICE)
    pod.script("tpu-pod.sh", "install", *HERE)
    fetch = ("tpu-pod.sh", "fetch", *HERE, "--storage", "gs://my-bucket", "/mnt/rapo/runs/a", "out-hf")
    nothing = pod.script(*fetch)
    assert nothing.code == 2 and "has no checkpoint yet" in nothing.errors
    (pod.directory / "newest").write_text("40")
    for _ in range(2):  # the second is copied once more, not made
        ran = pod.script(*fetch)
        assert ran.code == 0, ran.errors
        assert ran.called[-1] == "gcloud storage cp --recursive gs://my-bucket/runs/a-40-hf out-hf"
    first = "<export></mnt/rapo/runs/a></mnt/rapo/runs/a-40-hf><--step><40><--distributed>"
    assert pod.heard("worker-1") == [first]
    (pod.directory / "newest").write_text("60")
    assert pod.script(*fetch).called[-1].endswith("a-60-hf out-hf")
    assert pod.heard("worker-1") == [first, first.replace("40", "60")]


@pytest.mark.slow
def test_a_network_that_is_away_ends_no_watch_and_one_that_stays_away_says_what_is_paid(pod):
    """When this fails, a laptop that sleeps leaves a slice that nobody remembers."""
    pod.plans("lose-ssh", 0)
    created = pod.script("tpu-pod.sh", "create", *SLICE)
    assert created.code == 0
    (pod.directory / "request").write_text("WAITING_FOR_RESOURCES")
    threading.Timer(1.0, lambda: (pod.directory / "request").write_text("ACTIVE")).start()
    threading.Timer(0.5, lambda: (pod.directory / "looks-that-fail").write_text("3")).start()
    ran = watch(pod)
    assert ran.code == 0 and ran.errors.count("refreshing your credentials") == 3, ran.errors[-2000:]
    (pod.directory / "request").write_text("WAITING_FOR_RESOURCES")
    threading.Timer(0.5, lambda: (pod.directory / "looks-that-fail").write_text("1000")).start()
    ran = watch(pod)
    assert ran.code == 2 and "may still get chips" in " ".join(ran.errors.split())
    assert "launch/tpu-pod.sh delete --name mine" in ran.errors


@pytest.mark.slow
def test_a_run_that_outlasts_its_hours_is_stopped_and_its_slice_deleted(pod):
    """When this fails, a run that hangs is paid for as long as it hangs."""
    pod.plans("wait")
    ran = pod.script("tpu-pod.sh", "watch", *SLICE, "--max-hours", "1", "--", *WORDS, RAPO_HOUR="3")
    assert ran.code == 2 and "1 hours are over" in ran.errors and ran.count("queued-resources delete") == 1, ran
    assert not (pod.directory / "request").exists()


def test_a_zone_that_gcloud_refuses_is_said_in_its_words(pod):
    """When this fails, a wrong zone or a login that ran out looks like a slice that is gone, and another one is paid for."""
    ran = pod.script("tpu-pod.sh", "create", *HERE[:2], "--zone", "us-nowhere1-a", *SLICE[4:])
    assert ran.code == 2 and "PERMISSION_DENIED" in ran.errors and ran.count("create") == 0


@pytest.mark.parametrize(
    ("topology", "asked"),
    [
        ("v5e:4x4", "--accelerator-type v5litepod-16 --runtime-version v2-alpha-tpuv5-lite"),
        ("v6e:8x8", "--accelerator-type v6e-64 --runtime-version v2-alpha-tpuv6e"),
        ("v5p:2x2x4", "--type v5p --topology 2x2x4 --runtime-version v2-alpha-tpuv5"),
    ],
)
def test_a_slice_has_the_name_that_rapo_plan_gives_it(pod, topology, asked):
    """When this fails, the slice that was planned for is not the one that is paid for."""
    words = [topology if word == "v5e:4x4" else word for word in SLICE]
    ran = pod.script("tpu-pod.sh", "create", *words, "--max-hours", "5")
    assert asked in ran.called[1] and "--spot --valid-until-duration 24h" in ran.called[1]
    flex = pod.script(
        "tpu-pod.sh", "create", *(w.replace("spot", "flex") for w in words), "--max-hours", "5", "--dry-run"
    )
    assert "flex-start" in flex.out and "5h" in flex.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no verb must be create,"),
        (["creat"], "creat must be create,"),
        (["create", *HERE[2:]], "--name is missing"),
        (["create", "--name"], "--name needs a value"),
        (["create", "--name", "Mine_1"], "--name=Mine_1 must be"),
        (["create", *HERE[:2]], "--zone= must be a zone"),
        (["create", *HERE, "--spot"], "--topology= must be as for rapo plan"),
        (["create", *HERE, "--topology", "v5e:3x3", "--spot"], "v5e:3x3 is no slice of v5e"),
        (["create", *HERE, "--topology", "tpu7x:2x2x1", "--spot"], "through GKE only"),
        (["create", *HERE, "--topology", "v5e:4x4"], "say what is paid"),
        (["create", *HERE, "--topology", "v5e:4x4", "--spot", "--flex"], "--flex and --spot exclude each other"),
        (["create", *HERE, "--topology", "v5e:4x4", "--flex", "--max-hours", "400"], "from 1 to 168 with --flex"),
        (["create", *HERE, "--max-hours", "soon"], "--max-hours=soon must be a whole number"),
        (["install", *HERE, "--storage", "bucket"], "--storage=bucket must be gs://BUCKET"),
        (["run", *HERE], "give what rapo is to do after --"),
        (["run", *HERE, "--", "plan", "x"], "rapo plan does not run on several hosts"),
        (["watch", *HERE, "--topology", "v5e:4x4", "--spot", "--", "train", "x"], "--spot needs --storage"),
        (["fetch", *HERE, "runs/mine"], "fetch takes RUN_DIR and LOCAL_DIR"),
        (["fetch", *HERE, "runs/mine", "/"], "/ exists; choose another place"),
        (["logs", *HERE, "--folow"], "--folow is no option"),
    ],
)
def test_a_mistake_gets_one_sentence(pod, words, said):
    """When this fails, a slip of the fingers reaches the cloud, or ends in a message of bash's."""
    assert_one_sentence(pod.script("tpu-pod.sh", *words), said)


def test_without_gcloud_it_says_where_to_get_it(pod):
    """When this fails, a newcomer without the Google Cloud CLI is told: command not found."""
    names = ("bash", "dirname", "fold", "cat")
    (pod.directory / "bin").mkdir()
    for name in names:
        (pod.directory / "bin" / name).symlink_to(shutil.which(name))
    ran = pod.script("tpu-pod.sh", "status", *HERE, PATH=str(pod.directory / "bin"))
    assert_one_sentence(ran, "gcloud is not installed; it comes with the Google Cloud CLI")
