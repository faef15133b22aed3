"""What the chart takes from others: values and their schema, the program's settings, rules and dashboards."""

import json
import re
import unittest

import yaml

from chart import CHART, DASHBOARDS, ROOT, RULES, Refused, helm, one, render, rendered


class Values(unittest.TestCase):
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def closed(self, schema, path=()):
        """Paths of the objects that list their keys."""
        if "$ref" in schema:
            schema = self.schema["definitions"][schema["$ref"].rsplit("/", 1)[1]]
        if schema.get("additionalProperties") is False:
            yield path
        for key, inner in schema.get("properties", {}).items():
            yield from self.closed(inner, (*path, key))
        if isinstance(schema.get("additionalProperties"), dict) and path == ("workerPools",):
            yield from self.closed(schema["additionalProperties"], (*path, "cpu"))

    def test_what_lists_its_keys_takes_no_others(self):
        def look(schema, path):
            if isinstance(schema, dict):
                if "properties" in schema and path[-1:] != ("properties",):
                    self.assertIs(schema.get("additionalProperties"), False, path)
                for key, inner in schema.items():
                    look(inner, (*path, key))

        look(self.schema, ())

    def test_unknown_keys_are_refused_everywhere(self):
        paths = list(self.closed(self.schema))
        self.assertGreater(len(paths), 30)
        for path in paths:
            if not path or path[-1] not in ("resources", "requests", "limits"):
                with self.assertRaisesRegex(Refused, "unknownKey", msg=path):
                    render("--set", ".".join((*path, "unknownKey")) + "=x")

    def test_every_value_has_a_type(self):
        def look(values, schema, path):
            if "$ref" in schema:
                schema = self.schema["definitions"][schema["$ref"].rsplit("/", 1)[1]]
            known = schema.get("properties", {})
            for key, value in (values or {}).items():
                self.assertTrue(key in known or schema.get("additionalProperties"), f"{path}.{key}")
                if isinstance(value, dict) and key in known:
                    look(value, known[key], f"{path}.{key}")

        look(self.values, self.schema, "")

    def test_settings_are_those_of_the_program(self):
        for part, schema, own in [
            ("coordinator", self.schema["properties"]["coordinator"]["properties"]["settings"],
             {"data_dir", "listen", "advertise", "http_listen", "seeds", "tokens_file", "quotas_file", "open",
              "open_beyond_loopback", "jwt", "tls", "traces"}),
            ("worker", self.schema["definitions"]["pool"]["properties"]["settings"],
             {"worker_id", "data_dir", "coordinators", "http_listen", "models", "token", "token_file", "tls", "traces"}),
        ]:
            source = (ROOT / part / "src/config.rs").read_text()
            keys = set(re.findall(r'"(\w+)"', re.search(r"const KEYS:[^;]*;[^;]*;", source)[0]))
            self.assertEqual(keys - own, set(schema["properties"]), part)

    def test_bad_values_are_refused(self):
        for words in ["coordinator.replicas=2", "coordinator.replicas=4", "image.tag=latest", "coordinator.drain=soon",
                      "workerPools.Bad_Name.replicas=1", "image.digest=abc", "coordinator.terminationGracePeriodSeconds=5",
                      "workerDefaults.resources.limits.memory=8ki", "workerDefaults.resources.limits.memory=lots"]:
            with self.assertRaises(Refused, msg=words):
                render("--set", words)

    def test_quantities_are_kubernetes(self):
        for quantity in ("500m", "2", "1.5", "524288Ki", "512Mi", "4Gi", "1k", "2G"):
            render("--set-string", f"workerDefaults.resources.limits.memory={quantity}")


class Sources(unittest.TestCase):
    """One source for rules and dashboards; versions that agree."""

    def test_the_chart_carries_the_rules_and_dashboards(self):
        objects = rendered("production.yaml")
        rule = one(objects, "PrometheusRule")["spec"]
        moved = RULES.read_text().replace("docs/OPERATIONS.md", "runbooks/conclave")
        self.assertEqual(yaml.safe_load(moved), rule)
        carried = one(objects, "ConfigMap", "-dashboards")["data"]
        here = {path.name: json.loads(path.read_text()) for path in DASHBOARDS.glob("*.json")}
        self.assertEqual(here, {name: json.loads(text) for name, text in carried.items()})
        self.assertGreater(len(here), 3)

    def test_the_version_is_the_programs(self):
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        cargo = re.search(r'\[workspace.package\]\nversion = "(.*)"', (ROOT / "Cargo.toml").read_text())
        self.assertEqual(cargo[1], chart["appVersion"])

    def test_the_notes_name_the_first_command(self):
        notes = self.notes("--set", "service.port=443")
        self.assertIn("port-forward service/t-conclave 7400:443", notes)
        self.assertIn("conclave submit --watch --endpoint 127.0.0.1:7400", notes)
        self.assertIn("helm test t -n default", notes)
        self.assertNotIn("--model", notes)
        self.assertIn(" --model smollm2-135m ", self.notes("-f", CHART / "ci/pools.yaml"), "with several models one is named")

    def notes(self, *words):
        return helm("install", "t", CHART, "--dry-run=client", *words).split("NOTES:")[1]

    def test_the_notes_tell_whom_the_network_policy_keeps_out(self):
        kept_out = "networkPolicy.clients"
        self.assertNotIn(kept_out, self.notes())
        self.assertNotIn(kept_out, self.notes("--set", "service.type=LoadBalancer,networkPolicy.enabled=false"))
        self.assertIn(kept_out, self.notes("--set", "service.type=LoadBalancer"))
        self.assertNotIn(kept_out, self.notes("-f", CHART / "ci/ingress-keda.yaml"), "an ingress' controller is let in")


if __name__ == "__main__":
    unittest.main()
