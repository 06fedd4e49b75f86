"""launch/gke.sh and its manifests, launch/slurm.sbatch and launch/skypilot/."""

import subprocess

import pytest
import yaml

from tests.launch.rehearsal import ROOT, Cloud, assert_one_sentence, cloud

IMAGE = ("--image", "europe-docker.pkg.dev/p/r/rapo:tpu", "--storage", "gs://my-bucket")
ENDED_BADLY = {75, 76, 134, 137, 143}  # after which the same command goes on


@pytest.fixture
def cluster(tmp_path) -> Cloud:
    return cloud(tmp_path)


def manifest(cluster: Cloud, topology: str, *more: str) -> tuple[dict, dict]:
    """The JobSet, and its pods' specification."""
    words = ("show", "--name", "mine", "--topology", topology, *IMAGE, *more)
    ran = cluster.script("gke.sh", *words, "--", "train", "configs/tiny.yaml", 'a=$(B) "c" \\')
    assert ran.code == 0 and not ran.called and "${" not in ran.out, ran
    tree = yaml.safe_load(ran.out)
    return tree, tree["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("topology", "hosts", "chips", "accelerator"),
    [
        ("v5e:2x4", 1, 8, "tpu-v5-lite-podslice"),
        ("v5e:4x4", 4, 4, "tpu-v5-lite-podslice"),
        ("v6e:8x8", 16, 4, "tpu-v6e-slice"),
        ("v5p:2x2x4", 4, 4, "tpu-v5p-slice"),
        ("h100:2x8", 2, 8, "nvidia-h100-80gb"),
    ],
)
def test_a_job_has_a_pod_a_host_with_all_its_chips(cluster, topology, hosts, chips, accelerator):
    """When this fails, pods wait for ever for nodes that do not exist, or chips idle."""
    tree, pod = manifest(cluster, topology)
    job = tree["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (hosts, hosts, "Indexed")
    (amount,) = pod["containers"][0]["resources"]["limits"].values()
    assert amount == chips and accelerator in pod["nodeSelector"].values()
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]
    assert manifest(cluster, topology, "--spot")[1]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_the_pods_of_gpus_know_the_first_one_and_their_number(cluster):
    """When this fails, no process finds another, and all end with 76."""
    tree, pod = manifest(cluster, "h100:2x8")
    (container,) = pod["containers"]
    words = ["train", "configs/tiny.yaml", 'a=$$(B) "c" \\']  # Kubernetes makes $( of $$(
    first = "mine-worker-0-0.mine:8476"  # JobSet's name for pod 0 of job 0 of the set's "worker"
    assert container["args"] == [
        *words, "--coordinator", first, "--num-processes", "2", "--process-id", "$(RAPO_PROCESS)"
    ]  # fmt: skip
    assert tree["metadata"]["name"] == "mine" and tree["spec"]["replicatedJobs"][0]["name"] == "worker"
    assert "RAPO_PROCESS" in [each["name"] for each in container["env"]]
    assert manifest(cluster, "v5e:4x4")[1]["containers"][0]["args"] == [*words, "--distributed"]


