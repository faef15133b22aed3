"""A release as processes in the root of the image: bubblewrap stands in for a runtime of containers.

Root is read-only, user and group are those of the chart, there are no capabilities, the process is the first of its
own, and nothing is there but what the image holds and the chart mounts, writable only where the chart says so.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess

from chart import TOOLS, one
from processes import CACHE, PATIENCE, Release

# As the chart's podSecurity says it.
USER = 65532


class Boxed(Release):
    """The pods of a release, each in a read-only copy of the image's root."""

    def __init__(self, folder, rootfs, *words):
        folder = pathlib.Path(folder)
        # The user of the boxes has to get through, and to the program that makes them.
        folder.chmod(0o711)
        self.root = folder / "root"
        shutil.copytree(rootfs, self.root, symlinks=True)
        self.bwrap = folder / "bwrap"
        shutil.copy(TOOLS / "bubblewrap/usr/bin/bwrap", self.bwrap)
        self.inner = {}
        super().__init__(folder, pathlib.Path("/usr/bin/conclave"), *words)
        self.bring_names()

    def bring_names(self):
        """What a runtime brings: the files of names, here with the pods' addresses."""
        coordinator = one(self.objects, "StatefulSet")["metadata"]["name"]
        names = {f"{pod}.{coordinator}.default.svc.cluster.local": self.address(pod) for pod in self.coordinators()}
        service = coordinator.removesuffix("-coordinator")
        names[f"{service}.default.svc.cluster.local"] = self.address(f"{coordinator}-0")
        hosts = self.folder / "hosts"
        hosts.write_text("".join(f"{address} {name}\n" for name, address in names.items()))
        hosts.chmod(0o644)
        (self.root / "etc/hosts").touch()

    def localized(self, text, pod, mounts):
        """Names and paths are the chart's; only addresses are this pod's, for all share one network."""
        text = text.replace("$(POD_NAME)", pod).replace("$(POD_NAMESPACE)", "default")
        return text.replace("0.0.0.0", self.address(pod)).replace("127.0.0.1", self.address(pod))

    def empty_dir(self, here):
        """A folder of its own; what the init container would fetch is there."""
        model = one(self.objects, "Deployment")["spec"]["template"]["spec"]["initContainers"][0]["args"][2]
        if not here.exists():
            shutil.copytree(CACHE / "models" / model, here / "models" / model)
        return here

    def mounted(self, pod, spec, container):
        mounts = super().mounted(pod, spec, container)
        if os.getuid() == 0:
            # As fsGroup does it.
            for _, here in mounts:
                for path in [here, *here.rglob("*")]:
                    os.chown(path, USER, USER)
        return mounts

    def box(self, *mounts):
        """The words that run a command in the root, with (path in it, path here, read-only) mounted."""
        words = [self.bwrap, "--unshare-all", "--unshare-user", "--share-net", "--uid", USER, "--gid", USER]
        words += ["--as-pid-1", "--die-with-parent", "--clearenv", "--setenv", "PATH", "/usr/bin"]
        words += ["--chdir", "/", "--ro-bind", self.root, "/"]
        words += ["--ro-bind", self.folder / "hosts", "/etc/hosts"]
        for path, here, read_only in [("/proc", None, True), ("/dev", None, True), *mounts]:
            # Where something is mounted there is a folder: the runtime makes it.
            (self.root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
            words += ["--ro-bind" if read_only else "--bind", here, path] if here else [f"--{path[1:]}", path]
        if os.getuid() == 0:
            words = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *words]
        return [str(word) for word in words]

    def command(self, pod, spec, container, words=None):
        here = dict(self.mounted(pod, spec, container))
        given = container.get("volumeMounts", [])
        box = self.box(*[(m["mountPath"], here[m["mountPath"]], m.get("readOnly", False)) for m in given])
        for variable in container.get("env", []):
            if "value" in variable:
                box += ["--setenv", variable["name"], self.localized(variable["value"], pod, [])]
        words = words or container["command"] + container["args"]
        return [*box, *[self.localized(word, pod, []) for word in words]], None

    def prints(self, *words):
        """A command of the image, finished; what it printed."""
        done = subprocess.run([*self.box(), "conclave", *words], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def launched(self, pod, words, own, log):
        """Asks bubblewrap for the number of the process inside: what ends a pod is told to that one."""
        heard, told = os.pipe()
        at = words.index("--unshare-all")
        words = [*words[:at], "--info-fd", str(told), *words[at:]]
        process = subprocess.Popen(words, env=own, stdout=log, stderr=log, pass_fds=[told])
        os.close(told)
        with os.fdopen(heard) as pipe:
            said = pipe.read()
        assert said, f"bubblewrap did not start {pod}: are user namespaces allowed here?\n{self.logs()}"
        self.inner[pod] = json.loads(said)["child-pid"]
        return process

    def ended(self, pod):
        """SIGTERM to the pod's process, as a kubelet sends it; its exit status."""
        os.kill(self.inner[pod], signal.SIGTERM)
        return self.running.pop(pod).wait(PATIENCE)

    def status(self, pod):
        """What the kernel says of a pod's process."""
        lines = pathlib.Path(f"/proc/{self.inner[pod]}/status").read_text().splitlines()
        return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}

    def writable(self, pod):
        """Paths that the process may write to, as the kernel says: mounts that are not read-only."""
        lines = [line.split() for line in pathlib.Path(f"/proc/{self.inner[pod]}/mountinfo").read_text().splitlines()]
        return {line[4] for line in lines if "ro" not in line[5].split(",")}
