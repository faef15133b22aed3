"""The chart, rendered: what the tests look at."""

import functools
import os
import pathlib
import subprocess

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/conclave"
RULES = ROOT / "deploy/prometheus/conclave.rules.yml"
DASHBOARDS = ROOT / "deploy/grafana"
TOOLS = pathlib.Path(os.environ["CONCLAVE_TOOLS"])
HELM = TOOLS / "helm-4/helm"
PROMETHEUS = TOOLS / "prometheus/usr/bin"
CI = sorted((CHART / "ci").glob("*.yaml"))


class Refused(Exception):
    """What helm said."""


def helm(*words):
    """Runs helm without a cluster; its standard output."""
    # No cluster of the developer's is asked for anything.
    own = {**os.environ, "KUBECONFIG": "/dev/null"}
    done = subprocess.run([HELM, *map(str, words)], capture_output=True, text=True, env=own, timeout=60)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def render(*words, release="t", files=()):
    """The objects of a release."""
    values = [word for file in files for word in ("-f", file)]
    text = helm("template", release, CHART, *values, *words)
    return [document for document in yaml.safe_load_all(text) if document]


@functools.cache
def rendered(file):
    """The objects with a values file of ci/."""
    return render(files=[CHART / "ci" / file])


def of_kind(objects, kind, ending=""):
    """The objects of a kind whose name ends so."""
    return [o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(ending)]


def one(objects, kind, ending=""):
    """The object of a kind whose name ends so; there is one."""
    found = of_kind(objects, kind, ending)
    assert len(found) == 1, f"{len(found)} of {kind} *{ending}"
    return found[0]


def pod_specs(objects):
    """(object, pod metadata, pod spec) of everything that runs pods."""
    for o in objects:
        if o["kind"] == "Pod":
            yield o, o["metadata"], o["spec"]
        elif "template" in o.get("spec", {}):
            yield o, o["spec"]["template"]["metadata"], o["spec"]["template"]["spec"]


def containers(spec):
    """Those of a pod, those that run first included."""
    return spec.get("initContainers", []) + spec["containers"]
