"""Which machines take part: what TF_CONFIG, Slurm and Kubernetes say, and nonsense."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from typing import Any

import pytest
import yaml

from keras_resnet import cli
from keras_resnet.errors import UsageError
from keras_resnet.training.cluster import Cluster, find_cluster
from keras_resnet.training.recipes import RECIPES
from tests.layout import ROOT

TWO = {"worker": ["host1:12345", "host2:12346"]}
SLURM = {
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "n[9-11]",
    "SLURM_STEP_TASKS_PER_NODE": "1,2,1",
}
KUBERNETES = {
    "JOB_COMPLETION_INDEX": "1",
    "HOSTNAME": "resnet-50-1",
    "KERAS_RESNET_WORKERS": "3",
    "KERAS_RESNET_SERVICE": "trainers",
}


def tf_config(cluster: object, job: object = "worker", index: object = 0) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})}


@pytest.mark.parametrize(
    ("environment", "addresses", "index"),
    [
        (tf_config(TWO, index=1), ("host1:12345", "host2:12346"), 1),
        (tf_config({"chief": ["a:1"], "worker": ["b:2"]}, "chief"), ("a:1", "b:2"), 0),
        (tf_config({"chief": ["a:1"], "worker": ["b:2"]}), ("a:1", "b:2"), 1),
        (tf_config({"worker": ["[::1]:80"]}), ("[::1]:80",), 0),
        (SLURM, ("n9:12345", "n10:12345", "n10:12346", "n11:12345"), 2),  # in the order of the ranks
        (KUBERNETES, tuple(f"resnet-50-{i}.trainers:12345" for i in range(3)), 1),
        ({**SLURM, **tf_config(TWO)}, ("host1:12345", "host2:12346"), 0),
    ],
)
def test_a_launchers_variables_give_addresses_and_a_place_among_them(
    environment: dict[str, str], addresses: tuple[str, ...], index: int
) -> None:
    found = find_cluster(environment)
    assert found is not None
    assert (found.addresses, found.index) == (addresses, index)
    assert found.address == addresses[index]


@pytest.mark.parametrize(
    "environment",
    [{}, {"TF_CONFIG": ""}, {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_PROCID": "0"}, {"HOSTNAME": "a-1"}],
)
def test_without_a_launcher_there_is_no_cluster(environment: dict[str, str]) -> None:
    assert find_cluster(environment) is None


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"TF_CONFIG": "nonsense"}, "TF_CONFIG is no JSON"),
        ({"TF_CONFIG": "[]"}, "no cluster or no task"),
        ({"TF_CONFIG": "1"}, "no cluster or no task"),
        ({"TF_CONFIG": json.dumps({"cluster": TWO})}, "no cluster or no task"),
        (tf_config({"ps": ["a:1"], "worker": ["b:1"]}), "jobs \\['ps', 'worker'\\]"),
        (tf_config(TWO, "evaluator"), "type 'evaluator'"),
        (tf_config(TWO, ["worker"]), "type \\['worker'\\]"),
        (tf_config({"worker": "a:1"}), "worker='a:1'"),
        (tf_config({"worker": [1]}), "worker=\\[1\\]"),
        (tf_config(TWO, index=2), "index 2: it must be a whole number from 0 to 1"),
        (tf_config(TWO, index="0"), "index '0'"),
        (tf_config(TWO, index=True), "index True"),
        (tf_config({"worker": ["host1"]}), "worker 'host1': it must be host:port"),
        (tf_config({"worker": ["host1:99999"]}), "worker 'host1:99999'"),
        (tf_config({"worker": ["a:1", "a:1"]}), "'a:1' more than once"),
        ({**SLURM, "SLURM_PROCID": "7"}, "Slurm has 4 workers, and this is number 7"),
        ({**SLURM, "SLURM_PROCID": "x"}, "Slurm's variables make no cluster"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1,2"}, "Slurm's variables make no cluster"),
        ({**KUBERNETES, "HOSTNAME": "resnet-50"}, "Kubernetes' variables make no cluster"),
        ({**KUBERNETES, "KERAS_RESNET_WORKERS": "three"}, "KERAS_RESNET_WORKERS='three'"),
        ({**KUBERNETES, "KERAS_RESNET_WORKERS": "1"}, "Kubernetes has 1 workers, and this is number 1"),
    ],
)
def test_nonsense_is_refused_with_what_is_wrong(environment: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_cluster(environment)


def manifest() -> tuple[dict[str, Any], dict[str, Any]]:
    """The service and the job of the example."""
    service, job = yaml.safe_load_all((ROOT / "examples" / "kubernetes.yaml").read_text(encoding="utf-8"))
    return service, job


def test_the_kubernetes_example_makes_a_cluster_of_all_its_pods() -> None:
    service, job = manifest()
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    # As the documentation of indexed jobs has it: the host name of pod 3 and its index.
    environment |= {"JOB_COMPLETION_INDEX": "3", "HOSTNAME": f"{job['metadata']['name']}-3"}
    found = find_cluster(environment)
    assert found is not None
    assert len(found.addresses) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert found.address == f"resnet50-3.{pod['subdomain']}:{container['ports'][0]['containerPort']}"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}


def test_the_commands_of_the_examples_are_such_as_the_command_line_takes() -> None:
    (container,) = manifest()[1]["spec"]["template"]["spec"]["containers"]
    script = (ROOT / "examples" / "slurm.sh").read_text(encoding="utf-8")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    slurm = script.replace("\\\n", " ").split("keras-resnet train", 1)[1].splitlines()[0]
    for words in (["train", *container["args"]], ["train", *shlex.split(slurm)]):
        options = cli._parse(words)
        assert options.recipe in RECIPES
        assert options.strategy == "auto"


def test_a_cluster_names_its_own_address() -> None:
    assert Cluster(("a:1", "b:2"), 1, "TF_CONFIG").address == "b:2"


NEEDS_CORES = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or (os.cpu_count() or 1) < 2, reason="needs two cores, on Linux"
)


def with_bound_threads(program: str) -> str:
    """What a program prints that starts on all cores, where OMP_PROC_BIND is set."""
    unpinned = "import os, sys; os.sched_setaffinity(0, range(os.cpu_count())); exec(sys.argv[1])"
    environment = {**os.environ, "OMP_PROC_BIND": "true"}
    command = [sys.executable, "-c", unpinned, program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@NEEDS_CORES
@pytest.mark.parametrize("first", ["keras_resnet.training", "keras, keras_resnet.training"])
def test_a_trainer_has_all_cores_where_openmp_binds_its_threads(first: str) -> None:
    """What scikit-learn's libgomp does to the main thread is done here by hand, for it may be absent."""
    program = (
        "import os\n"
        f"before = {'os.sched_getaffinity(0)' if first.startswith('keras_') else 'None'}\n"
        f"if before is None: os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        f"import {first}\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from keras_resnet.training.strategy import open_place\n"
        "open_place(); print(len(os.sched_getaffinity(0)))"
    )
    assert int(with_bound_threads(program)) > 1


@NEEDS_CORES
@pytest.mark.parametrize("used_before", [False, True])
def test_no_thread_of_a_trainer_is_left_on_one_core_by_libgomp_itself(used_before: bool) -> None:
    """As in a notebook that has computed something before it trains: TensorFlow's threads are there by then."""
    pytest.importorskip("sklearn")  # which brings libgomp
    program = (
        "import os, keras\n"
        "print(len(os.sched_getaffinity(0)))\n"
        f"{'keras.ops.matmul(*[keras.random.normal((300, 300))] * 2)' if used_before else ''}\n"
        "from keras_resnet.training.strategy import open_place\n"
        "open_place()\n"
        "keras.ops.matmul(*[keras.random.normal((300, 300))] * 2)\n"
        "print(min(len(os.sched_getaffinity(int(thread))) for thread in os.listdir('/proc/self/task')))"
    )
    bound, found = map(int, with_bound_threads(program).split())
    if bound > 1:
        pytest.skip("libgomp did not bind the thread that imports Keras")
    assert found > 1
