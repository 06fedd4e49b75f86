"""What holds for every script of launch/: its form, its dry run, the machine that it ends on."""

import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.launch.rehearsal import ROOT, Cloud, assert_one_sentence, cloud

SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / "launch/slurm.sbatch"])
HERE = ("--name", "mine", "--zone", "us-west4-a")
WORDS = ("--", "train", "configs/tiny.yaml", "run_dir=/mnt/rapo/runs/mine")
IMAGE = ("--topology", "v5e:4x4", "--image", "r/rapo:tpu")
BOX = ("--host", "root@192.0.2.1")
DRY = [
    ("tpu-pod.sh", "watch", *HERE, "--topology", "v5e:4x4", "--spot", "--storage", "gs://bucket", "--dry-run", *WORDS),
    *(("tpu-pod.sh", verb, *HERE, "--dry-run") for verb in ("install", "status", "logs", "stop", "delete")),
    ("tpu-pod.sh", "fetch", *HERE, "--dry-run", "/mnt/rapo/runs/mine", "mine-hf"),
    ("gke.sh", "xpk", "--name", "mine", *IMAGE, "--cluster", "c", "--zone", "z", "--dry-run", *WORDS),
    *(("gke.sh", verb, "--name", "mine", "--dry-run") for verb in ("status", "logs", "delete")),
    ("gpu-box.sh", "run", *BOX, "--dry-run", *WORDS),
    *(("gpu-box.sh", verb, *BOX, "--dry-run") for verb in ("install", "status", "logs", "stop")),
    ("gpu-box.sh", "fetch", *BOX, "--dry-run", "runs/mine", "mine-hf"),
    ("slurm.sbatch", "--dry-run", *WORDS[1:]),
    ("on-worker.sh", "--dry-run", "install", "tpu"),
    ("on-worker.sh", "--dry-run", "mount", "filestore.example:/share"),
    ("on-worker.sh", "--dry-run", "start", "mine", *WORDS),
]


@pytest.fixture
def place(tmp_path) -> Cloud:
    return cloud(tmp_path)


@pytest.mark.parametrize("words", DRY, ids=[" ".join(words[:2]) for words in DRY])
def test_a_dry_run_shows_and_calls_nothing(place, words):
    """When this fails, a dry run costs money, or its lines cannot be read."""
    ran = place.script(*words)
    assert ran.code == 0 and ran.called == [] and ran.errors == "", ran
    assert "+ " in ran.out
    # One word alone, such as a command for another host, may be longer.
    long = [line for line in ran.out.splitlines() if len(line) > 80 and not line.startswith("    ")]
    assert long == []


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.name for script in SCRIPTS])
def test_a_script_is_clean(script):
    """When this fails, a file name with a space, or a program that fails, leads a script astray."""
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if shellcheck:
        done = subprocess.run([shellcheck, "-x", script], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    subprocess.run(["bash", "-n", script], check=True)


def test_the_image_copies_files_that_exist_and_installs_what_is_declared():
    """When this fails, the image cannot be built, or holds no TPU support."""
    lines = (ROOT / "launch/container/Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.+)$", lines, re.MULTILINE) for word in line.split()[:-1]]
    assert {"rapo_jax", "configs", "pyproject.toml"} <= set(copied)
    assert all((ROOT / word).exists() for word in copied)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (default,) = re.findall(r"^ARG EXTRA=(.+)$", lines, re.MULTILINE)
    assert {"tpu", "cuda", "gcs"} <= extras.keys() and default.split(",") == ["tpu", "gcs"]


def test_a_run_that_keeps_something_in_a_bucket_gets_what_that_needs(place, tmp_path):
    """When this fails, a pod is paid for until its first save, which says that a package is missing."""
    config = tmp_path / "mine.yaml"
    config.write_text("train: {checkpoints: gs://bucket/runs/mine}\n")
    by_word, by_file = ["train", "configs/tiny.yaml", "train.checkpoints=gs://bucket/mine"], ["train", str(config)]
    for words, extra in ((by_word, "[tpu,gcs]"), (by_file, "[tpu,gcs]"), (WORDS[1:], "[tpu]")):
        shown = place.script("on-worker.sh", "--dry-run", "install", "tpu", "--", *words)
        assert shown.code == 0 and extra in shown.out, shown
    assert "[gcs]" in place.script("on-worker.sh", "--dry-run", "install", "cpu", "--", *by_word).out
    for script, *options in (("tpu-pod.sh", *HERE), ("gpu-box.sh", *BOX)):
        for verb in ("install", "run"):
            told = place.script(script, verb, *options, "--dry-run", "--", *by_word).out.replace("\\\n", "")
            assert re.search(r"install (tpu|cuda) -- +train", " ".join(told.split())), told
        assert " install " not in place.script(script, "run", *options, "--dry-run", *WORDS).out
    assert not place.heard("worker")


