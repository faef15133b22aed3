"""The chart's commands and files against real processes, and a real Prometheus that looks at them."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
import unittest
import urllib.parse
import urllib.request

from certificates import Authority
from chart import CHART, CI, PROMETHEUS, RULES, of_kind, one, rendered
from processes import PATIENCE, SERVICE, Release, finished
from test_rules import queries

BINARY = pathlib.Path(os.environ["CONCLAVE_BINARY"])
# Small, so that a short load fills the KV cache and two pools of threads fit a small machine; patient, so that a busy
# one does not change the leader.
VALUES = (
    "workerDefaults.replicas=2,workerDefaults.settings.threads=1,workerDefaults.settings.kv_blocks=192,"
    "coordinator.settings.election_ms=2500"
)
LOAD = [
    "--agents 4 --choices yes,no --thought-tokens 24",
    "--agents 3 --rounds 1 --thought-tokens 16 --answer-tokens 8",
    "--mode thinking --thought-tokens 16 --answer-tokens 8",
    "--mode instant --answer-tokens 8",
]


class Prometheus:
    """A Prometheus that scrapes the pods and evaluates the rules every second."""

    def __init__(self, release):
        self.at = f"{release.network}.200:9090"
        folder = release.folder / "prometheus"
        folder.mkdir()
        shutil.copy(RULES, folder)
        targets = {"coordinator": 7410, "worker": 7420}
        static = [
            {
                "targets": [f"{release.address(pod)}:{port}" for pod in release.running if f"-{component}-" in pod],
                "labels": {"conclave_cluster": "live", "conclave_component": component},
            }
            for component, port in targets.items()
        ]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [RULES.name],
            "scrape_configs": [{"job_name": "conclave", "static_configs": static}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        words = [PROMETHEUS / "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        words.append(f"--web.listen-address={self.at}")
        with open(release.folder / "prometheus.log", "ab") as log:
            release.running["prometheus"] = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log)

    def ask(self, query):
        """Values that are numbers, of one instant."""
        url = f"http://{self.at}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                result = json.load(answer)["data"]["result"]
        except OSError:
            return []
        return [float(sample["value"][1]) for sample in result if sample["value"][1] != "NaN"]


class Live(unittest.TestCase):
    """One release, from its install to its scaling; the steps are those of docs/OPERATIONS.md."""

    def setUp(self):
        # Kept on a failure, for its logs.
        authority = Authority()
        secrets = [(name, authority.secret(SERVICE)) for name in ("conclave-tls", "conclave-worker-tls")]
        words = ["-f", CHART / "ci/tls.yaml", "--set", VALUES]
        folder = pathlib.Path(tempfile.mkdtemp(prefix="conclave-live-"))
        (folder / "ca.crt").write_text(authority.ca())
        self.release = Release(folder, BINARY, *words, secrets=secrets)
        self.addCleanup(self.release.end)

    def test_from_install_to_scaling(self):
        self.installs()
        self.is_closed()
        self.is_seen_by_prometheus()
        self.moves_leadership_before_a_stop()
        self.scales()
        self.keeps_its_readiness_without_a_quorum()

    def members(self):
        words, own = self.release.cli("cluster", "members", "--json")
        return json.loads(finished(words, own))["members"]

    def voters(self):
        return sorted(m["address"] for m in self.members() if m["role"] != "learner")

    def leader(self):
        leader = self.release.until("a leader", lambda: [m for m in self.members() if m["role"] == "leader"])[0]
        host = leader["address"].split(":")[0]
        return next(pod for pod in self.release.coordinators() if self.release.address(pod) == host)

    def is_closed(self):
        """TLS on the port, a certificate for who is of the cluster, and no word to strangers."""
        release = self.release
        words, own = release.cli("cluster", "status")
        plain = {name: value for name, value in own.items() if name not in ("CONCLAVE_CA", "CONCLAVE_SERVER_NAME")}
        self.assertNotEqual(0, subprocess.run(words, env=plain, capture_output=True, timeout=PATIENCE).returncode)
        words, own = release.cli("cluster", "members", role="worker")
        refused = subprocess.run(words, env=own, capture_output=True, text=True, timeout=PATIENCE)
        self.assertIn("show a certificate", refused.stderr)

    def installs(self):
        release = self.release
        release.start_coordinators()
        first = release.coordinators()[0]
        release.until("it listens", lambda: release.http(first, "/healthz")[0] == 200)
        status, why = release.http(first, "/readyz")
        self.assertEqual(503, status, "a blank coordinator takes no calls")
        self.assertIn("belongs to no cluster", why)
        release.join()
        self.assertEqual(3, len(self.voters()))
        release.join()
        self.assertEqual(3, len(self.voters()), "once more changes nothing")
        for pod in release.coordinators():
            release.ready(pod)
        release.start_workers()
        for pod in [pod for pod in release.running if "-worker-" in pod]:
            release.ready(pod)
        said = release.run(one(release.objects, "Pod"))
        self.assertRegex(said, r"(?m)^(yes|no)$", "helm test")

    def load(self):
        """Jobs of each kind, some at a time; what runs."""
        started = []
        for number, flags in enumerate(LOAD * 3):
            words, own = self.release.cli("submit", "--wait", *flags.split(), f"Is {211 + number} prime?", role="submitter")
            started.append(subprocess.Popen(words, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return started

    def is_seen_by_prometheus(self):
        prometheus = Prometheus(self.release)
        self.release.until("Prometheus answers", lambda: len(prometheus.ask("up == 1")) == 5)
        # The first job ends after the first scrape, or no counter would be seen to move.
        running = self.load()
        for process in running:
            self.assertEqual(0, process.wait(3 * PATIENCE))
        missing = {where: query for where, query in queries()}

        def all_found():
            for where, query in list(missing.items()):
                if prometheus.ask(query):
                    del missing[where]
            return not missing

        asked = list(queries())
        self.assertGreater(len(asked), 100)
        missing = {f"{where}: {query}": query for where, query in asked}
        deadline = time.monotonic() + 20
        while not all_found() and time.monotonic() < deadline:
            time.sleep(1)
        self.assertEqual({}, missing, "nothing was found for these")
        self.assertEqual([], prometheus.ask('ALERTS{severity="critical", alertstate="firing"}'))
        lost = next(pod for pod in self.release.running if "-worker-" in pod)
        self.release.stop(lost, "kill")
        firing = 'ALERTS{alertname="ConclaveWorkerLost", alertstate="firing"}'
        self.release.until("the loss of a worker is told", lambda: prometheus.ask(firing))
        self.release.stop("prometheus")

    def moves_leadership_before_a_stop(self):
        release, leader = self.release, self.leader()
        follower = next(pod for pod in release.coordinators() if pod != leader)
        self.assertIn("does not lead", release.pre_stop(follower))
        self.assertEqual(leader, self.leader())
        release.pre_stop(leader)
        self.assertNotEqual(leader, self.leader())
        release.stop(leader)
        release.start_coordinators()
        release.ready(leader)

    def scales(self):
        release = self.release
        three = self.voters()
        release.apply("--is-upgrade", "--set", "coordinator.replicas=5")
        release.part()
        release.start_coordinators()
        release.join()
        self.assertEqual(5, len(self.voters()))
        # The hardest case: one that is to go leads.
        last = release.coordinators()[4]
        node = next(m for m in self.members() if m["address"].startswith(f"{release.address(last)}:"))
        finished(*release.cli("cluster", "transfer", node["node_id"]))
        gone = release.coordinators()[3:]
        release.apply("--is-upgrade", "--set", "coordinator.replicas=3")
        release.part()
        self.assertEqual(three, self.voters(), "members went before their pods")
        for pod in gone:
            release.stop(pod)
        release.join()
        # On the claims that were retained.
        release.apply("--is-upgrade", "--set", "coordinator.replicas=5")
        release.part()
        release.start_coordinators()
        release.join()
        self.assertEqual(5, len(self.voters()))
        for pod in release.coordinators():
            release.ready(pod)

    def keeps_its_readiness_without_a_quorum(self):
        release = self.release
        pods = release.coordinators()
        for pod in pods[2:]:
            release.stop(pod, "kill")
        left = pods[0]
        release.until("no leader", lambda: "without a leader" in release.http(left, "/readyz")[1])
        self.assertEqual((200, "ready, without a leader\n"), release.http(left, "/readyz"))


class Settings(unittest.TestCase):
    """The program takes the settings of every values file: it ends for want of tokens, a model or a GPU, and not before."""

    def refusal(self, part, text):
        with tempfile.TemporaryDirectory() as folder:
            config = pathlib.Path(folder, f"{part}.toml")
            config.write_text(text.replace("0.0.0.0:7", "127.0.0.1:1").replace("/etc/conclave", f"{folder}/absent"))
            words = [BINARY, part, f"--config={config}", *(["--advertise=a:1"] if part == "coordinator" else [])]
            own = {**os.environ, "CONCLAVE_CACHE": folder}
            done = subprocess.run(words, env=own, capture_output=True, text=True, timeout=PATIENCE)
        self.assertNotEqual(0, done.returncode)
        return done.stderr

    def test_settings_are_understood(self):
        configs = [c for file in CI for c in of_kind(rendered(file.name), "ConfigMap")]
        texts = {(name, text) for c in configs for name, text in c["data"].items() if name in ("coordinator.toml", "worker.toml")}
        self.assertGreater(len(texts), 5)
        for name, text in sorted(texts):
            with self.subTest(config=text):
                self.assertRegex(self.refusal(name.removesuffix(".toml"), text), "tokens_file|no model at|not in the cache|no CUDA")
        wrong = self.refusal("worker", 'coordinators = ["a:1"]\nthread = 1\ntoken_file = "/etc/conclave/t"')
        self.assertIn("did you mean `threads`", wrong, "a setting that it does not know is refused before")


if __name__ == "__main__":
    unittest.main()
