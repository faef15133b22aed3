"""The chart: lint, schemas of objects, policies, and what each template has to say."""

import json
import re
import tomllib
import unittest

import kubernetes_validate
from cloudcoil.models.cert_manager.v1 import Certificate
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule, ServiceMonitor

from chart import CHART, CI, Refused, containers, helm, of_kind, one, pod_specs, render, rendered

# The oldest that Chart.yaml admits, and the newest whose schemas there are.
VERSIONS = ["1.29", "1.37"]
CUSTOM = {
    "Certificate": Certificate,
    "ServiceMonitor": ServiceMonitor,
    "PodMonitor": PodMonitor,
    "PrometheusRule": PrometheusRule,
    "ScaledObject": ScaledObject,
}
# Secrets that a user brings, or cert-manager makes.
GIVEN = {"conclave-tokens", "conclave-tls", "conclave-worker-tls", "t-conclave-coordinator-tls", "t-conclave-worker-tls", "conclave-traces"}


def strange(sent, known, path=""):
    """Keys of `sent` that a model did not keep: it knows them not."""
    if isinstance(sent, dict) and isinstance(known, dict):
        for key, value in sent.items():
            if key in known:
                yield from strange(value, known[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(sent, list) and isinstance(known, list):
        for index, (a, b) in enumerate(zip(sent, known)):
            yield from strange(a, b, f"{path}[{index}]")


class Everywhere(unittest.TestCase):
    """What holds with every values file of ci/."""

    def each(self):
        for file in CI:
            with self.subTest(values=file.name):
                yield rendered(file.name)

    def test_lint(self):
        for file in CI:
            with self.subTest(values=file.name):
                helm("lint", "--strict", CHART, "-f", file)

    def test_objects_fit_their_schemas(self):
        for objects in self.each():
            for o in objects:
                name = f"{o['kind']} {o['metadata']['name']}"
                if o["kind"] not in CUSTOM:
                    for version in VERSIONS:
                        with self.subTest(object=name, kubernetes=version):
                            kubernetes_validate.validate(o, version, strict=True)
                    continue
                model = CUSTOM[o["kind"]].model_validate(o)
                known = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
                self.assertEqual([], list(strange(o, known)), name)

    def test_every_custom_kind_is_rendered_by_some_file(self):
        kinds = {o["kind"] for file in CI for o in rendered(file.name)}
        self.assertLessEqual(set(CUSTOM) | {"HorizontalPodAutoscaler", "Ingress"}, kinds)

    def test_names_are_short_and_single(self):
        for objects in self.each():
            names = [(o["kind"], o["metadata"]["name"]) for o in objects]
            self.assertEqual(len(names), len(set(names)))
            for _, name in names:
                self.assertLessEqual(len(name), 63, name)

    def test_selectors_find_pods(self):
        for objects in self.each():
            pods = [meta["labels"] for _, meta, _ in pod_specs(objects)]
            for o in objects:
                spec = o.get("spec", {})
                selector = spec.get("podSelector") or spec.get("selector") or {}
                wanted = selector.get("matchLabels", selector)
                # A ServiceMonitor selects services.
                if not wanted or o["kind"] == "ServiceMonitor":
                    continue
                found = [pod for pod in pods if wanted.items() <= pod.items()]
                self.assertTrue(found, f"{o['kind']} {o['metadata']['name']} selects nothing")

    def test_what_pods_mount_is_there(self):
        for objects in self.each():
            there = {(o["kind"], o["metadata"]["name"]) for o in objects}
            for o, _, spec in pod_specs(objects):
                volumes = {v["name"]: v for v in spec.get("volumes", [])}
                claims = o["spec"].get("volumeClaimTemplates", [])
                names = set(volumes) | {claim["metadata"]["name"] for claim in claims}
                for container in containers(spec):
                    mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
                    self.assertLessEqual(mounted, names)
                for volume in volumes.values():
                    if "configMap" in volume:
                        name = volume["configMap"]["name"]
                        self.assertTrue(("ConfigMap", name) in there or name in ("conclave-jwks", "conclave-traces-ca"))
                    secret = volume.get("secret", {}).get("secretName")
                    self.assertTrue(secret is None or ("Secret", secret) in there or secret in GIVEN)
                account = spec["serviceAccountName"]
                self.assertTrue(("ServiceAccount", account) in there or account == "restricted")

    def test_policies(self):
        for objects in self.each():
            for o, _, spec in pod_specs(objects):
                name = f"{o['kind']} {o['metadata']['name']}"
                with self.subTest(pod=name):
                    self.policies_of(spec, runs_on=o["kind"] in ("StatefulSet", "Deployment"))
            for account in of_kind(objects, "ServiceAccount"):
                self.assertIs(account["automountServiceAccountToken"], False)
            for kind in ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
                self.assertEqual([], of_kind(objects, kind), "nothing needs a right")

    def policies_of(self, spec, runs_on):
        self.assertIs(spec["automountServiceAccountToken"], False)
        for forbidden in ("hostNetwork", "hostPID", "hostIPC"):
            self.assertNotIn(forbidden, spec)
        self.assertFalse([v for v in spec.get("volumes", []) if "hostPath" in v])
        pod = spec["securityContext"]
        self.assertIs(pod["runAsNonRoot"], True)
        self.assertGreater(pod["runAsUser"], 0)
        self.assertEqual("RuntimeDefault", pod["seccompProfile"]["type"])
        for container in containers(spec):
            own = container["securityContext"]
            self.assertIs(own["allowPrivilegeEscalation"], False)
            self.assertIs(own["readOnlyRootFilesystem"], True)
            self.assertIs(own["runAsNonRoot"], True)
            self.assertEqual({"drop": ["ALL"]}, own["capabilities"])
            self.assertRegex(container["image"], r"(:[^:/]+|@sha256:[0-9a-f]{64})$")
            self.assertFalse(container["image"].endswith(":latest"))
            self.assertTrue({"cpu", "memory"} <= set(container["resources"]["requests"]))
            self.assertIn("memory", container["resources"]["limits"])
            # No secret in an environment: it would stand in every dump of the process.
            for variable in container.get("env", []):
                self.assertNotIn("secretKeyRef", variable.get("valueFrom", {}))
        if runs_on:
            for container in spec["containers"]:
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    self.assertIn(probe, container)
                ports = {port["name"] for port in container["ports"]}
                self.assertIn(container["readinessProbe"]["httpGet"]["port"], ports)

    def test_labels_that_change_restart_no_pod(self):
        bare, labelled = render(), render("--set", "commonLabels.team=inference")
        for kind in ("StatefulSet", "Deployment"):
            self.assertEqual(one(bare, kind)["spec"]["template"], one(labelled, kind)["spec"]["template"])
        for objects in self.each():
            for o, meta, _ in pod_specs(objects):
                if o["kind"] != "Pod":
                    self.assertNotIn("helm.sh/chart", meta["labels"])
                    self.assertNotIn("app.kubernetes.io/version", meta["labels"])


class Coordinators(unittest.TestCase):
    def setUp(self):
        self.objects = rendered("minimal.yaml")
        self.set = one(self.objects, "StatefulSet")["spec"]
        self.pod = self.set["template"]["spec"]

    def test_they_start_together_and_are_upgraded_one_by_one(self):
        self.assertEqual(3, self.set["replicas"])
        self.assertEqual("Parallel", self.set["podManagementPolicy"])
        self.assertEqual({"type": "RollingUpdate"}, self.set["updateStrategy"])
        self.assertEqual(1, one(self.objects, "PodDisruptionBudget", "-coordinator")["spec"]["maxUnavailable"])

    def test_they_find_each_other_before_they_are_ready(self):
        headless = one(self.objects, "Service", "-coordinator")
        self.assertEqual(self.set["serviceName"], headless["metadata"]["name"])
        self.assertEqual("None", headless["spec"]["clusterIP"])
        self.assertIs(headless["spec"]["publishNotReadyAddresses"], True)
        self.assertNotIn("publishNotReadyAddresses", one(self.objects, "Service", "t-conclave")["spec"])

    def test_what_a_pod_advertises_is_what_the_join_job_asks_for(self):
        args = self.pod["containers"][0]["args"]
        advertised = next(a for a in args if a.startswith("--advertise=")).removeprefix("--advertise=")
        name = one(self.objects, "StatefulSet")["metadata"]["name"]
        pods = [f"{name}-{index}" for index in range(3)]
        wanted = [advertised.replace("$(POD_NAME)", pod).replace("$(POD_NAMESPACE)", "default") for pod in pods]
        job = next(j for j in of_kind(self.objects, "Job") if "-join-" in j["metadata"]["name"])
        self.assertEqual(wanted, job["spec"]["template"]["spec"]["containers"][0]["args"][-3:])

    def test_leadership_goes_before_the_pod_does(self):
        stop = self.pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        self.assertEqual(["conclave", "cluster", "transfer", "--if-leader"], stop[:4])
        with self.assertRaisesRegex(Refused, "must be more than 10 s and drain"):
            render("--set", "coordinator.drain=40s")
        seconds = sum(int(re.search(f"--{flag}=(\\d+)s", " ".join(stop + self.pod["containers"][0]["args"]))[1])
                      for flag in ("timeout", "drain"))
        self.assertGreater(self.pod["terminationGracePeriodSeconds"], seconds)

    def test_probes_ask_what_the_quorum_does_not_change(self):
        container = self.pod["containers"][0]
        self.assertEqual("/healthz", container["livenessProbe"]["httpGet"]["path"])
        self.assertEqual("/healthz", container["startupProbe"]["httpGet"]["path"])
        self.assertEqual("/readyz", container["readinessProbe"]["httpGet"]["path"])

    def test_a_claim_outlives_its_pod_unless_told_otherwise(self):
        policy = {"whenDeleted": "Retain", "whenScaled": "Retain"}
        self.assertEqual(policy, self.set["persistentVolumeClaimRetentionPolicy"])
        five = one(rendered("five.yaml"), "StatefulSet")["spec"]
        self.assertEqual("Delete", five["persistentVolumeClaimRetentionPolicy"]["whenScaled"])

    def test_growing_restarts_no_pod_that_is_there(self):
        three, five = render(), render("--set", "coordinator.replicas=5")
        for kind in ("StatefulSet", "Deployment"):
            self.assertEqual(one(three, kind)["spec"]["template"], one(five, kind)["spec"]["template"])

    def test_anti_affinity(self):
        soft = self.pod["affinity"]["podAntiAffinity"]
        self.assertIn("preferredDuringSchedulingIgnoredDuringExecution", soft)
        hard = one(rendered("production.yaml"), "StatefulSet")["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"]
        term = hard["requiredDuringSchedulingIgnoredDuringExecution"][0]
        self.assertEqual("topology.kubernetes.io/zone", term["topologyKey"])

    def test_settings_become_toml(self):
        text = one(rendered("production.yaml"), "ConfigMap", "-coordinator")["data"]["coordinator.toml"]
        self.assertIn("\ndisk_reserve_bytes = 2147483648\n", text)
        restarted = [one(o, "StatefulSet")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
                     for o in (self.objects, rendered("production.yaml"))]
        self.assertNotEqual(*restarted)


class Membership(unittest.TestCase):
    def jobs(self, *words):
        return {re.search("-(join|part)", job["metadata"]["name"])[1]: job for job in of_kind(render(*words), "Job")}

    def args(self, job):
        return job["spec"]["template"]["spec"]["containers"][0]["args"]

    def test_only_an_install_may_create_a_cluster(self):
        self.assertIn("--init", self.args(self.jobs()["join"]))
        self.assertNotIn("--init", self.args(self.jobs("--is-upgrade")["join"]))
        self.assertNotIn("--init", self.args(self.jobs("--set", "cluster.init=never")["join"]))

    def test_the_join_job_is_no_hook_and_another_one_has_another_name(self):
        one_, two = self.jobs()["join"], self.jobs("--set", "coordinator.replicas=5")["join"]
        self.assertNotIn("annotations", one_["metadata"])
        self.assertNotEqual(one_["metadata"]["name"], two["metadata"]["name"])
        self.assertEqual(one_["metadata"]["name"], self.jobs()["join"]["metadata"]["name"])

    def test_members_go_before_their_pods(self):
        part = self.jobs("--set", "coordinator.replicas=1")["part"]
        self.assertEqual("pre-upgrade,pre-rollback", part["metadata"]["annotations"]["helm.sh/hook"])
        self.assertEqual(["cluster", "keep"], self.args(part)[:2])
        self.assertEqual(1, len([a for a in self.args(part) if a.endswith(":7400")]))

    def test_the_jobs_run_where_coordinators_may(self):
        toleration = {"key": "dedicated", "operator": "Exists"}
        placed = ["--set-json", f"coordinator.tolerations=[{json.dumps(toleration)}]", "--set", "coordinator.nodeSelector.pool=system"]
        callers = 0
        for o, meta, spec in pod_specs(render(*placed)):
            if meta["labels"]["app.kubernetes.io/component"] in ("caller", "coordinator"):
                callers += o["kind"] != "StatefulSet"
                self.assertEqual(([toleration], {"pool": "system"}), (spec["tolerations"], spec["nodeSelector"]), o["kind"])
        self.assertEqual(3, callers)

    def test_the_test_submits_a_job(self):
        pod = one(render(), "Pod")
        self.assertEqual("test", pod["metadata"]["annotations"]["helm.sh/hook"])
        self.assertEqual(["submit", "--watch"], pod["spec"]["containers"][0]["args"][:2])

    def test_the_test_names_a_model(self):
        # Without a name a job is refused where there are several.
        pools = {"cpu": {"model": {"name": "a"}}, "big": {"model": {"name": "b"}}}
        for words, wanted in [([], "smollm2-135m"), (["--set-json", f"workerPools={json.dumps(pools)}"], "b")]:
            self.assertIn(f"--model={wanted}", self.args_of_test(words))
        self.assertNotIn("--model", " ".join(self.args_of_test(["--set", "workerPools.cpu=null"])))

    def args_of_test(self, words):
        return one(render(*words), "Pod")["spec"]["containers"][0]["args"]


class Quotas(unittest.TestCase):
    def test_the_file_says_what_the_values_say(self):
        text = one(rendered("production.yaml"), "ConfigMap", "-quotas")["data"]["quotas.toml"]
        limits = {"live_jobs": 2000, "running_agents": 256, "tokens_per_minute": 6_000_000}
        tenants = {"acme": limits, "batch jobs": {"tokens_per_minute": 300_000}}
        self.assertEqual({"default": {"live_jobs": 100, "running_agents": 32}, "tenant": tenants}, tomllib.loads(text))
        bare = one(rendered("minimal.yaml"), "ConfigMap", "-quotas")["data"]["quotas.toml"]
        self.assertEqual({"default": {}}, tomllib.loads(bare))

    def test_a_change_of_quotas_restarts_nothing(self):
        pods = [one(render(*words), "StatefulSet")["spec"]["template"] for words in ([], ["--set", "quotas.default.live_jobs=7"])]
        self.assertEqual(*pods)

    def test_what_is_no_quota_is_refused(self):
        for word in ("quotas.default.live_job=1", "quotas.tenants.acme.tokens_per_minute=0", "quotas.tenant.acme.live_jobs=1"):
            with self.assertRaisesRegex(Refused, "quotas"):
                render("--set", word)


class Traces(unittest.TestCase):
    def parts(self, objects):
        """(settings, pod, egress rules) of the coordinators and of a pool's workers."""
        for ending, file, kind, policy in [("-coordinator", "coordinator.toml", "StatefulSet", "-coordinator"),
                                           ("-worker-cpu", "worker.toml", "Deployment", "-worker")]:
            settings = tomllib.loads(one(objects, "ConfigMap", ending)["data"][file])
            pod = one(objects, kind, ending)["spec"]["template"]["spec"]
            yield settings, pod, one(objects, "NetworkPolicy", policy)["spec"]["egress"]

    def test_off_unless_an_endpoint_is_named(self):
        for settings, pod, egress in self.parts(rendered("minimal.yaml")):
            self.assertNotIn("traces", settings)
            self.assertNotIn("traces", json.dumps(pod))
            self.assertNotIn(4317, [port["port"] for rule in egress for port in rule["ports"]])

    def test_every_program_is_told_the_same(self):
        for settings, pod, egress in self.parts(rendered("production.yaml")):
            table = settings["traces"]
            self.assertEqual(("https://collector.monitoring:4317", 0.1), (table["endpoint"], table["sampling_ratio"]))
            mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
            self.assertEqual(table["headers_file"], f"{mounts['traces-headers']}/headers")
            self.assertEqual(table["ca_file"], f"{mounts['traces-ca']}/ca.crt")
            self.assertIn(4317, [port["port"] for rule in egress for port in rule["ports"]])
        plain = render("--set", "traces.endpoint=http://collector:4317")
        for settings, _, _ in self.parts(plain):
            self.assertEqual({"endpoint": "http://collector:4317", "sampling_ratio": 1}, settings["traces"])

    def test_what_cannot_work_is_refused(self):
        for words, why in [
            ("traces.endpoint=collector:4317", "endpoint"),
            ("traces.endpoint=http://token@collector:4317", "endpoint"),
            ("traces.endpoint=https://collector:4317", "caConfigMap"),
            ("traces.endpoint=http://collector:4317,traces.caConfigMap=a", "caConfigMap"),
            ("traces.samplingRatio=2", "samplingRatio"),
        ]:
            with self.assertRaisesRegex(Refused, why):
                render("--set", words)


class Monitors(unittest.TestCase):
    def test_releases_of_one_name_are_told_apart(self):
        """Else the leader of one would hide that the other has none."""
        words = ["--set", "metrics.monitors.enabled=true"]
        named = set()
        for namespace in ("a", "b"):
            objects = render(*words, "--namespace", namespace)
            for kind, ends in (("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints")):
                rules = one(objects, kind)["spec"][ends][0]["relabelings"]
                named.add((kind, next(r["replacement"] for r in rules if r["targetLabel"] == "conclave_cluster")))
        self.assertEqual({(k, f"{n}.t-conclave") for k in ("ServiceMonitor", "PodMonitor") for n in "ab"}, named)


class Doors(unittest.TestCase):
    def test_tokens(self):
        secret = one(rendered("minimal.yaml"), "Secret")
        self.assertEqual("keep", secret["metadata"]["annotations"]["helm.sh/resource-policy"])
        lines = [json.loads(line) for line in secret["stringData"]["tokens.jsonl"].splitlines()]
        self.assertEqual({"operator", "submitter", "worker", "peer"}, {line["role"] for line in lines})
        self.assertEqual(4, len({line["token"] for line in lines}))
        for role in ("operator", "submitter", "worker"):
            token = next(line["token"] for line in lines if line["role"] == role)
            self.assertEqual(token, secret["stringData"][f"{role}-token"])
        self.assertEqual([], of_kind(rendered("production.yaml"), "Secret"), "an existing one is left alone")

    def test_pods_see_only_the_tokens_they_need(self):
        seen = {}
        for o, _, spec in pod_specs(rendered("minimal.yaml")):
            keys = [i["key"] for v in spec["volumes"] for i in v.get("secret", {}).get("items", [])]
            seen.setdefault(o["kind"], set()).update(keys)
        self.assertEqual({"tokens.jsonl", "operator-token"}, seen["StatefulSet"])
        self.assertEqual({"worker-token"}, seen["Deployment"])
        self.assertEqual({"operator-token"}, seen["Job"])
        self.assertEqual({"submitter-token"}, seen["Pod"])

    def test_network(self):
        objects = rendered("production.yaml")
        coordinator = one(objects, "NetworkPolicy", "-coordinator")["spec"]
        self.assertEqual(["Ingress", "Egress"], coordinator["policyTypes"])
        self.assertEqual([7400, 7410], [rule["ports"][0]["port"] for rule in coordinator["ingress"]])
        self.assertIn({"namespaceSelector": {"matchLabels": {"conclave-client": "true"}}}, coordinator["ingress"][0]["from"])
        worker = one(objects, "NetworkPolicy", "-worker")["spec"]
        self.assertEqual([7420], [rule["ports"][0]["port"] for rule in worker["ingress"]])
        self.assertNotIn("ingress", one(objects, "NetworkPolicy", "-caller")["spec"], "nothing calls it")
        self.assertEqual([], of_kind(rendered("single.yaml"), "NetworkPolicy"))

    def test_only_pools_that_fetch_reach_the_world(self):
        objects = rendered("pools.yaml")
        ports = [p["port"] for rule in one(objects, "NetworkPolicy", "-worker")["spec"]["egress"] for p in rule["ports"]]
        self.assertEqual({53, 7400}, set(ports))
        fetch = one(objects, "NetworkPolicy", "-worker-fetch")["spec"]
        self.assertEqual(["Egress"], fetch["policyTypes"])
        self.assertEqual([443], [p["port"] for rule in fetch["egress"] for p in rule["ports"]])
        (expression,) = fetch["podSelector"]["matchExpressions"]
        self.assertEqual(["cpu", "large", "small"], expression["values"], "the pool with a volume is not among them")
        mounted = "workerDefaults.model.fetch.enabled=false,workerDefaults.model.volume.existingClaim=a,workerDefaults.model.volume.path=b"
        for words in (mounted, "networkPolicy.modelEgress=null"):
            self.assertEqual([], of_kind(render("--set", words), "NetworkPolicy", "-worker-fetch"))

    def test_the_ingress_controller_is_let_in_where_there_is_an_ingress(self):
        def callers(*words):
            return one(render(*words), "NetworkPolicy", "-coordinator")["spec"]["ingress"][0]["from"]

        own = {"podSelector": {}}
        self.assertEqual(own, callers()[-1], "nobody of another namespace")
        words = ["--set", "ingress.enabled=true,ingress.host=a"]
        self.assertEqual([own, {"namespaceSelector": {}}], callers(*words)[-2:])

    def test_reflection_is_off(self):
        for file in ("minimal.yaml", "production.yaml"):
            text = one(rendered(file), "ConfigMap", "-coordinator")["data"]["coordinator.toml"]
            self.assertIn("\nreflection = false\n", text)

    def test_tls(self):
        for o in rendered("minimal.yaml"):
            self.assertNotIn("tls", json.dumps(o).replace("tlsSecret", ""), "none, unless it is enabled")
        objects = rendered("tls.yaml")
        name = "t-conclave.default.svc.cluster.local"
        for part, config in [("coordinator", "coordinator.toml"), ("worker-cpu", "worker.toml")]:
            text = one(objects, "ConfigMap", f"-{part}")["data"][config]
            self.assertEqual(name, tomllib.loads(text)["tls"]["server_name"])
        secrets, callers = {}, 0
        for o, _, spec in pod_specs(objects):
            volume = next(v for v in spec["volumes"] if v["name"] == "tls")["secret"]
            secrets.setdefault(volume["secretName"], set()).add(o["kind"])
            container = spec["containers"][0]
            self.assertIn("/run/conclave/tls", [m["mountPath"] for m in container["volumeMounts"]])
            own = {e["name"]: e.get("value") for e in container["env"]}
            if o["kind"] != "Deployment":
                self.assertEqual(name, own["CONCLAVE_SERVER_NAME"])
                self.assertEqual("/run/conclave/tls/ca.crt", own["CONCLAVE_CA"])
            if o["kind"] in ("Job", "Pod"):
                callers += 1
                self.assertEqual(["ca.crt"], [i["key"] for i in volume["items"]], "no key for who only calls")
        self.assertEqual({"conclave-tls": {"StatefulSet", "Job", "Pod"}, "conclave-worker-tls": {"Deployment"}}, secrets)
        self.assertEqual(3, callers)

    def test_jwt(self):
        objects = rendered("production.yaml")
        jwt = tomllib.loads(one(objects, "ConfigMap", "-coordinator")["data"]["coordinator.toml"])["jwt"]
        self.assertEqual(("https://login.internal", "conclave"), (jwt["issuer"], jwt["audience"]))
        pod = one(objects, "StatefulSet")["spec"]["template"]["spec"]
        mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
        self.assertEqual(jwt["jwks_file"], f"{mounts['jwks']}/jwks.json")
        with self.assertRaisesRegex(Refused, "auth.jwt.issuer"):
            render("--set", "auth.jwt.configMap=a")

    def test_certificates_bear_the_names_that_are_dialled(self):
        objects = rendered("production.yaml")
        coordinator = one(objects, "Certificate", "-coordinator")["spec"]
        self.assertLessEqual({"t-conclave.default.svc.cluster.local", "conclave.internal", "localhost"}, set(coordinator["dnsNames"]))
        self.assertEqual({"server auth", "client auth"}, set(coordinator["usages"]))
        worker = one(objects, "Certificate", "-worker")["spec"]
        self.assertEqual(["client auth"], worker["usages"])
        for words, why in [
            ("tls.enabled=true", "existingSecret, or certManager"),
            ("tls.enabled=true,tls.existingSecret=a,tls.certManager.enabled=true", "not both"),
            ("tls.enabled=true,tls.certManager.enabled=true", "issuerRef.name"),
        ]:
            with self.assertRaisesRegex(Refused, why):
                render("--set", words)


if __name__ == "__main__":
    unittest.main()