def worker(place: Cloud, *words: str):
    home = place.directory / "worker"
    home.mkdir(exist_ok=True)
    return place.script("on-worker.sh", *words, HOME=str(home), RAPO_VENV=str(place.directory / "venv"))


def state(place: Cloud) -> str:
    return worker(place, "state", "mine").out.split(maxsplit=1)[1].strip()


def until(place: Cloud, wanted: str) -> None:
    deadline = time.monotonic() + 30
    while state(place) != wanted:
        assert time.monotonic() < deadline, state(place)
        time.sleep(0.05)


def test_a_program_lives_on_without_its_ssh_and_its_end_is_known(place):
    """When this fails, a closed laptop ends a night's run, or nobody can tell how it ended."""
    place.plans("wait", 76)
    assert state(place) == "none"
    worker(place, "start", "mine", *WORDS)  # the shell that started it is gone
    assert state(place) == "running"
    assert "running already" in worker(place, "start", "mine", *WORDS).out
    worker(place, "stop", "mine")
    until(place, "stopped")
    worker(place, "start", "mine", *WORDS)
    until(place, "exit 76")
    assert len(place.heard("worker")) == 2
    log = worker(place, "log", "mine").out
    assert log.count("this is rapo train") == 2


def test_a_program_that_died_with_its_host_is_lost(place):
    """When this fails, a host that was started anew seems to train."""
    kept = place.directory / "worker" / ".rapo" / "mine"
    kept.mkdir(parents=True)
    (kept / "log").touch()
    (kept / "pid").write_text("1 another-boot\n")
    assert state(place) == "lost"


def test_a_box_trains_and_gives_its_export(place, tmp_path):
    """When this fails, a rented machine is paid for without giving the model."""
    (place.directory / "box").mkdir()
    place.plans("wait", "export")
    assert place.script("gpu-box.sh", "install", *BOX, "--extra", "cpu").code == 0
    assert place.script("gpu-box.sh", "put", *BOX, str(ROOT / "LICENSE")).code == 0
    assert (place.directory / "box/rapo_jax/files/LICENSE").is_file()
    for _ in range(2):
        assert place.script("gpu-box.sh", "run", *BOX, *WORDS).code == 0
    assert len(place.heard("box")) == 1 and "running" in place.script("gpu-box.sh", "status", *BOX).out
    assert place.script("gpu-box.sh", "stop", *BOX).code == 0
    for step in (2, 10, "12.tmp"):
        (place.directory / "box/rapo_jax/runs/mine/checkpoints" / str(step)).mkdir(parents=True)
    ran = place.script("gpu-box.sh", "fetch", *BOX, "runs/mine", str(tmp_path / "out"))
    assert ran.code == 0, ran.errors
    assert (tmp_path / "out").is_dir()
    assert place.heard("box")[-1] == "<export><runs/mine><runs/mine-10-hf><--step><10>"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gpu-box.sh", "start"], "start must be install,"),
        (["gpu-box.sh", "run"], "--host= must be USER@ADDRESS"),
        (["gpu-box.sh", "run", "--host", "a b"], "--host=a b must be USER@ADDRESS"),
        (["gpu-box.sh", "run", "--host", "-oProxyCommand=x"], "-oProxyCommand=x must be USER@ADDRESS"),
        (["gpu-box.sh", "run", *BOX, "--port", "ssh"], "--port=ssh must be a whole number"),
        (["gpu-box.sh", "run", *BOX, "--extra", "rocm"], "--extra=rocm must be cuda or cpu"),
        (["gpu-box.sh", "run", *BOX], "give what rapo is to do after --"),
        (["gpu-box.sh", "put", *BOX, "/no/such"], "there is no /no/such here"),
        (["gpu-box.sh", "fetch", *BOX, "a"], "fetch takes RUN_DIR and LOCAL_DIR"),
        (["on-worker.sh"], "no verb must be install,"),
        (["on-worker.sh", "install", "rocm"], "install rocm must be install tpu, cuda or cpu"),
        (["on-worker.sh", "mount", "bucket"], "mount=bucket must be gs://BUCKET"),
        (["on-worker.sh", "start", "mine", "train"], "start takes NAME --"),
        (["on-worker.sh", "start", "../mine", *WORDS], "the name of a run=../mine must be"),
        (["on-worker.sh", "log", "nothing"], "nothing called nothing was started"),
    ],
)
def test_a_mistake_gets_one_sentence(place, words, said):
    """When this fails, a slip of the fingers reaches a machine, or ends in a message of bash's."""
    assert_one_sentence(place.script(*words, HOME=str(place.directory)), said)


def test_a_box_that_cannot_be_reached_is_said(place):
    """When this fails, a wrong address looks like a machine on which all is well."""
    ran = place.script("gpu-box.sh", "install", *BOX)
    assert ran.code == 2 and "cannot be reached" in ran.errors
