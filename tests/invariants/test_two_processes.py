"""Two processes with four devices each, or four with two, are one process with eight."""

import json
import shutil
import signal
import time
from contextlib import ExitStack

import numpy as np
import pytest

from tests import tiny
from tests.tiny import runs
from tests.tiny.directories import write_weights

pytestmark = pytest.mark.slow


def in_two_processes(arguments, **more) -> tuple[list[int], str]:
    """Runs a verb in two processes that know each other: both exit codes, and what process 0 printed."""
    return in_processes(2, arguments, **more)


def in_processes(
    number, arguments, *, log, second=(), program_of_second=runs.PROGRAM, meanwhile=lambda processes, log: None
) -> tuple[list[int], str]:
    """The same in so many processes, of eight devices together. `second` are more arguments of the second alone, which may run
    another program."""
    coordinator = f"127.0.0.1:{runs.free_port()}"
    logs = [log.with_name(f"{log.name}-{index}") for index in range(number)]
    with ExitStack() as stack:
        processes = []
        for index, output in enumerate(logs):
            join = ["--coordinator", coordinator, "--num-processes", str(number), "--process-id", str(index)]
            started = [*arguments, *(second if index == 1 else ()), *join]
            how = {"num_devices": 8 // number, "program": ("-c", program_of_second if index == 1 else runs.PROGRAM)}
            processes.append(stack.enter_context(runs.started(started, log=output, **how)))
        meanwhile(processes, logs[0])
        deadline = time.monotonic() + runs.PATIENCE
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
    for output in logs:
        print(output.read_text()[-3000:])
    return codes, logs[0].read_text()


def train_in_two(world, run_dir, **more) -> tuple[list[int], str]:
    """`rapo train` in two processes."""
    return in_two_processes(world.train(run_dir), log=run_dir.with_name("log"), **more)


@pytest.fixture(scope="module")
def noticed(world, tmp_path_factory):
    """The run directory of two processes of which the second was told to stop, somewhere after step 3."""
    run_dir = tmp_path_factory.mktemp("noticed") / "run"

    def notify_the_second(processes, log):
        runs.wait_for(lambda: len(runs.metrics_of(run_dir)) >= 3, *processes, log=log)
        processes[1].terminate()

    codes, said = train_in_two(world, run_dir, meanwhile=notify_the_second)
    assert codes == [runs.INTERRUPTED, runs.INTERRUPTED], "the run ended before the notice arrived"
    assert "8 cpu" in said
    return run_dir


def test_notice_to_one_of_two_processes_saves_both_and_one_process_goes_on(world, undisturbed, noticed, tmp_path):
    """When this fails, the preemption of one host costs the pod its work since the last checkpoint, or hangs it, or a
    run cannot move from a pod to a single host."""
    run_dir = shutil.copytree(noticed, tmp_path / "run")
    step = runs.steps_of(run_dir)[-1]
    assert 3 <= step < runs.NUM_STEPS and len(runs.metrics_of(run_dir)) == step
    assert tiny.rapo(*world.train(run_dir)) == runs.DONE
    runs.assert_same_metrics(run_dir, undisturbed)


def test_two_processes_are_one_and_set_aside_a_checkpoint_that_only_one_of_them_sees_damaged(
    world, undisturbed, noticed, tmp_path
):
    """When this fails, a pod trains on other rows than a single host, or counts them twice; or one rotten file hangs it at
    every start: the host that reads it falls back to the checkpoint before, and the others wait for it for ever."""
    run_dir = shutil.copytree(noticed, tmp_path / "run")
    *_, before, newest = runs.steps_of(run_dir)
    written_by_the_second = run_dir / "checkpoints" / str(newest) / "state" / "ocdbt.process_1" / "d"
    (only_file,) = written_by_the_second.iterdir()
    only_file.unlink()
    codes, said = train_in_two(world, run_dir)
    assert codes == [runs.DONE, runs.DONE]
    assert f"going on from step {before}" in said
    runs.assert_same_metrics(run_dir, undisturbed)
    assert runs.steps_of(run_dir) == runs.steps_of(undisturbed)


def test_four_processes_stop_at_ctrl_c_and_go_on_as_one_and_as_two_on_other_meshes(world, undisturbed, tmp_path):
    """When this fails, Ctrl-C on a pod costs its work since the last checkpoint, or what four hosts saved cannot be read by
    other hosts, or is read as something else."""
    saved, one, two = tmp_path / "saved", tmp_path / "one", tmp_path / "two"

    def press(processes, log):
        runs.wait_for(lambda: len(runs.metrics_of(saved)) >= 3, *processes, log=log)
        processes[2].send_signal(signal.SIGINT)

    codes, _ = in_processes(4, world.train(saved), log=tmp_path / "log", meanwhile=press)
    assert codes == [runs.INTERRUPTED] * 4
    step = runs.steps_of(saved)[-1]
    assert 3 <= step < runs.NUM_STEPS and len(runs.metrics_of(saved)) == step
    for run_dir in (one, two):
        shutil.copytree(saved, run_dir)
    meshes = (["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"], ["mesh.data=2", "mesh.fsdp=4"])
    assert tiny.rapo(*world.train(one, *meshes[0])) == runs.DONE
    codes, _ = in_two_processes(world.train(two, *meshes[1]), log=tmp_path / "log")
    assert codes == [runs.DONE] * 2
    runs.assert_same_metrics(one, undisturbed, same_rows=False)
    runs.assert_same_metrics(two, undisturbed)


def test_a_process_that_alone_cannot_save_says_so_and_ends_the_other(world, tmp_path):
    """When this fails, a host whose disk is full keeps a pod waiting, and paid for, until a barrier ends after 20 minutes."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n{runs.PROGRAM}"
    run_dir = tmp_path / "run"
    codes, said = train_in_two(world, run_dir, program_of_second=limited)
    assert codes == [runs.USER_ERROR, runs.USER_ERROR]
    assert "process 1 (" in said and "and with it this one: no space left for" in said and "Traceback" not in said
    assert runs.steps_of(run_dir) == [] and not list((run_dir / "checkpoints").glob("*tmp*"))


def test_two_processes_that_were_started_differently_stop_and_say_how(world, tmp_path):
    """When this fails, a pod trains on a mixture of two configurations, and reports a loss that belongs to neither."""
    other = ("optimizer.learning_rate=1e-4", "seed=3", f"model.path={world.directory}/")
    codes, said = in_two_processes(world.train(tmp_path / "run"), second=other, log=tmp_path / "log")
    assert codes == [runs.USER_ERROR, runs.USER_ERROR]
    assert "optimizer.learning_rate is 0.001 in process 0 and 0.0001 in process 1" in said
    assert "seed is 0 in process 0 and 3 in process 1" in said and "model.path" not in said
    assert not (tmp_path / "run").exists()


def test_two_processes_with_other_weights_stop_before_they_are_mixed(world, tmp_path):
    """When this fails, a pod trains from a model of which one half is another model, and nothing says so."""
    other = shutil.copytree(world.directory, tmp_path / "other")
    write_weights(other, json.loads((other / "config.json").read_text()), seed=1)
    second = (f"model.path={other}",)
    codes, said = in_two_processes(world.train(tmp_path / "run"), second=second, log=tmp_path / "log")
    assert codes == [runs.USER_ERROR, runs.USER_ERROR]
    assert "not started with the same: model.safetensors of the model is " in said


def test_two_processes_score_like_one(world, tmp_path):
    """When this fails, `rapo score` on a pod writes other rewards than on one host, or hangs in its forward pass. Of each row the
    one process has the first half of the stored tokens, and the other the second."""
    own = {
        "model.path": world.directory,
        "data.path": world.directory / "pairs.jsonl",
        "objective.name": "bradley_terry",
    }
    reward_model = tmp_path / "reward_model"
    settings = [f"{key}={value}" for key, value in own.items()]
    settings += ["relabel.goals=[]", "objective.beta=null", "train.max_steps=1", f"run_dir={tmp_path / 'run'}"]
    assert tiny.rapo("train", world.directory / "run.yaml", *settings) == runs.DONE
    assert tiny.rapo("export", tmp_path / "run", reward_model) == runs.DONE

    def arguments(out):
        return [
            "score",
            str(world.directory / "run.yaml"),
            "--model",
            str(reward_model),
            "--out",
            str(out),
            *settings[:2],
        ]

    assert tiny.rapo(*arguments(tmp_path / "one.jsonl")) == runs.DONE
    shared = ["mesh.fsdp=1", "mesh.context=2", "mesh.tensor=4", "rows.length=256"]
    codes, said = in_two_processes([*arguments(tmp_path / "two.jsonl"), *shared], log=tmp_path / "log")
    assert codes == [runs.DONE, runs.DONE] and said.count("next: rapo train") == 1
    files = ((tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("one", "two"))
    one, two = ([json.loads(line)["rewards"] for line in lines] for lines in files)
    np.testing.assert_allclose(two, one, atol=1e-5)
    assert not (tmp_path / "two.jsonl.unfinished").exists()


def test_half_an_address_of_a_pod_is_refused(world, tmp_path, capsys):
    """When this fails, a process that was to join a pod trains alone, into the pod's directory."""
    assert tiny.rapo(*world.train(tmp_path / "run"), "--num-processes", "2") == runs.USER_ERROR
    assert "go together; add --coordinator and --process-id." in capsys.readouterr().err


def test_two_processes_export_and_answer_like_one(undisturbed, tmp_path):
    """When this fails, a pod mixes up its prompts, two hosts write one file, or an export is renamed before all have read
    it back."""
    tiny.write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Prompt {n}?"} for n in range(5)])
    two, one = tmp_path / "two", tmp_path / "one"
    codes, said = in_two_processes(["export", str(undisturbed), str(two)], log=tmp_path / "export-log")
    assert codes == [runs.DONE, runs.DONE] and said.count("read back") == 1
    assert tiny.rapo("export", undisturbed, one) == runs.DONE
    exports = [{path.name: path.read_bytes() for path in directory.iterdir()} for directory in (two, one)]
    assert exports[0] == exports[1]
    sampled = ["--prompts", str(tmp_path / "prompts.jsonl"), "--max-new-tokens", "8", "--temperature", "1"]
    answer = ["generate", str(one), *sampled, "--out"]
    codes, said = in_two_processes([*answer, str(tmp_path / "two.jsonl")], log=tmp_path / "generate-log")
    assert codes == [runs.DONE, runs.DONE] and said.count("new tokens/s") == 1
    assert tiny.rapo(*answer, tmp_path / "one.jsonl") == runs.DONE
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()
