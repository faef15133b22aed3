"""The image: what the root of its final stage holds, and that the chart's pods run in it.

The root is staged here by the script that the Dockerfile runs, from the binary under test; with CONCLAVE_ROOTFS it is
that of a built image (`make image-test`), of a binary with the features CONCLAVE_FEATURES.
"""

import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import tempfile
import unittest

import yaml

import driver
from boxes import USER, Boxed
from chart import CHART, ROOT, TOOLS, containers, one, pod_specs, render, rendered

IMAGES = ROOT / "deploy/images"
DOCKERFILE = (IMAGES / "Dockerfile").read_text()
# Room that the image may take, bytes; the release binary is most of it.
LARGEST = 128 << 20
# Of the binary: of cargo's, separated by commas.
FEATURES = ""
# Stages of the images that run pods, and those that build them.
RUNTIMES = {"runtime": "build", "runtime-cuda": "build-cuda"}


def setUpModule():
    """One root for all tests."""
    global ROOTFS, FEATURES
    if given := os.environ.get("CONCLAVE_ROOTFS"):
        ROOTFS, FEATURES = pathlib.Path(given), os.environ.get("CONCLAVE_FEATURES", "")
        return
    folder = pathlib.Path(tempfile.mkdtemp(prefix="conclave-image-"))
    unittest.addModuleCleanup(shutil.rmtree, folder)
    # The tool writes SBOMs of what cargo resolves, into the cache that fetch-tools filled.
    own = {**os.environ, "CONCLAVE_CACHE": str(TOOLS.parent)}
    binary, sbom, root = os.environ["CONCLAVE_BINARY"], folder / "sbom", folder / "root"
    for script, *words in (["sbom", sbom], ["rootfs", binary, sbom, root]):
        subprocess.run([IMAGES / script, *words], env=own, check=True, timeout=300)
    ROOTFS = root


def files():
    """(path in the image, its status) of all that is there."""
    for path in sorted(ROOTFS.rglob("*")):
        yield f"/{path.relative_to(ROOTFS)}", path.lstat()


class Root(unittest.TestCase):
    def test_nothing_runs_but_the_binary_and_its_loader(self):
        runs = {path for path, is_ in files() if stat.S_ISREG(is_.st_mode) and is_.st_mode & 0o111}
        self.assertIn("/usr/bin/conclave", runs)
        others = {path for path in runs if not re.fullmatch(r"/(lib|lib64)/[\w./-]*(\.so(\.\d+)*)", path)}
        self.assertEqual({"/usr/bin/conclave"}, others, "no shell, no interpreter, no package manager")

    def test_nobody_may_write_and_nothing_changes_who_runs_it(self):
        for path, is_ in files():
            with self.subTest(path=path):
                self.assertTrue(stat.S_ISREG(is_.st_mode) or stat.S_ISDIR(is_.st_mode), "neither file nor folder")
                self.assertEqual(0, is_.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | 0o022))
                # The user of the pods owns nothing here: what it needs is everybody's to read.
                self.assertEqual(0o555 if is_.st_mode & 0o111 else 0o444, is_.st_mode & 0o555)
                if os.getuid() == 0:
                    self.assertEqual((0, 0), (is_.st_uid, is_.st_gid))

    def test_it_is_small(self):
        sizes = {path: is_.st_size for path, is_ in files() if stat.S_ISREG(is_.st_mode)}
        binary = sizes["/usr/bin/conclave"] / 1e6
        print(f"\nimage: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB; the binary {binary:.1f} MB")
        if "CONCLAVE_ROOTFS" in os.environ:
            self.assertLess(sum(sizes.values()), LARGEST)
        self.assertLess(len(sizes), 30)

    def test_the_user_has_a_name(self):
        users = dict(line.split(":")[::2][:2] for line in (ROOTFS / "etc/passwd").read_text().splitlines())
        self.assertEqual({"root": "0", "conclave": str(USER)}, users)

    def test_what_scanners_read(self):
        self.assertIn("ID=debian", (ROOTFS / "etc/os-release").read_text())
        packages = {path.name for path in (ROOTFS / "var/lib/dpkg/status.d").iterdir()}
        self.assertEqual({"libc6", "libgcc-s1"}, packages, "those of the libraries")
        for package in [*packages, "conclave"]:
            there = {path.name for path in (ROOTFS / "usr/share/doc" / package).iterdir()}
            self.assertIn(there, ({"copyright"}, {"LICENSE"}))


