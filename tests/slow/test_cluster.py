"""EXECUTOR=slurm and kubernetes without a cluster: what is submitted, and that a submitted job does its work."""

import base64
import json
import os
import shlex
import stat
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nbformat
import pytest
import yaml

from lib.settings.load import load_profile
from lib.settings.paths import ROOT
from lib.studies.cases import headline_attacks

QUICK = "--retries 0 --latency-wait 1 --seconds-between-status-checks 1"
JOBS = load_profile("smoke").jobs
FIRST = {"mdlm-poisoned", "few-rate-0-0", "few-target-refusal-0", "00_quickstart", "01_poisoning"}  # wait for no other
FIRST |= {attack.name for attack in headline_attacks(load_profile("smoke"))}


@pytest.fixture
def checkout(tmp_path):
    """A folder with a build of its own, so that nothing here disturbs a run in the real one."""
    for name in (
        "Makefile",
        "Snakefile",
        "requirements.txt",
        ".venv",
        "executors",
        "lib",
        "notebooks",
        "profiles",
        "data",
    ):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def figures(checkout, environment=(), **settings):
    """`make figures` at smoke scale: exit status and output."""
    given = os.environ | {"PROFILE": "smoke", "OUT": "made"} | settings | dict(environment)
    done = subprocess.run(["make", "-s", "figures"], cwd=checkout, env=given, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def sbatch(checkout):
    """Slurm's commands on a PATH: sbatch keeps what it was called with and refuses; the others say nothing."""
    commands = checkout / "commands"
    commands.mkdir()
    for name in ("sbatch", "squeue", "sinfo", "scontrol", "sacct", "sacctmgr", "sshare", "scancel"):
        (commands / name).write_text("#!/bin/sh\n")
        (commands / name).chmod(stat.S_IRWXU)
    (checkout / "calls").mkdir()  # a file for each: several may be under way
    (commands / "sbatch").write_text(f"#!/bin/bash\nprintf '%q ' \"$@\" >{checkout}/calls/$$\nexit 1\n")
    return {"PATH": f"{commands}:{os.environ['PATH']}"}


def options(call):
    """The options of one sbatch call by name, `-t 30` and `--gpus=1` alike."""
    words = iter(shlex.split(call))
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        found[name] = value if equals else next(words) if name not in ("--parsable",) else ""
    return found


def test_each_job_asks_slurm_for_what_it_needs(checkout, sbatch):
    cluster = f"{QUICK} --slurm-init-seconds-before-status-checks 1 --default-resources slurm_account=us"
    code, said = figures(checkout, sbatch, EXECUTOR="slurm", DEVICE="cuda", CLUSTER=cluster)
    assert code != 0, said
    calls = [options(call.read_text()) for call in (checkout / "calls").iterdir()]
    assert {call["--comment"].split("_wildcards_")[-1] for call in calls} == FIRST
    assert len(calls) == len(FIRST)
    for call in calls:
        job = JOBS.run if "rule_run" in call["--comment"] else JOBS.notebook
        assert (call["--mem"], call["-t"]) == (str(job.memory_mb), str(job.minutes))
        assert (call["--cpus-per-task"], call["--gpus"], call["-A"]) == ("1", "1", "us")


class Cluster(BaseHTTPRequestHandler):
    """As much of a Kubernetes API as the executor asks for. A Job's container runs here, in an empty folder and with
    nothing in its environment but what its manifest says; `server.runs` false: every Job fails at once."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/secrets"):
            self.server.secrets[body["metadata"]["name"]] = body["data"]
        else:
            self.server.jobs[body["metadata"]["name"]] = body
            if self.server.runs:
                self.server.ended[body["metadata"]["name"]] = self.run(
                    body["spec"]["template"]["spec"]["containers"][0]
                )
        self.answer(body)

    def run(self, container):
        environment = {"PATH": os.defpath}
        for variable in container["env"]:
            key = variable["valueFrom"]["secretKeyRef"]
            environment[variable["name"]] = base64.b64decode(self.server.secrets[key["name"]][key["key"]]).decode()
        done = subprocess.run(
            container["command"] + container["args"],
            cwd=self.server.workdir,
            env=environment,
            capture_output=True,
            text=True,
        )
        self.server.said.append(done.stdout + done.stderr)
        return done.returncode == 0

    def do_GET(self):
        if "/pods" in self.path:
            return self.answer({"kind": "PodList", "items": []})
        name = self.path.split("/")[-2]
        succeeded = self.server.ended.get(name, False)
        self.answer(self.server.jobs[name] | {"status": {"succeeded": 1} if succeeded else {"failed": 1}})

    def do_DELETE(self):
        self.answer({"kind": "Status", "status": "Success"})

    def answer(self, body):
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def kubernetes(checkout):
    """The cluster, and the environment that names it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    server.secrets, server.jobs, server.ended, server.said, server.runs = {}, {}, {}, [], False
    server.workdir = checkout / "workdir"
    server.workdir.mkdir()
    config = checkout / "kubeconfig"
    config.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
                "users": [{"name": "me", "user": {}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                "current-context": "here",
            }
        )
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, {"KUBECONFIG": str(config)}
    server.shutdown()
    server.server_close()


def volume(checkout):
    return f"{QUICK} --container-image python:3.11 --kubernetes-volume-persistent-volumes shared:{checkout}"


def test_each_job_asks_kubernetes_for_what_it_needs(checkout, kubernetes):
    server, environment = kubernetes
    code, said = figures(checkout, environment, EXECUTOR="kubernetes", DEVICE="cuda", CLUSTER=volume(checkout))
    assert code != 0, said
    assert len(server.jobs) == len(FIRST), said
    for job in server.jobs.values():
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        asked = container["resources"]
        assert asked["requests"]["memory"] == f"{JOBS.run.memory_mb}M"
        assert asked["requests"]["cpu"] == "950m"
        assert asked["limits"]["nvidia.com/gpu"] == asked["requests"]["nvidia.com/gpu"] == "1"
        assert container["image"] == "python:3.11"
        claims = {
            v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
        }
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert claims == {"shared": "shared"} and mounts["shared"] == str(checkout)


NOTEBOOK = """
import pathlib
folder = pathlib.Path(out) / "01_poisoning"
folder.mkdir(parents=True, exist_ok=True)
(folder / "manifest.json").write_text("{}")
(folder / "headline.csv").write_text(f"{profile} {seed} {overrides} {pathlib.Path.cwd()}")
"""


def test_a_kubernetes_job_does_its_work_on_the_shared_volume(checkout, kubernetes):
    server, environment = kubernetes
    server.runs = True
    (checkout / "notebooks").unlink()
    (checkout / "notebooks").mkdir()
    cells = [nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(NOTEBOOK)]
    about = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), checkout / "notebooks" / "01_poisoning.ipynb")
    target = checkout / "made" / "01_poisoning" / "headline.csv"
    arguments = f"{volume(checkout)} -- {target.relative_to(checkout)}"
    quoted = {"label": 'two "short" rounds', "settings": {"rounds": 2}}
    overrides = {"collapse": {"condition_dropout": 1e-05}, "disp_grid": {"ablations": [quoted]}}
    given = {"SEED": "3", "OVERRIDES": json.dumps(overrides)}
    code, said = figures(checkout, environment, EXECUTOR="kubernetes", CLUSTER=arguments, **given)
    assert code == 0, said + "".join(server.said)
    assert target.read_text() == f"smoke 3 {overrides} {checkout}"
    assert len(server.jobs) == 1 and not list(server.workdir.iterdir())
    (job,) = server.jobs.values()
    assert "gpu" not in json.dumps(job["spec"]["template"]["spec"]["containers"][0]["resources"])  # on the CPU
