"""Pools of workers: on processors and on GPUs."""

import json
import re
import tempfile
import tomllib
import unittest

from chart import ROOT, RULES, Refused, of_kind, one, render, rendered


class Workers(unittest.TestCase):
    def test_a_deployment_for_each_pool(self):
        objects = rendered("pools.yaml")
        names = {o["metadata"]["labels"]["conclave/pool"]: o for o in of_kind(objects, "Deployment")}
        self.assertEqual({"cpu", "small", "large", "gpu"}, set(names))
        gpu = names["gpu"]["spec"]["template"]["spec"]
        self.assertEqual(1, gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        self.assertEqual("nvidia", gpu["runtimeClassName"])
        self.assertNotIn("initContainers", gpu)
        self.assertEqual({"claimName": "models", "readOnly": True}, gpu["volumes"][-1]["persistentVolumeClaim"])
        config = one(objects, "ConfigMap", "-worker-gpu")["data"]["worker.toml"]
        self.assertIn('path = "/models/big/model.gguf"', config)
        fetch = names["large"]["spec"]["template"]["spec"]["initContainers"][0]
        self.assertEqual(["model", "pull", "tiny", "--from=hf:owner/repository/model.Q8_0.gguf"], fetch["args"])

    def test_settings_that_change_restart_the_workers(self):
        def restarted(*words):
            before, after = [one(render(*more), "Deployment")["spec"]["template"] for more in ([], words)]
            return before != after

        # What a worker reads at its start, wherever in the values it stands.
        for words in ("service.port=443", "clusterDomain=internal", "workerDefaults.settings.threads=2",
                      "traces.endpoint=http://collector:4317"):
            self.assertTrue(restarted("--set", words), words)
        for words in ("coordinator.settings.retention_hours=2", "metrics.dashboards.enabled=true"):
            self.assertFalse(restarted("--set", words), words)

    def test_a_worker_that_does_not_serve_is_in_no_drains_way(self):
        budget = one(render(), "PodDisruptionBudget", "-worker-cpu")["spec"]
        self.assertEqual("AlwaysAllow", budget["unhealthyPodEvictionPolicy"])

    def test_a_rollout_has_time_to_fetch_a_large_model(self):
        self.assertEqual(1800, one(render(), "Deployment")["spec"]["progressDeadlineSeconds"])

    def test_the_default_pool_can_be_taken_out(self):
        self.assertEqual([], of_kind(render("--set", "workerPools.cpu=null"), "Deployment"))

    def test_autoscaling(self):
        objects = rendered("hpa.yaml")
        self.assertNotIn("replicas", one(objects, "Deployment")["spec"])
        scaler = one(objects, "HorizontalPodAutoscaler")["spec"]
        self.assertEqual((1, 3), (scaler["minReplicas"], scaler["maxReplicas"]))
        self.assertEqual("conclave_agents_queued", scaler["metrics"][0]["external"]["metric"]["name"])
        trigger = one(rendered("ingress-keda.yaml"), "ScaledObject")["spec"]["triggers"][0]["metadata"]
        self.assertEqual('conclave:agents_queued{conclave_cluster="default.conclave"}', trigger["query"])
        named = scaler["metrics"][0]["external"]["metric"]["selector"]["matchLabels"]
        self.assertEqual({"conclave_cluster": "default.t-conclave"}, named)
        recorded = re.findall("record: (.*)", RULES.read_text())
        self.assertIn("conclave:agents_queued", recorded)

    def test_contradictions_are_refused(self):
        scaled = "workerDefaults.autoscaling"
        for words, why in [
            (["--set", f"{scaled}.hpa.enabled=true,{scaled}.keda.enabled=true"], "not both"),
            (["--set", f"{scaled}.keda.enabled=true"], "serverAddress is needed"),
            (["--set", "workerDefaults.model.fetch.enabled=false"], "volume.existingClaim"),
            (["--set", "ingress.enabled=true"], "ingress.host"),
            (["--set", f"{scaled}.hpa.enabled=true,{scaled}.hpa.minReplicas=9"], "hpa: maxReplicas is below minReplicas"),
            (["--set", "workerDefaults.drain=1m"], "drain .1m. must be shorter than terminationGracePeriodSeconds .60."),
        ]:
            with self.assertRaisesRegex(Refused, why):
                render(*words)


class Gpus(unittest.TestCase):
    """Pools that ask for a GPU."""

    def pool(self, *words, name="gpu", **values):
        """(settings, pod) of a pool beside the default one."""
        values = {"resources": {"limits": {"nvidia.com/gpu": 1}}, **values}
        objects = render("--set-json", f"workerPools.{name}={json.dumps(values)}", *words)
        settings = tomllib.loads(one(objects, "ConfigMap", f"-worker-{name}")["data"]["worker.toml"])
        return settings, one(objects, "Deployment", f"-worker-{name}")["spec"]["template"]["spec"]

    def image(self, *words):
        return self.pool(*words)[1]["containers"][0]["image"]

    def test_they_run_the_image_that_computes_on_it(self):
        settings, pod = self.pool()
        self.assertEqual("cuda", settings["device"])
        self.assertEqual("conclave:0.1.0-cuda", pod["containers"][0]["image"])
        plain, pod = self.pool(name="plain", resources={})
        self.assertNotIn("device", plain)
        self.assertEqual("conclave:0.1.0", pod["containers"][0]["image"])
        # A slice is asked for by another name.
        self.assertEqual("cuda", self.pool(resources={"limits": {"nvidia.com/mig-1g.10gb": "1"}})[0]["device"])
        self.assertEqual("cuda:0", self.pool(settings={"device": "cuda:0"})[0]["device"], "settings win")

    def test_the_example_that_people_are_told(self):
        section = (ROOT / "docs/OPERATIONS.md").read_text().split("### A pool of GPUs\n")[1]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as values:
            values.write(section.split("```\n")[1])
            values.flush()
            objects = render("-f", values.name)
        pool = one(objects, "Deployment")["spec"]
        self.assertEqual(4, pool["replicas"])
        self.assertEqual("conclave:0.1.0-cuda", pool["template"]["spec"]["containers"][0]["image"])

    def test_which_image_that_is_can_be_said(self):
        digest, other = "sha256:" + "a" * 64, "sha256:" + "b" * 64
        for wanted, words in [
            ("r/conclave:0.1.0-abc-cuda", "image.repository=r/conclave,image.tag=0.1.0-abc"),
            ("r/gpu:v1", "image.cuda.repository=r/gpu,image.cuda.tag=v1"),
            (f"conclave@{digest}", f"image.cuda.digest={digest}"),
            (f"conclave@{digest}", f"image.digest={other},image.cuda.digest={digest}"),
            ("conclave:v1-cuda", f"image.digest={other},image.cuda.tag=v1-cuda"),
        ]:
            self.assertEqual(wanted, self.image("--set", words))
        for words, why in [
            (f"image.digest={other}", "give image.cuda.digest"),
            (f"image.digest={other},image.cuda.digest={other}", "is that of the image without CUDA"),
            ("image.cuda.tag=latest", "image.cuda.tag|image/cuda/tag"),
        ]:
            with self.assertRaisesRegex(Refused, why):
                self.image("--set", words)

    def test_they_tolerate_the_taint_of_such_nodes(self):
        own = [{"key": "dedicated", "operator": "Equal", "value": "inference", "effect": "NoSchedule"}]
        taint = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        self.assertEqual(taint, self.pool()[1]["tolerations"])
        self.assertEqual(own, self.pool(tolerations=own)[1]["tolerations"])
        self.assertNotIn("tolerations", self.pool(resources={})[1])

    def test_what_only_fetches_holds_no_gpu(self):
        resources = {"requests": {"cpu": "4", "nvidia.com/gpu": 1}, "limits": {"memory": "8Gi", "nvidia.com/gpu": 1}}
        _, pod = self.pool(resources=resources)
        self.assertEqual(1, pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        fetch = pod["initContainers"][0]
        self.assertEqual({"cpu": "4", "memory": "1Gi"}, fetch["resources"]["requests"])
        self.assertEqual({"memory": "8Gi"}, fetch["resources"]["limits"])
        self.assertEqual("conclave-fetch:0.1.0", fetch["image"])

    def test_contradictions_are_refused(self):
        for values, why in [
            ({"settings": {"device": "cpu"}}, "asks for a GPU, and settings.device is cpu"),
            ({"resources": {}, "settings": {"device": "cuda"}}, "no GPU is asked for: add nvidia.com/gpu: 1"),
            ({"resources": {"requests": {"nvidia.com/gpu": 1}}}, "nvidia.com/gpu stands in limits"),
            ({"resources": {"limits": {"nvidia.com/gpu": 2}}}, "computes on one GPU, and 2 are asked for"),
            ({"settings": {"device": "gpu"}}, "device"),
        ]:
            with self.assertRaisesRegex(Refused, why):
                self.pool(**values)


if __name__ == "__main__":
    unittest.main()
