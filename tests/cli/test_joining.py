"""What a process asks of JAX when it joins others, under the environments in which pods start it."""

import jax
import pytest
from jax._src.clusters import ClusterEnv, cloud_tpu_cluster

from rapo_jax import distributed
from rapo_jax.distributed import Pod, gpus_of, join
from rapo_jax.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


@pytest.fixture
def outside(monkeypatch):
    """No cluster in the environment."""
    import os

    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JAX_CO", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)


@pytest.fixture
def asked(monkeypatch, outside):
    """What jax.distributed.initialize is called with, and which GPUs JAX sees afterwards; nothing is started."""
    seen = {"jax_cuda_visible_devices": jax.config.read("jax_cuda_visible_devices")}

    def initialize(**arguments):
        seen.update(arguments)
        if arguments.get("cluster_detection_method") != "deactivate":
            found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 1)
            seen["found"] = found
            if found[3]:
                seen["jax_cuda_visible_devices"] = ",".join(map(str, found[3]))
            if found[0] is None:
                raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", seen.__setitem__)
    monkeypatch.setattr(distributed, "wait_for_first", lambda pod, deadline: None)
    return seen


@pytest.mark.parametrize(
    ("more", "gpus"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0"}, "all"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, "1"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, "4,5,6,7"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "CUDA_VISIBLE_DEVICES": "0"}, "all"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, "all"),
        ({"SLURM_TASKS_PER_NODE": "8,2"}, "1"),
        ({"SLURM_TASKS_PER_NODE": "8,1", "SLURM_LOCALID": "0"}, "all"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "JAX_LOCAL_DEVICE_IDS": "5"}, None),
    ],
)
def test_a_task_of_slurm_takes_its_share_of_the_gpus(more, gpus):
    """When this fails, seven of the eight GPUs of a node idle and nothing says so, or tasks take each other's memory."""
    assert gpus_of(SLURM | more) == gpus


def test_outside_of_slurm_a_process_takes_all_gpus():
    """When this fails, a box with eight GPUs trains on one."""
    assert gpus_of({}) == gpus_of({"SLURM_TASKS_PER_NODE": "2", "SLURM_JOB_ID": "1"}) == "all"
    assert gpus_of({"OMPI_MCA_orte_hnp_uri": "1"}) is None


def test_slurm_is_found_and_one_task_a_node_keeps_its_gpus(asked, monkeypatch):
    """When this fails, a job of Slurm does not join, or JAX's choice of one GPU a task stays where there is one task a node."""
    here = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"}
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    before = asked["jax_cuda_visible_devices"]
    join(Pod(gpus=gpus_of(here)))
    assert asked["found"] == ("gpu07:61517", 4, 3, [0])
    assert asked["jax_cuda_visible_devices"] == before


@pytest.mark.parametrize("slice_of", ["a Cloud TPU", "GKE"])
def test_a_tpu_slice_is_found(asked, monkeypatch, slice_of):
    """When this fails, every worker of a slice trains for itself, or none starts."""
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr("jax._src.clusters.cluster.running_in_cloud_tpu_vm", True)
    if slice_of == "GKE":
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,b,c,d")
        monkeypatch.setenv("TPU_WORKER_ID", "2")
        monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "true")  # as GKE sets it
    metadata = {
        "agent-worker-number": "2",
        "worker-network-endpoints": "w:0:127.0.0.1,w:1:10.0.0.2,w:2:10.0.0.3,w:3:10.0.0.4",
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'",
    }
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (metadata[key], 200))
    join(Pod(gpus=gpus_of({})))
    host = "localhost" if slice_of == "GKE" else "127.0.0.1"
    assert asked["found"] == (f"{host}:8482", 4, 2, None)


def test_given_an_address_nothing_else_is_asked(asked, monkeypatch):
    """When this fails, a process in Kubernetes warns of a package that it does not need, or asks a server that is not there."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    join(Pod(coordinator="job-0-0.job:8476", num_processes=2, process_id=1, gpus=gpus_of({})))
    assert asked["cluster_detection_method"] == "deactivate"
    assert (asked["coordinator_address"], asked["process_id"]) == ("job-0-0.job:8476", 1)


def test_where_there_is_no_cluster_the_sentence_says_what_to_give(asked):
    """When this fails, --distributed on a plain machine ends in JAX's words about an argument that the user never saw."""
    with pytest.raises(UserError, match=r"no Slurm.* Give --coordinator, --num-processes and --process-id"):
        join(Pod(gpus=gpus_of({})))
