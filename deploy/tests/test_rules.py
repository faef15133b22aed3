"""Rules and dashboards: promtool's checks and tests, and that everything they name is there."""

import json
import re
import subprocess
import sys
import unittest

import yaml

from chart import DASHBOARDS, PROMETHEUS, ROOT, RULES

TESTS = RULES.with_name("conclave.rules.test.yml")
# A recorded series, compared with a number.
COMPARED = re.compile(r"^(conclave:[a-z0-9_:]+) (?:<|>|==) -?[0-9.]+$")


def rules():
    """All rules."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts():
    return [rule for rule in rules() if "alert" in rule]


def dashboards():
    return {path.name: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def queries():
    """(where it stands, expression) of everything that is asked of Prometheus, for all clusters."""
    for rule in rules():
        if "record" in rule:
            yield rule["record"], rule["expr"]
        else:
            for part in rule["expr"].split(" and "):
                yield rule["alert"], COMPARED.match(part)[1]
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                asked = target["expr"].replace("$cluster", ".*")
                yield f"{name}: {panel['title']}", re.sub(r"\$\w+_price", "1.5", asked)


def promtool(*words):
    done = subprocess.run([PROMETHEUS / "promtool", *words], cwd=RULES.parent, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


class Rules(unittest.TestCase):
    def test_promtool_finds_nothing_wrong(self):
        for words in (["check", "rules", RULES.name], ["check", "config", "prometheus.yml"], ["test", "rules", TESTS.name]):
            with self.subTest(words=words):
                code, text = promtool(*words)
                self.assertEqual(0, code, text)

    def test_each_alert_is_tested_both_ways(self):
        tests = yaml.safe_load(TESTS.read_text())["tests"]
        tested = {test["name"]: test for test in tests}
        wanted = {":".join(filter(None, [a["alert"], a["labels"].get("burn")])) for a in alerts()}
        self.assertEqual(wanted, set(tested))
        for name, test in tested.items():
            series = " ".join(s["series"] for s in test["input_series"])
            self.assertIn('conclave_cluster="near"', series, f"{name}: nothing shows that it does not fire")
            (asked,) = test["promql_expr_test"]
            self.assertIn(f'alertname="{name.split(":")[0]}", alertstate="firing"', asked["expr"])
            (sample,) = asked["exp_samples"]
            self.assertEqual('{conclave_cluster="bad"}', sample["labels"])

    def test_alerts_compare_recorded_series_with_numbers(self):
        recorded = {rule["record"] for rule in rules() if "record" in rule}
        for alert in alerts():
            for part in alert["expr"].split(" and "):
                found = COMPARED.match(part)
                self.assertTrue(found and found[1] in recorded, f"{alert['alert']}: {part}")
            self.assertIn(alert["labels"]["severity"], ("critical", "warning"))
            self.assertTrue(alert["annotations"]["summary"])

    def test_runbooks_are_there(self):
        headings = re.findall(r"^#+ (.+)$", (ROOT / "docs/OPERATIONS.md").read_text(), re.M)
        anchors = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}
        for alert in alerts():
            file, _, anchor = alert["annotations"]["runbook_url"].partition("#")
            self.assertEqual("docs/OPERATIONS.md", file)
            self.assertIn(anchor, anchors, alert["alert"])

    def test_every_series_is_one_that_the_program_has(self):
        files = [*ROOT.glob("*/src/metrics.rs"), *ROOT.glob("*/src/metrics/*.rs"), *ROOT.glob("credentials/src/*.rs")]
        source = "".join(path.read_text() for path in files)
        metrics = set(re.findall(r'"(conclave_[a-z_]+)"', source))
        recorded = {rule["record"] for rule in rules() if "record" in rule}
        labels = {"conclave_cluster", "conclave_component"}
        for where, query in queries():
            for name in set(re.findall(r"\bconclave[:_][a-z0-9_:]+", query)) - labels:
                plain = re.sub(r"_(bucket|sum|count)$", "", name)
                self.assertIn(name if name in recorded else plain, recorded | metrics, where)


class Dashboards(unittest.TestCase):
    def test_they_are_what_the_generator_writes(self):
        done = subprocess.run([sys.executable, DASHBOARDS / "generate", "--check"], capture_output=True, text=True, timeout=60)
        self.assertEqual(0, done.returncode, done.stderr)

    def test_panels_say_what_they_show_and_do_not_overlap(self):
        for name, dashboard in dashboards().items():
            taken = set()
            for panel in dashboard["panels"]:
                self.assertTrue(panel["description"], f"{name}: {panel['title']}")
                at = panel["gridPos"]
                cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
                self.assertLessEqual(at["x"] + at["w"], 24)
                self.assertFalse(cells & taken, f"{name}: {panel['title']} lies on another")
                taken |= cells


if __name__ == "__main__":
    unittest.main()
