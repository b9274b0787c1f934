"""Every file in cluster/: by Ray's schema, KubeRay's field names, shell syntax, and the versions of pyproject.toml."""

import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import tomllib
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY = "2.60.0"
CHECKED = {
    "Containerfile", "README.md", "aws.yaml", "gcp.yaml", "grafana.json", "onpremise.yaml", "raycluster.yaml",
    "rayjob.yaml", "runtime_env.yaml", "slurm.sbatch",
}  # fmt: skip


def load(name):
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def test_no_file_is_unchecked():
    assert {path.name for path in CLUSTER.iterdir()} == CHECKED


@pytest.mark.parametrize("name", ["onpremise.yaml", "aws.yaml", "gcp.yaml"])
def test_ray_takes_the_cluster_file(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = load(name)
    validate_config(prepare_config(dict(config)))
    text = (CLUSTER / name).read_text()
    assert text.count("RAY_AUTH_MODE=token ray start") == 2, "every node asks for the token"
    assert "--dashboard-host=127.0.0.1" in text
    with pytest.raises(jsonschema.ValidationError, match="upscaling_sped"):
        validate_config(config | {"upscaling_sped": 1})


@pytest.mark.parametrize(("name", "kind"), [("raycluster.yaml", "RayCluster"), ("rayjob.yaml", "RayJob")])
def test_kuberay_knows_every_field(name, kind):
    fields = json.loads((Path(__file__).parent / "kuberay_fields.json").read_text())
    resource = load(name)[0]
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", kind)
    jsonschema.validate(resource["spec"], fields[kind])
    cluster = resource["spec"] if kind == "RayCluster" else resource["spec"]["rayClusterSpec"]
    jsonschema.validate(cluster, fields["RayCluster"])
    assert cluster["rayVersion"] == RAY and cluster["authOptions"]["mode"] == "token"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == f"distmeta:{version()}"
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    with pytest.raises(jsonschema.ValidationError, match="rayVersoin"):
        jsonschema.validate(cluster | {"rayVersoin": RAY}, fields["RayCluster"])


def test_entrypoints_are_commands_that_distmeta_takes():
    import small

    (job, *_) = load("rayjob.yaml")
    words = job["spec"]["entrypoint"].split()
    assert words[:3] == ["python", "-m", "distmeta"]
    config = small.parsed(words[3], tuple(words[4:]))
    assert config.cluster.storage == "/shared" and config.cluster.workers == 2
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]


def test_the_slurm_script_is_sound_shell_and_gives_the_run_its_cluster(tmp_path):
    script = CLUSTER / "slurm.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name, body in {"scontrol": "echo node1; echo node2", "srun": 'printf "%s\\n" "$RAY_TMPDIR" "$@"'}.items():
        (stubs / name).write_text(f"#!/bin/sh\n{body}\n")
        (stubs / name).chmod(0o755)
    env = {"PATH": f"{stubs}:{Path(subprocess.sys.executable).parent}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path),
           "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}  # fmt: skip
    command = ["bash", script, "default", "outer.steps=9"]
    folder, *words = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()
    again = subprocess.run(command, env=env | {"SLURM_JOB_ID": "8"}, capture_output=True, text=True, check=True)
    assert words[:6] == ["--kill-on-bad-exit=1", "ray", "symmetric-run", "--address", "node1:20007", "--min-nodes"]
    assert folder == "/tmp/distmeta-7" and again.stdout.split()[:6:5] == ["/tmp/distmeta-8", "node1:20008"]
    import small

    config = small.parsed("train", tuple(words[words.index("train") + 1 :]))
    assert (config.outer.steps, config.cluster.workers, config.cluster.address) == (9, 2, "auto")
    assert config.cluster.storage == str(tmp_path) and not list(tmp_path.glob(".ray-token*"))


def test_the_runtime_environment_is_one():
    from ray.runtime_env import RuntimeEnv

    (found,) = load("runtime_env.yaml")
    RuntimeEnv(**found)


def test_versions_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\[<>=]", line)[0]: line for line in project["dependencies"]}
    assert ">=2.58,<2.61" in wanted["ray"]
    for path in CLUSTER.iterdir():
        text = path.read_text()
        assert set(re.findall(r"ray(?:project/ray:|\[[\w,]+\]==)(\d+\.\d+\.\d+)", text)) <= {RAY}, path
        assert set(re.findall(r"deepspeed==([\d.]+)", text)) <= {"0.19.8"}, path
        assert set(re.findall(r"distmeta:([\d.]+\d)", text)) <= {version()}, path


def version():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_dashboard_asks_for_gauges_of_ours_alone():
    panels = json.loads((CLUSTER / "grafana.json").read_text())["panels"]
    asked = {name for p in panels for t in p["targets"] for name in re.findall(r"ray_distmeta_\w+", t["expr"])}
    from distmeta.learner.flow import GAUGES

    assert asked == {f"ray_{name}" for name in GAUGES}
