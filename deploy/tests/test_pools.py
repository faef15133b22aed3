"""Pools of workers."""

import re
import unittest

from chart import RULES, Refused, of_kind, one, render, rendered


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


if __name__ == "__main__":
    unittest.main()