class Materials(unittest.TestCase):
    """The SBOM in the image."""

    def setUp(self):
        self.sbom = json.loads((ROOTFS / "usr/share/conclave/conclave.cdx.json").read_text())

    def test_it_lists_what_is_built_in(self):
        words = ["cargo", "tree", "--locked", "-p", "conclave", f"--features={FEATURES}", "--edges", "normal,no-proc-macro"]
        words += ["--prefix", "none", "--format", "{p}"]
        said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout
        built = {tuple(re.match(r"(\S+) v(\S+)", line).groups()) for line in said.splitlines() if line}
        self.assertGreater(len(built), 200)
        listed = {(c["name"], c["version"]) for c in self.sbom["components"]}
        self.assertEqual(set(), built - listed - {("conclave", self.sbom["metadata"]["component"]["version"])})

    def test_each_component_is_named_licensed_and_checked(self):
        self.assertEqual(("CycloneDX", "1.5"), (self.sbom["bomFormat"], self.sbom["specVersion"]))
        self.assertNotIn("serialNumber", self.sbom, "it would be another each time")
        self.assertNotIn("/tmp/", json.dumps(self.sbom), "no path of the machine that built it")
        for component in self.sbom["components"]:
            with self.subTest(component=component["name"]):
                self.assertTrue(component["purl"].startswith("pkg:cargo/"))
                self.assertTrue(component["licenses"])
                if not component["name"].startswith("conclave"):
                    self.assertEqual("SHA-256", component["hashes"][0]["alg"])