@pytest.mark.parametrize("topology", ["v5e:4x4", "h100:2x8"])
def test_a_mistake_ends_the_set_and_everything_else_starts_it_again(cluster, topology):
    """When this fails, a misspelt key is retried on a paid slice, or a preemption ends the run."""
    tree, pod = manifest(cluster, topology, "--restarts", "7", "--max-hours", "2")
    job = tree["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert (rule["action"], codes["operator"]) == ("FailJob", "In") and 2 in codes["values"]
    assert not ENDED_BADLY & set(codes["values"]) and 0 not in codes["values"]
    assert codes["containerName"] == pod["containers"][0]["name"] and pod["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 0 and job["activeDeadlineSeconds"] == 7200
    policy = tree["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    ends = {reason: each["action"] for each in policy["rules"] for reason in each["onJobFailureReasons"]}
    assert ends == {"PodFailurePolicy": "FailJobSet", "DeadlineExceeded": "FailJobSet"}


def test_all_pods_see_one_directory(cluster):
    """When this fails, each host writes its part of a checkpoint to a disk that dies with it."""
    _, pod = manifest(cluster, "v5e:4x4")
    mounts = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert mounts.keys() == volumes.keys() and mounts["kept"] == "/mnt/rapo"
    assert volumes["kept"]["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"
    _, pod = manifest(cluster, "v5e:4x4", "--storage", "pvc:shared")
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "shared"


def test_the_manifest_is_applied_and_shown_in_a_dry_run(cluster):
    """When this fails, what is read in the dry run is not what the cluster gets."""
    words = ("apply", "--name", "mine", "--topology", "v5e:4x4", *IMAGE, "--namespace", "team")
    dry = cluster.script("gke.sh", *words, "--dry-run", "--", "train", "x.yaml")
    ran = cluster.script("gke.sh", *words, "--", "train", "x.yaml")
    assert dry.called == [] and ran.called == ["kubectl --namespace team apply --filename -"]
    applied = (cluster.directory / "applied").read_text()
    assert yaml.safe_load(applied)["kind"] == "JobSet" and dry.out.startswith(applied)
    assert cluster.script("gke.sh", "delete", "--name", "mine").called == ["kubectl delete jobset mine"]


def test_xpk_is_called_with_the_codes_that_start_again(cluster):
    """When this fails, xpk takes an interrupted run for one that failed."""
    words = ("xpk", "--name", "mine", "--topology", "v5p:2x2x4", *IMAGE[:2], "--cluster", "c", "--zone", "z")
    ran = cluster.script("gke.sh", *words, "--", "train", "x.yaml", "relabel.goals=[]")
    assert ran.called == [
        "xpk workload create --workload mine --cluster c --zone z --tpu-type v5p-32 --num-slices 1 --docker-image "
        f"{IMAGE[1]} --max-restarts 30 --restart-on-exit-codes 75,76 "
        "--command rapo train x.yaml 'relabel.goals=[]' --distributed"
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["appl"], "appl must be apply,"),
        (["apply"], "--name is missing"),
        (["apply", "--name", "m"], "--topology= must be as for rapo plan"),
        (["apply", "--name", "m", "--topology", "v5e:4x4x4"], "must be two numbers"),
        (["apply", "--name", "m", "--topology", "v7:4x4"], "the kinds are"),
        (["apply", "--name", "m", "--topology", "h100:2x9"], "at most 8 GPUs"),
        (["apply", "--name", "m", "--topology", "v5e:4x4"], "--image= must be an image"),
        (["apply", "--name", "m", "--topology", "v5e:4x4", *IMAGE], "give what rapo is to do after --"),
        (["apply", "--name", "m", "--topology", "v5e:4x4", *IMAGE, "--", "keys"], "rapo keys does not run on several"),
        (["show", "--name", "m", "--topology", "v5e:4x4", *IMAGE[:2], "--", "train", "x"], "--storage= must be gs://"),
        (["show", "--name", "m", "--topology", "v5e:4x4", *IMAGE, "--", "train", "a\nb"], "hold a line break"),
        (["xpk", "--name", "m", "--topology", "v5e:4x4", *IMAGE[:2], "--", "train", "x"], "needs --cluster and --zone"),
        (["xpk", "--name", "m", "--topology", "h100:2x8", *IMAGE, "--", "train", "x"], "xpk runs v4, v5e, v5p and v6e"),
        (["logs", "--name", "m", "--fast"], "--fast is no option"),
    ],
)
def test_a_mistake_gets_one_sentence(cluster, words, said):
    """When this fails, a slip of the fingers reaches the cluster, or ends in a message of bash's."""
    assert_one_sentence(cluster.script("gke.sh", *words), said)


def in_slurm(cluster: Cloud, code: int, **more: str):
    """The batch script in a job whose srun ends with this code."""
    cluster.plans(code)
    environment = {"SLURM_JOB_ID": "7", "RAPO": str(cluster.directory / "venv/bin/rapo")} | more
    sleepless = cluster.directory / "sleep"  # Slurm would end the script meanwhile
    sleepless.write_text("#!/bin/sh\n")
    sleepless.chmod(0o755)
    path = f"{cluster.directory}:{cluster.environment['PATH']}"
    return cluster.script("slurm.sbatch", "train", "x.yaml", "a=b c", **environment, PATH=path)


@pytest.mark.parametrize("code", [0, 2, 13, 75, 76, 130, 137])
def test_slurm_queues_a_job_again_that_can_go_on(cluster, code):
    """When this fails, a preempted job stays away, or a mistaken one comes back for ever."""
    ran = in_slurm(cluster, code)
    assert ran.code == code
    assert (
        ran.called[0]
        == f"srun --kill-on-bad-exit=0 --label {cluster.directory}/venv/bin/rapo train x.yaml a=b c --distributed"
    )
    assert ran.called[1:] == (["scontrol requeue 7"] if code in ENDED_BADLY else [])


def test_slurm_queues_a_job_again_only_so_often(cluster):
    """When this fails, a run that dies at every start keeps its nodes from others for ever."""
    assert len(in_slurm(cluster, 76, SLURM_RESTART_COUNT="3", RAPO_RESTARTS="3").called) == 1
    assert len(in_slurm(cluster, 76, SLURM_RESTART_COUNT="2", RAPO_RESTARTS="3").called) == 2


@pytest.mark.parametrize(
    ("words", "more", "said"),
    [
        ([], {}, "give what rapo is to do"),
        (["plan", "x"], {}, "rapo plan does not run on several hosts"),
        (["train", "x"], {}, "this is a batch script"),
        (["train", "x"], {"RAPO_RESTARTS": "many"}, "RAPO_RESTARTS=many must be a whole number"),
        (["train", "x"], {"SLURM_JOB_ID": "7", "RAPO": "/no/rapo"}, "/no/rapo is not on the path of the job"),
    ],
)
def test_a_mistake_in_a_batch_job_gets_one_sentence(cluster, words, more, said):
    """When this fails, a job waits a day in the queue to end with a message of bash's."""
    assert_one_sentence(cluster.script("slurm.sbatch", *words, **more), said)


def test_the_batch_script_asks_slurm_for_time_to_save():
    """When this fails, Slurm kills a job at the end of its time without a word, or does not take it back."""
    asked = [line.removeprefix("#SBATCH ") for line in (ROOT / "launch/slurm.sbatch").read_text().splitlines()]
    assert {"--signal=TERM@180", "--requeue", "--ntasks-per-node=1", "--open-mode=append"} <= set(asked)


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_the_tasks_of_skypilot_recover_and_join(kind):
    """When this fails, a spot machine's run is not found again, or each node trains for itself."""
    task = yaml.safe_load((ROOT / f"launch/skypilot/{kind}.yaml").read_text())
    assert set(task) <= {"name", "workdir", "num_nodes", "envs", "resources", "file_mounts", "setup", "run"}
    assert set(task["resources"]["job_recovery"]["recover_on_exit_codes"]) == ENDED_BADLY
    assert "max_restarts_on_errors" not in task["resources"]["job_recovery"]  # a mistake is not repeated
    assert task["resources"]["use_spot"] and "/mnt/rapo" in task["file_mounts"] and task["envs"]["RAPO"] is None
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)
    found = "--distributed" if kind == "tpu" else "--process-id"
    assert found in task["run"] and "exec ~/rapo-venv/bin/rapo $RAPO" in task["run"]
