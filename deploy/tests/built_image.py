"""What `make image` built, as its OCI archives say it; then the tests of test_image.py on what is in them.

Usage: built_image.py FOLDER     (with conclave.oci.tar, conclave-fetch.oci.tar, conclave.cdx.json; of `--cuda` too, if it
                                  is there: conclave-cuda.oci.tar, conclave-cuda.cdx.json)
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest

import yaml

import cuda_build
from boxes import USER, Boxed
from chart import CHART, ROOT, one

FOLDER = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")


class Archive:
    """An OCI archive: one image."""

    def __init__(self, path):
        self.tar = tarfile.open(path)
        self.manifest_digest = self.document("index.json")["manifests"][0]["digest"]
        self.manifest = self.blob(self.manifest_digest)
        self.config = self.blob(self.manifest["config"]["digest"])
        self.layers = [layer["digest"] for layer in self.manifest["layers"]]

    def document(self, name):
        return json.load(self.tar.extractfile(name))

    def place(self, digest):
        return "blobs/" + digest.replace(":", "/")

    def blob(self, digest):
        return self.document(self.place(digest))

    def layer(self, digest):
        return tarfile.open(fileobj=self.tar.extractfile(self.place(digest)))

    def unpack(self, folder):
        """Layer by layer, owners too where they can be given; devices are a runtime's. Nothing is taken out again here."""
        for digest in self.layers:
            with self.layer(digest) as layer:
                wanted = [member for member in layer if not member.isdev()]
                layer.extractall(folder, wanted, filter="fully_trusted")
        return folder


def git(*words):
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


class Image(unittest.TestCase):
    """What is not in the root: settings, labels, times."""

    name = "conclave"
    environment = ["PATH=/usr/bin"]

    def setUp(self):
        self.image = Archive(FOLDER / f"{self.name}.oci.tar")
        self.addCleanup(self.image.tar.close)

    def test_settings(self):
        config = self.image.config["config"]
        self.assertEqual(f"{USER}:{USER}", config["User"])
        self.assertEqual(["/usr/bin/conclave"], config["Entrypoint"])
        self.assertEqual(self.environment, config["Env"])
        self.assertNotIn("Cmd", config)
        self.assertNotIn("Volumes", config)

    def test_labels(self):
        labels = self.image.config["config"]["Labels"].items()
        labels = {name.removeprefix("org.opencontainers.image."): value for name, value in labels}
        self.assertEqual((self.name, "Apache-2.0"), (labels["title"], labels["licenses"]))
        self.assertEqual(yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"], labels["version"])
        # The commit; what was not committed is told.
        self.assertIn(labels["revision"].removesuffix("-dirty"), git("rev-list", "-n", "50", "HEAD").splitlines())

    def test_all_is_of_the_commits_time(self):
        revision = self.image.config["config"]["Labels"]["org.opencontainers.image.revision"].removesuffix("-dirty")
        epoch = int(git("log", "-1", "--format=%ct", revision))
        created = git("log", "-1", "--format=%cd", "--date=format-local:%Y-%m-%dT%H:%M:%SZ", revision)
        self.assertEqual(created, self.image.config["created"])
        (digest,) = self.image.layers
        with self.image.layer(digest) as layer:
            self.assertEqual({epoch}, {int(member.mtime) for member in layer})

    def test_the_digest_is_the_one_that_is_told(self):
        self.assertEqual(self.image.manifest_digest, (FOLDER / f"{self.name}.oci.tar.digest").read_text().strip())

    def test_the_sbom_beside_it_is_the_one_in_it(self):
        (digest,) = self.image.layers
        with self.image.layer(digest) as layer:
            inside = layer.extractfile("usr/share/conclave/conclave.cdx.json").read()
        self.assertEqual((FOLDER / f"{self.name}.cdx.json").read_bytes(), inside)


class CudaImage(Image):
    """The one for workers with a GPU."""

    name = "conclave-cuda"
    environment = [
        "PATH=/usr/bin",
        "NVIDIA_VISIBLE_DEVICES=all",
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        "LD_LIBRARY_PATH=/usr/local/nvidia/lib64:/usr/lib64",
    ]


class Fetch(unittest.TestCase):
    """The image of the init container."""

    def test_it_fetches_a_model_known_by_name(self):
        image = Archive(FOLDER / "conclave-fetch.oci.tar")
        self.addCleanup(image.tar.close)
        self.assertEqual(f"{USER}:{USER}", image.config["config"]["User"])
        folder = pathlib.Path(tempfile.mkdtemp(prefix="conclave-fetch-"))
        self.addCleanup(shutil.rmtree, folder)
        folder.chmod(0o711)
        root = image.unpack(folder / "root")
        # The names of the registry, as a runtime brings them.
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        release = Empty(folder / "pods", root, "-f", CHART / "ci/single.yaml")
        template = one(release.objects, "Deployment")["spec"]["template"]["spec"]
        words, own = release.command("t-conclave-worker-cpu-0", template, template["initContainers"][0])
        done = subprocess.run(words, env=own, capture_output=True, text=True, timeout=300)
        self.assertEqual(0, done.returncode, done.stdout + done.stderr)
        (model,) = (folder / "pods").rglob("*.gguf")
        self.assertGreater(model.stat().st_size, 1 << 20)


class Empty(Boxed):
    """Pods whose volumes are empty, as they are for the first that runs."""

    def __init__(self, folder, *words):
        folder.mkdir()
        super().__init__(folder, *words)

    def empty_dir(self, here):
        return here


def looked_at(name, features, *suites):
    """Whether an image passes these and the tests of what its root holds."""
    with tempfile.TemporaryDirectory(prefix="conclave-root-") as folder:
        image = Archive(FOLDER / f"{name}.oci.tar")
        root = image.unpack(pathlib.Path(folder, "root"))
        os.environ["CONCLAVE_ROOTFS"], os.environ["CONCLAVE_FEATURES"] = str(root), features
        print(f"{name}: {image.manifest_digest} {image.config['config']['Labels']}", flush=True)
        load = unittest.defaultTestLoader
        tests = [load.loadTestsFromTestCase(suite) for suite in suites]
        if features:
            cuda_build.BINARY = root / "usr/bin/conclave"
            tests.append(load.loadTestsFromModule(cuda_build))
        tests.append(load.loadTestsFromName("test_image"))
        return unittest.TextTestRunner().run(unittest.TestSuite(tests)).wasSuccessful()


def main():
    passed = looked_at("conclave", "", Image, Fetch)
    if (FOLDER / "conclave-cuda.oci.tar").exists():
        passed &= looked_at("conclave-cuda", "cuda", CudaImage)
    else:
        print("conclave-cuda: not built (make image IMAGE_ARGS=--cuda)")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
