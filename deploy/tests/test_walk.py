"""The walk of docs/OPERATIONS.md, from install to restore: its commands, as they stand there."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import unittest

from chart import ROOT
from processes import CACHE, PATIENCE

BINARY = pathlib.Path(os.environ["CONCLAVE_BINARY"])
# Of 127.0.0.0/8, so that the ports are free; two runs at once do not meet.
HERE = f"127.78.{os.getpid() % 250 + 1}.1"
STEPS = [
    "Install", "Upgrade", "Scale, 3 to 5 and back", "Lose a node", "Save a snapshot", "Lose the quorum",
    "Restore a snapshot", "Turn TLS on", "Rotate certificates in use",
]
# A command that fails ends it; whatever it started ends with it.
BEFORE = """set -euo pipefail
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
"""


def steps():
    """(heading, commands) of each step."""
    text = (ROOT / "docs/OPERATIONS.md").read_text()
    walk = re.search(r"^## A walk.*?(?=^## )", text, re.M | re.S)[0]
    for step in re.split(r"^### ", walk, flags=re.M)[1:]:
        yield step.splitlines()[0], "".join(re.findall(r"^```sh\n(.*?)^```", step, re.M | re.S))


class Walk(unittest.TestCase):
    def test_every_step_has_commands(self):
        self.assertEqual(STEPS, [heading for heading, _ in steps()])
        for heading, commands in steps():
            self.assertIn("conclave ", commands, heading)

    def test_its_commands_do_what_it_says(self):
        for tool in ("bash", "curl", "openssl"):
            self.assertTrue(shutil.which(tool), f"the walk needs {tool}: install it")
        folder = pathlib.Path(tempfile.mkdtemp(prefix="conclave-walk-"))
        (folder / "bin").mkdir()
        (folder / "bin/conclave").symlink_to(BINARY.resolve())
        script = BEFORE + "".join(f"echo '== {heading}'\n{commands}" for heading, commands in steps())
        (folder / "walk.sh").write_text(script.replace("127.0.0.1", HERE))
        own = {name: value for name, value in os.environ.items() if not name.startswith("CONCLAVE_")}
        own |= {"PATH": f"{folder}/bin:{os.environ['PATH']}", "CONCLAVE_CACHE": str(CACHE)}
        with open(folder / "walk.log", "w+") as log:
            words = ["bash", "walk.sh"]
            walk = subprocess.Popen(words, cwd=folder, env=own, stdout=log, stderr=log, start_new_session=True)
            try:
                ended = walk.wait(4 * PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(walk.pid, signal.SIGKILL)
                ended = walk.wait()
            log.seek(0)
            said = log.read()
        tails = [f"--- {path.name}\n{path.read_text()[-600:]}" for path in sorted(folder.glob("*-*.log"))]
        # Kept on a failure, for its logs.
        self.assertEqual(0, ended, f"{folder}\n{said[-4000:]}\n" + "\n".join(tails))
        parts = dict(re.findall(r"^== (.*?)\n(.*?)(?=^== |\Z)", said, re.M | re.S))
        self.assertEqual(STEPS, list(parts))
        self.assertRegex(parts["Install"], r"(?ms)^(yes|no)$.*^nothing is wrong")
        self.assertIn("is lost: 1 of 3 voters answers", parts["Lose the quorum"])
        self.assertIn("Is 221 a prime number?", parts["Restore a snapshot"])
        shutil.rmtree(folder)


if __name__ == "__main__":
    unittest.main()