class Built(unittest.TestCase):
    """The Dockerfile, the chart and the program tell one story."""

    def stage(self, name):
        return next(s for s in re.split(r"(?m)^(?=FROM )", DOCKERFILE) if re.match(rf"FROM \S+ AS {name}\n", s))

    def test_the_final_stages_are_staged_roots_and_nothing_else(self):
        for name, build in RUNTIMES.items():
            runtime = self.stage(name)
            self.assertTrue(runtime.startswith("FROM scratch "))
            self.assertEqual([f"COPY --from={build} /rootfs/ /"], re.findall(r"(?m)^(?:COPY|ADD|RUN).*", runtime))
            self.assertIn('ENTRYPOINT ["/usr/bin/conclave"]', runtime)
            self.assertIn("ENV PATH=/usr/bin", runtime, "the chart's command is a bare name")
        default = self.stage("runtime").rstrip()
        self.assertTrue(DOCKERFILE.rstrip().endswith(default), "what is built when no target is named")

    def test_they_are_built_alike(self):
        stages = (self.stage(build).split("\n", 1)[1] for build in RUNTIMES.values())
        plain, cuda = (re.sub(r"(?m)^ *#.*\n", "", stage).strip() for stage in stages)
        self.assertEqual(2, cuda.count(" --features cuda"), "the binary, and what it is made of")
        self.assertEqual(plain, cuda.replace(" --features cuda", "").replace(" --nvidia", ""))

    def test_users_are_the_charts(self):
        for name in (*RUNTIMES, "fetch"):
            self.assertIn(f"USER {USER}:{USER}\n", self.stage(name))
        for _, _, spec in pod_specs(rendered("minimal.yaml")):
            own = spec["securityContext"]
            self.assertEqual((USER, USER, USER), (own["runAsUser"], own["runAsGroup"], own["fsGroup"]))

    def test_the_charts_images_are_those_that_are_built(self):
        version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
        built = re.findall(r"(?m)^\t?build ([\w-]+) ([\w-]+)(?: (-\w+))?$", (IMAGES / "build").read_text())
        built = {target: f"{name}:{version}{suffix}" for target, name, suffix in built}
        self.assertEqual({*RUNTIMES, "fetch"}, set(built))
        asked = {}
        for o, _, spec in pod_specs(rendered("pools.yaml")):
            for container in containers(spec):
                self.assertEqual(["conclave"], container["command"])
                asked.setdefault(container["image"], set()).add(container["name"])
        self.assertEqual(set(built.values()), set(asked))
        self.assertEqual({"model"}, asked[built["fetch"]], "pip is in the one that needs it")
        self.assertEqual({"worker"}, asked[built["runtime-cuda"]], "kernels for GPUs, too")

    def test_another_registry_a_digest_and_another_source(self):
        digest = "sha256:" + "a" * 64
        hub = "workerPools.cpu.model.name=tiny,workerPools.cpu.model.fetch.from=hf:owner/repository/model.gguf"
        for wanted, words in [
            ("r/conclave-fetch:0.1.0-abc", "image.repository=r/conclave,image.tag=0.1.0-abc"),
            (f"r/conclave-fetch@{digest}", f"image.repository=r/conclave,image.fetch.digest={digest}"),
            ("r/other:v1", "image.repository=r/conclave,image.fetch.repository=r/other,image.fetch.tag=v1"),
            (f"conclave@{digest}", f"image.digest={digest},{hub}"),
        ]:
            pod = one(render("--set", words), "Deployment")["spec"]["template"]["spec"]
            self.assertEqual(wanted, pod["initContainers"][0]["image"])

    def test_the_toolchain_is_new_enough(self):
        wanted = re.search(r'rust-version = "(.*)"', (ROOT / "Cargo.toml").read_text())[1]
        self.assertIn(f"ARG BUILDER=rust:{wanted}-bookworm\n", DOCKERFILE)
        # Of the builder's release: the binary is linked with its libraries.
        self.assertIn("ARG BASE=debian:bookworm-slim\n", DOCKERFILE)

    def test_nvcc_is_pinned_by_hash(self):
        lines = (ROOT / "deploy/cuda/requirements.txt").read_text().replace("\\\n", " ").splitlines()
        pins = [line.split() for line in lines if not line.startswith("#")]
        self.assertIn("nvidia-cuda-nvcc", [name.partition("==")[0] for name, *_ in pins])
        for name, *hashes in pins:
            self.assertRegex(name, r"^nvidia-[a-z-]+==13\.0\.\d+$", "one release of CUDA")
            self.assertEqual(2, len(set(hashes)), f"{name}: of the wheels of two architectures")
            for one_ in hashes:
                self.assertRegex(one_, r"^--hash=sha256:[0-9a-f]{64}$")

    def test_sources_of_every_crate_reach_the_builder(self):
        members = re.search(r"members = \[(.*?)\]", (ROOT / "Cargo.toml").read_text(), re.S)[1]
        folders = {member.split("/")[0] for member in re.findall(r'"(.*?)"', members)}
        taken = set(re.findall(r"(?m)^!(\S+)$", (ROOT / ".dockerignore").read_text()))
        self.assertLessEqual(folders | {"Cargo.toml", "Cargo.lock", "LICENSE", "deploy/cuda", "deploy/images/rootfs", "deploy/images/sbom"}, taken)


