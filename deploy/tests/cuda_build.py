"""A binary that was built with the feature `cuda`, on a machine that may have no GPU: it runs, and it says what is missing.

Usage: cuda_build.py BINARY
"""

import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

import driver
from processes import CACHE, PATIENCE

BINARY = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "conclave")
CONFIG = """
coordinators = ["127.0.0.1:1"]
device = "{device}"
[[models]]
name = "smollm2-135m"
"""


def kernels(held):
    """(kind, architecture) of what nvcc put into a binary: its header, then a header and the bytes of each entry."""
    found = set()
    for start in re.finditer(re.escape(b"\x50\xed\x55\xba\x01\x00\x10\x00"), held):
        (size,) = struct.unpack_from("<Q", held, start.start() + 8)
        at, end = start.end() + 8, start.end() + 8 + size
        while at < end:
            kind, _, header, length = struct.unpack_from("<HHIQ", held, at)
            (arch,) = struct.unpack_from("<I", held, at + 28)
            found.add(({1: "text", 2: "code"}.get(kind), arch))
            at += header + length
    return found


class Device(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="conclave-cuda-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def refusal(self, device="cuda", **own):
        """What a worker says that ends at its start."""
        config = self.folder / "worker.toml"
        config.write_text(CONFIG.format(device=device))
        # No device of this machine's is touched.
        own = {**os.environ, "CONCLAVE_CACHE": str(CACHE), "CUDA_VISIBLE_DEVICES": "", **own}
        words = [BINARY, "worker", f"--config={config}", "--worker-id=w"]
        done = subprocess.run(words, env=own, capture_output=True, text=True, timeout=PATIENCE)
        self.assertNotEqual(0, done.returncode)
        self.assertNotIn("panicked", done.stderr)
        return done.stderr

    def test_it_links_no_library_of_nvidias(self):
        said = subprocess.run(["ldd", BINARY], capture_output=True, text=True, timeout=60, check=True).stdout
        self.assertIn("libc.so", said)
        self.assertNotRegex(said, "cuda|nvidia")

    def test_it_holds_the_kernels(self):
        held = kernels(BINARY.read_bytes())
        self.assertLessEqual({("code", arch) for arch in (80, 90, 100)}, held)
        self.assertIn("text", {kind for kind, _ in held}, "what newer devices compile")

    def test_without_a_driver_it_says_so(self):
        # A folder that comes first, in which nothing of that name can be loaded.
        broken = self.folder / "broken"
        broken.mkdir()
        for name in ("libcuda.so", driver.NAME):
            (broken / name).write_text("not a library")
        said = self.refusal(LD_LIBRARY_PATH=str(broken))
        self.assertIn("no CUDA driver was found", said)
        self.assertIn('set device = "cpu"', said)

    def test_with_a_driver_and_no_device_it_says_so(self):
        (self.folder / "libcuda.so").symlink_to(driver.built(self.folder))
        said = self.refusal(LD_LIBRARY_PATH=str(self.folder))
        self.assertIn(driver.LOADED, said)
        self.assertRegex(said, "no CUDA device|no CUDA-capable device|NO_DEVICE")

    def test_a_device_that_is_none_is_refused_with_the_known_ones(self):
        said = self.refusal(device="gpu")
        self.assertIn("cuda:N", said)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
