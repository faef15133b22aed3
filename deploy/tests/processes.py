"""A release as processes: what the rendered objects say is run, each pod on a loopback address of its own.

It stands in for a kubelet and for the cluster's DNS, and for nothing else: commands, arguments, environment,
files and probes are the chart's.
"""

import os
import pathlib
import shutil
import subprocess
import time
import urllib.error
import urllib.request

from chart import of_kind, one, render

# Longest wait for anything, seconds: a machine that builds beside this is slow.
PATIENCE = 120
# Of 127.0.0.0/8; two runs at once do not meet.
NETWORK = f"127.77.{os.getpid() % 250 + 1}"
# Of models, and of all else that is fetched.
CACHE = pathlib.Path(os.environ.get("CONCLAVE_CACHE", pathlib.Path.home() / ".cache/conclave"))
# Where the service's name leads: what the coordinators' certificate bears.
SERVICE = f"{NETWORK}.10"


class Release:
    """The pods of a release."""

    def __init__(self, folder, binary, *words, secrets=()):
        """`secrets`: what a user brings, (name, data) of each."""
        self.folder = pathlib.Path(folder)
        self.binary = binary
        self.words = words
        self.network = NETWORK
        self.running = {}
        self.objects = []
        self.given = [
            {"kind": "Secret", "metadata": {"name": name}, "stringData": data} for name, data in secrets
        ]
        self.apply()

    def apply(self, *words):
        """Renders the release anew; what runs goes on."""
        secret = of_kind(self.objects, "Secret", "-tokens")
        self.objects = [*render(*self.words, *words), *self.given]
        if secret:
            # As the chart's look-up finds it at an upgrade.
            made = of_kind(self.objects, "Secret", "-tokens")
            self.objects = [o for o in self.objects if o not in made] + secret

    def coordinators(self):
        """Names of the StatefulSet's pods."""
        found = one(self.objects, "StatefulSet")
        return [f"{found['metadata']['name']}-{index}" for index in range(found["spec"]["replicas"])]

    def address(self, pod):
        """Where a pod listens."""
        kind, number = (100, pod.rsplit("-", 1)[1]) if "-worker-" in pod else (10, pod.rsplit("-", 1)[1])
        return f"{self.network}.{kind + int(number)}"

    def localized(self, text, pod, mounts):
        """`text` with names resolved and paths where they are here."""
        text = text.replace("$(POD_NAME)", pod).replace("$(POD_NAMESPACE)", "default")
        coordinator = one(self.objects, "StatefulSet")["metadata"]["name"]
        for index in range(5):
            name = f"{coordinator}-{index}"
            text = text.replace(f"{name}.{coordinator}.default.svc.cluster.local", self.address(name))
        service = coordinator.removesuffix("-coordinator")
        # A service leads to some coordinator.
        text = text.replace(f"{service}.default.svc.cluster.local", self.address(f"{coordinator}-0"))
        text = text.replace("0.0.0.0", self.address(pod)).replace("127.0.0.1", self.address(pod))
        for mount, here in mounts:
            text = text.replace(mount, str(here))
        return text

    def empty_dir(self, here):
        """Where such a volume lies: models are fetched once a machine."""
        return CACHE

    def mounted(self, pod, spec, container):
        """(path in the container, path here), longest first; files are written."""
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        mounts = []
        for mount in container.get("volumeMounts", []):
            volume = volumes.get(mount["name"], {})
            here = self.folder / pod / mount["name"]
            if "emptyDir" in volume:
                here = self.empty_dir(here)
            here.mkdir(parents=True, exist_ok=True)
            mounts.append((mount["mountPath"], here))
        mounts.sort(key=lambda pair: -len(pair[0]))
        for mount in container.get("volumeMounts", []):
            volume, here = volumes.get(mount["name"], {}), self.folder / pod / mount["name"]
            if "configMap" in volume:
                data = one(self.objects, "ConfigMap", volume["configMap"]["name"])["data"]
                for file, text in data.items():
                    (here / file).write_text(self.localized(text, pod, mounts))
            elif "secret" in volume:
                data = one(self.objects, "Secret", volume["secret"]["secretName"])["stringData"]
                for item in volume["secret"]["items"]:
                    (here / item["path"]).write_text(data[item["key"]])
        return mounts

    def command(self, pod, spec, container, words=None):
        """(words, environment) of a container."""
        mounts = self.mounted(pod, spec, container)
        words = words or container["command"] + container["args"]
        own = {e["name"]: self.localized(e["value"], pod, mounts) for e in container.get("env", []) if "value" in e}
        here = [self.localized(word, pod, mounts) for word in words]
        assert here[0] == "conclave"
        return [str(self.binary), *here[1:]], {**os.environ, **own}

    def start(self, pod, template):
        """Runs what runs first to its end, then the container."""
        for container in template["spec"].get("initContainers", []):
            words, own = self.command(pod, template["spec"], container)
            subprocess.run(words, env=own, check=True, capture_output=True, timeout=PATIENCE)
        words, own = self.command(pod, template["spec"], template["spec"]["containers"][0])
        with open(self.folder / f"{pod}.log", "ab") as log:
            self.running[pod] = self.launched(pod, words, own, log)

    def launched(self, pod, words, own, log):
        return subprocess.Popen(words, env=own, stdout=log, stderr=log)

    def start_coordinators(self):
        """Those of the StatefulSet that do not run, all at once."""
        for pod in self.coordinators():
            if pod not in self.running:
                self.start(pod, one(self.objects, "StatefulSet")["spec"]["template"])

    def start_workers(self):
        for deployment in of_kind(self.objects, "Deployment"):
            for index in range(deployment["spec"]["replicas"]):
                self.start(f"{deployment['metadata']['name']}-{index}", deployment["spec"]["template"])

    def run(self, o, *more):
        """Runs a Job or a Pod to its end; what it printed."""
        spec = o["spec"] if o["kind"] == "Pod" else o["spec"]["template"]["spec"]
        words, own = self.command(f"{o['metadata']['name']}-0", spec, spec["containers"][0])
        return finished([*words, *more], own)

    def join(self):
        return self.run(next(o for o in of_kind(self.objects, "Job") if "-join-" in o["metadata"]["name"]))

    def part(self):
        return self.run(one(self.objects, "Job", "-part"))

    def pre_stop(self, pod):
        """What a coordinator's pod does before SIGTERM."""
        spec = one(self.objects, "StatefulSet")["spec"]["template"]["spec"]
        words = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        return finished(*self.command(pod, spec, spec["containers"][0], words))

    def cli(self, *words, role="operator"):
        """The command line of a user with a token of this role."""
        tokens = one(self.objects, "Secret", "-tokens")["stringData"]
        endpoints = ",".join(f"{self.address(pod)}:7400" for pod in self.coordinators())
        own = {**os.environ, "CONCLAVE_TOKEN": tokens[f"{role}-token"], "CONCLAVE_ENDPOINT": endpoints}
        if self.given:
            own |= {"CONCLAVE_CA": str(self.folder / "ca.crt"), "CONCLAVE_SERVER_NAME": SERVICE}
        return [str(self.binary), *words], own

    def http(self, pod, path, port=None):
        """(status, body) of a pod's HTTP."""
        port = port or (7420 if "-worker-" in pod else 7410)
        try:
            with urllib.request.urlopen(f"http://{self.address(pod)}:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()
        except OSError as error:
            return 0, str(error)

    def until(self, what, wanted):
        """Waits until `wanted()`; no event comes out of another process."""
        deadline = time.monotonic() + PATIENCE
        while not (found := wanted()):
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE} s\n{self.logs()}"
            time.sleep(0.1)
        return found

    def ready(self, pod):
        return self.until(f"{pod} is ready", lambda: self.http(pod, "/readyz")[0] == 200)

    def stop(self, pod, signal="term"):
        process = self.running.pop(pod)
        process.kill() if signal == "kill" else process.terminate()
        process.wait(PATIENCE)

    def end(self):
        """Ends everything, and removes the folder."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def logs(self):
        """The end of every log."""
        tails = []
        for path in sorted(self.folder.glob("*.log")):
            tails.append(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-8:]))
        return "\n".join(tails)


def finished(words, own):
    """Runs a command to its end; its output, standard error behind it."""
    done = subprocess.run(words, env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{words} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