class Nvidia(unittest.TestCase):
    """NVIDIA's container toolkit brings the driver's libraries into a root that is staged for it."""

    def setUp(self):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="conclave-nvidia-"))
        self.addCleanup(shutil.rmtree, folder)
        self.library = driver.built(folder)
        root = ROOTFS
        if "cuda" not in FEATURES:
            root = folder / "staged"
            words = [ROOTFS / "usr/bin/conclave", ROOTFS / "usr/share/conclave/conclave.cdx.json", root]
            subprocess.run([IMAGES / "rootfs", "--nvidia", *words], check=True, timeout=60)
        self.box = Boxed(folder, root, "-f", CHART / "ci/single.yaml")
        self.root = self.box.root

    def preloaded(self):
        """What a program says that asks for the driver by its name."""
        environment = re.search(r"ENV ((?:.*\\\n)*.*)", Built().stage("runtime-cuda"))[1]
        variables = re.findall(r"(\w+)=(\S+)", environment)
        own = [word for name, value in variables for word in ("--setenv", name, value)]
        loader = f"/{next(self.root.glob('lib*/ld-linux*')).relative_to(self.root)}"
        words = [*self.box.box(), *own, loader, "--preload", driver.NAME, "/usr/bin/conclave", "--version"]
        return subprocess.run(words, capture_output=True, text=True, timeout=60).stderr

    def test_nothing_of_nvidias_is_in_it(self):
        found = [path for path in self.root.rglob("*") if re.search("cuda.*\\.so|nvidia", path.name)]
        self.assertEqual([], found)
        self.assertIn("cannot be preloaded", self.preloaded())

    def test_the_driver_is_found_where_the_toolkit_puts_it(self):
        # What it takes for a Debian, whatever its own system is; what it takes for another; what GKE has.
        self.assertTrue((self.root / "etc/debian_version").exists())
        multiarch = next(self.root.glob("lib/*-linux-gnu")).name
        for folder in (f"/usr/lib/{multiarch}", "/usr/lib64", "/usr/local/nvidia/lib64"):
            with self.subTest(folder=folder):
                driver.installed(self.library, self.root, folder)
                self.assertEqual(driver.LOADED, self.preloaded())
                (self.root / folder.lstrip("/") / driver.NAME).unlink()

    def test_a_folder_that_it_names_is_searched(self):
        # As its hook does: a file beside ld.so.conf's, and ldconfig.
        driver.installed(self.library, self.root, "/opt/driver")
        (self.root / "etc/ld.so.conf.d/00-nvcr-1.conf").write_text("/opt/driver\n")
        own = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        words = ["ldconfig", "-r", self.root, "-f", "/etc/ld.so.conf", "-C", "/etc/ld.so.cache"]
        subprocess.run(words, env=own, check=True, timeout=60, capture_output=True)
        self.assertEqual(driver.LOADED, self.preloaded())


class Runs(unittest.TestCase):
    """A release in the image's root: one coordinator, one worker with its model, the chart's jobs."""

    def setUp(self):
        folder = tempfile.mkdtemp(prefix="conclave-boxed-")
        own = "workerDefaults.settings.threads=1,coordinator.settings.election_ms=2500"
        self.release = Boxed(folder, ROOTFS, "-f", CHART / "ci/single.yaml", "--set", own)
        self.addCleanup(self.release.end)

    def test_a_release_runs_in_it(self):
        release = self.release
        self.assertRegex(release.prints("--version"), r"^conclave \d+\.\d+\.\d+")
        self.assertIn("--endpoint", release.prints("doctor", "--help"))
        self.libraries_are_found()
        release.start_coordinators()
        (pod,) = release.coordinators()
        release.until("it listens", lambda: release.http(pod, "/healthz")[0] == 200)
        release.join()
        release.ready(pod)
        release.start_workers()
        (worker,) = [name for name in release.running if "-worker-" in name]
        release.ready(worker)
        self.assertRegex(release.run(one(release.objects, "Pod")), r"(?m)^(yes|no)$", "helm test")
        self.is_confined(pod, {"/var/lib/conclave"})
        self.is_confined(worker, set())
        self.assertIn("only voter", release.pre_stop(pod))
        for name in (worker, pod):
            self.assertEqual(0, release.ended(name), release.logs())

    def libraries_are_found(self):
        loader = next(path for path, _ in files() if re.search(r"/ld-linux[\w-]*\.so\.\d$", path))
        box = self.release.box()
        done = subprocess.run([*box, loader, "--list", "/usr/bin/conclave"], capture_output=True, text=True, timeout=60)
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertNotIn("not found", done.stdout)
        found = set(re.findall(r"=> (\S+) \(", done.stdout))
        self.assertTrue(found)
        for path in found:
            self.assertTrue((ROOTFS / path.lstrip("/")).exists(), path)

    def is_confined(self, pod, writable):
        """What the kernel says of the process."""
        status = self.release.status(pod)
        if os.getuid() == 0:
            self.assertEqual([str(USER)] * 4, status["Uid"])
        self.assertEqual(["0" * 16], status["CapEff"])
        self.assertEqual(["0" * 16], status["CapBnd"])
        self.assertEqual(["1"], status["NoNewPrivs"])
        mine = {path for path in self.release.writable(pod) if not re.match(r"/(proc|dev)(/|$)", path)}
        self.assertEqual(writable, mine)


if __name__ == "__main__":
    unittest.main()
