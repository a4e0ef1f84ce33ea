"""The Helm chart and the plain manifests made from it."""

import http.client
import json
import os
import pathlib
import re
import shutil
import ssl
import subprocess

import kubernetes_validate
import pytest
import yaml

import live

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "deploy/helm/weir"
MANIFESTS = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
VALUES = [None, *sorted((CHART / "ci").glob("*-values.yaml"))]
VERSIONS = ["1.30.0", "1.37.0"]  # the oldest that the chart takes, the newest whose schemas are there
# Resources of the Prometheus operator: no schema of Kubernetes' own.
FOREIGN = {"ServiceMonitor", "PrometheusRule"}


def provide_helm() -> tuple[str, str]:
    """(path, "") or ("", why there is none)."""
    folder = pathlib.Path(os.environ.get("WEIR_BUILD_DIR", ROOT / "build")) / "tools"
    done = subprocess.run([str(ROOT / "tools/provide_helm.sh"), str(folder)], capture_output=True, text=True)
    if done.returncode == 77:
        return "", done.stderr.strip()
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), ""


@pytest.fixture(scope="session")
def helm():
    path, missing = provide_helm()
    if missing:
        pytest.skip(missing)

    def run(*arguments: str, ok: bool = True) -> str:
        done = subprocess.run([path, *arguments], capture_output=True, text=True)
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout if ok else done.stdout + done.stderr

    run.path = path
    return run


@pytest.fixture(scope="session")
def rendered(helm):
    cache = {}

    def render(values: pathlib.Path | None, *flags: str) -> list[dict]:
        key = (values, flags)
        if key not in cache:
            text = helm("template", "weir", str(CHART), "--namespace", "serving", "--kube-version", "1.31.0",
                        *(["-f", str(values)] if values else []), *flags)
            cache[key] = [d for d in yaml.safe_load_all(text) if d]
        return cache[key]

    return render


def name_of(values) -> str:
    return values.name.removesuffix("-values.yaml") if values else "defaults"


def only(documents: list[dict], kind: str, name: str = "weir") -> dict:
    found = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} x {kind} {name}"
    return found[0]


def workloads(documents: list[dict]) -> list[dict]:
    return [d for d in documents if d["kind"] in ("Deployment", "StatefulSet")]


def check_schemas(documents: list[dict]) -> None:
    for document in documents:
        if document["kind"] not in FOREIGN:
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)


def check_together(documents: list[dict]) -> None:
    """What no schema tells: names that refer to each other, and what every pod must have."""
    pods = [d["spec"]["template"] for d in workloads(documents)]
    assert pods
    for workload, pod in zip(workloads(documents), pods):
        assert workload["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        spec = pod["spec"]
        security = spec["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] > 0
        assert security["seccompProfile"]["type"] == "RuntimeDefault"
        volumes = {v["name"] for v in spec.get("volumes", [])}
        volumes |= {c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", [])}
        for container in spec["containers"] + spec.get("initContainers", []):
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"]
            assert own["capabilities"]["drop"] == ["ALL"]
            assert {m["name"] for m in container.get("volumeMounts", [])} <= volumes
        main = spec["containers"][0]
        sleep = main["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = drain_seconds(documents, main)
        assert spec["terminationGracePeriodSeconds"] >= sleep + drain + 10
        assert main["readinessProbe"]
    for document in documents:
        selector = document.get("spec", {}).get("selector")
        if document["kind"] == "PodDisruptionBudget":
            selector = selector["matchLabels"]
        elif document["kind"] == "NetworkPolicy":
            selector = document["spec"]["podSelector"]["matchLabels"]
        elif document["kind"] != "Service":
            continue
        chosen = [p for p in pods if selector.items() <= p["metadata"]["labels"].items()]
        assert len(chosen) == 1, f"{document['kind']} {document['metadata']['name']} selects {len(chosen)} kinds of pod"
        names = {p["name"] for p in chosen[0]["spec"]["containers"][0]["ports"]}
        for port in document["spec"].get("ports", []):
            assert port["targetPort"] in names, f"{document['metadata']['name']}: no port {port['targetPort']}"


def help_of(binary: str, command: str) -> str:
    """Empty: a build without this command."""
    told = subprocess.run([binary, command, "--help"], capture_output=True, text=True, check=True).stdout
    return told if re.search(rf"^Usage: \S+ {command} ", told, re.M) else ""


def assert_known_flags(command: list[str]) -> None:
    """Every flag of a `weir` command is one that this build has."""
    binary = pathlib.Path(os.environ.get("WEIR_BUILD_DIR", ROOT / "build")) / "weir"
    told = help_of(str(binary), command[0])
    if not told:
        return
    for word in command[1:]:
        flag = word.split("=")[0]
        assert re.search(rf"(^|[\s,]){flag}[\s,]", told, re.M), f"weir {command[0]} has no {flag}"


def drain_seconds(documents: list[dict], container: dict) -> int:
    if container["args"][0] == "gateway":
        return int(re.search(r"--drain-time=(\d+)s", " ".join(container["args"])).group(1))
    return int(re.fullmatch(r"(\d+)s", weir_yaml(documents)["drain-time"]).group(1))


def weir_yaml(documents: list[dict]) -> dict:
    return yaml.safe_load(only(documents, "ConfigMap")["data"]["weir.yaml"])


@pytest.mark.parametrize("values", VALUES, ids=name_of)
def test_lint(helm, values):
    helm("lint", "--strict", "--quiet", "--kube-version", "1.31.0", str(CHART), *(["-f", str(values)] if values else []))


@pytest.mark.parametrize("values", VALUES, ids=name_of)
def test_rendered_manifests_are_valid_and_fit_together(rendered, values):
    documents = rendered(values)
    check_schemas(documents)
    check_together(documents)


@pytest.mark.parametrize("values", VALUES, ids=name_of)
def test_the_configuration_has_only_settings_that_exist(rendered, values):
    known = set(re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs/configuration.md").read_text(), re.M))
    config = weir_yaml(rendered(values))
    assert set(config) <= known, set(config) - known


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_plain_manifests_are_valid(file):
    documents = [d for d in yaml.safe_load_all(file.read_text()) if d]
    check_schemas(documents)
    check_together(documents)


def test_plain_manifests_are_current(helm, tmp_path):
    subprocess.run([str(ROOT / "deploy/kubernetes/generate.sh"), str(tmp_path)], check=True,
                   env={**os.environ, "HELM": helm.path})
    assert [f.name for f in sorted(tmp_path.iterdir())] == [f.name for f in MANIFESTS]
    for file in MANIFESTS:
        assert file.read_text() == (tmp_path / file.name).read_text(), f"{file.name}: run deploy/kubernetes/generate.sh"


@pytest.mark.parametrize("flags, sentence", [
    (["config.grpc=0.0.0.0:1"], "config.grpc is set by the chart"),
    (["config.Slots=1"], "config"),
    (["kind=DaemonSet"], "kind"),
    (["replica=3"], "replica"),
    (["model.source=pvc"], "model.pvc.claimName"),
    (["model.source=download"], "model.download.image"),
    (["model.path=models/x"], "model.path"),
    (["model.source=download,model.download.image=x,model.download.persistent=true"], "needs kind StatefulSet"),
    (["tls.grpc.existingSecret=x"], "speaks no TLS"),
    (["tls.http.existingSecret=x,tls.http.clientCA=true,probes.type=http"], "no client certificate"),
    (["http.enabled=false,probes.type=http"], "http.enabled"),
    (["gateway.backends={nowhere}"], "backends"),
    (["gateway.enabled=true", "apiKeys.existingSecret=x"], "ask the gateway for a key too"),
], ids=lambda value: value[0] if isinstance(value, list) else "")
def test_values_that_make_no_sense_are_refused(helm, flags, sentence):
    said = helm("template", "weir", str(CHART), "--kube-version", "1.31.0", *[f for v in flags for f in ("--set", v)],
                ok=False)
    assert sentence in said, said


def test_probes_of_each_type(rendered):
    def probe(*flags):
        pod = only(rendered(None, *flags), "Deployment")["spec"]["template"]["spec"]
        return {name: pod["containers"][0][name] for name in ("startupProbe", "readinessProbe", "livenessProbe")}

    assert probe()["livenessProbe"]["grpc"] == {"port": 50051}
    http = probe("--set", "probes.type=http")
    assert http["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert http["livenessProbe"]["httpGet"]["path"] == "/health"
    assert http["livenessProbe"]["httpGet"]["scheme"] == "HTTP"
    tls = probe("--set", "probes.type=http,tls.http.existingSecret=x")
    assert tls["livenessProbe"]["httpGet"]["scheme"] == "HTTPS"
    closed = probe("--set", "probes.type=exec,tls.grpc.existingSecret=x,tls.grpc.clientCA=true,tls.grpc.name=a.b")
    command = closed["livenessProbe"]["exec"]["command"]
    assert command[:2] == ["/opt/weir/bin/weir", "health"] and "--tls-name=a.b" in command
    assert_known_flags(command[1:])


def make_certificate(folder: pathlib.Path, name: str) -> None:
    """tls.crt and tls.key for `name`, and ca.crt: it signs itself."""
    folder.mkdir(parents=True)
    names = f"subjectAltName=DNS:{name},DNS:localhost"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-days", "2", "-subj", f"/CN={name}", "-addext", names,
                    "-keyout", f"{folder}/tls.key", "-out", f"{folder}/tls.crt"], check=True, capture_output=True)
    shutil.copyfile(folder / "tls.crt", folder / "ca.crt")


def check_gateway(binary: str, deployment: dict, backend: str, folder: pathlib.Path) -> None:
    """The gateway as the chart starts it, before a server with TLS, client certificates and keys: an answer comes."""
    alice, own = json.loads((folder / "secrets.json").read_text())
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    arguments = [a.replace("/etc/weir/", f"{folder}/").replace("$(WEIR_BACKEND_API_KEY)", own) for a in arguments]
    replaced = {"--backend": f"localhost:{backend.rsplit(':', 1)[1]}", "--http": "127.0.0.1:0"}
    arguments = [f"{name}={replaced[name]}" if (name := a.split("=")[0]) in replaced else a for a in arguments]
    with open(folder / "gateway.log", "w") as log:
        gateway = subprocess.Popen([binary, *arguments, f"--ready-file={folder}/gateway.json"], stdout=log, stderr=log)
    try:
        address = live.wait_for("weir gateway", lambda: json.loads((folder / "gateway.json").read_text()), gateway)["http"]
        context = ssl.create_default_context(cafile=str(folder / "tls-http/ca.crt"))
        context.check_hostname = False

        def get(path: str, **headers) -> int:
            connection = http.client.HTTPSConnection(address, timeout=10, context=context)
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status

        live.wait_for("a ready gateway", lambda: get("/ready") == 200, gateway)
        assert get("/v1/models") == 401
        assert get("/v1/models", Authorization=f"Bearer {alice}") == 200
    finally:
        gateway.terminate()
        assert gateway.wait(30) == 0, (folder / "gateway.log").read_text()


@pytest.mark.parametrize("values", ["defaults", "closed"])
def test_a_server_takes_the_configuration_and_answers_the_probe(rendered, tmp_path, values):
    """The rendered weir.yaml with the files of its Secrets, and the probe's own command."""
    documents = rendered(None if values == "defaults" else CHART / "ci/closed-values.yaml")
    binary = str(pathlib.Path(os.environ.get("WEIR_BUILD_DIR", ROOT / "build")) / "weir")
    config = weir_yaml(documents)
    config |= {"model": str(ROOT / "models/weir-tiny"), "ready-file": str(tmp_path / "ready.json")}
    for door in ("grpc", "http", "metrics"):
        config[door] = "127.0.0.1:0"
    if values == "closed":
        for door in ("grpc", "http"):
            make_certificate(tmp_path / f"tls-{door}", "weir.serving.svc")
        (tmp_path / "keys").mkdir()
        keys = [subprocess.run([binary, "keys", "add", str(tmp_path / "keys/keys"), name], check=True,
                               capture_output=True, text=True).stdout.strip() for name in ("alice", "gateway")]
        (tmp_path / "secrets.json").write_text(json.dumps(keys))
    text = yaml.safe_dump(config).replace("/etc/weir/", f"{tmp_path}/")
    (tmp_path / "weir.yaml").write_text(text)
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen([binary, "serve", "--config", str(tmp_path / "weir.yaml")], stdout=log, stderr=log)
    try:
        ready = live.wait_for("weir serve", lambda: json.loads((tmp_path / "ready.json").read_text()), server)
        container = only(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]
        probe = container["readinessProbe"].get("exec", {"command": ["", "health", "--server=localhost:50051"]})["command"]
        command = [binary, *(w.replace("localhost:50051", ready["grpc"].replace("127.0.0.1", "localhost"))
                             .replace("/etc/weir/", f"{tmp_path}/") for w in probe[1:])]
        asked = subprocess.run(command, capture_output=True, text=True)
        assert (asked.returncode, asked.stdout) == (0, "SERVING\n"), asked.stderr
        if values == "closed":
            # Without the certificates it is closed; the chart's gateway has them, and a key.
            assert subprocess.run(command[:3], capture_output=True).returncode == 1
            if help_of(binary, "gateway"):
                check_gateway(binary, only(documents, "Deployment", "weir-gateway"), ready["grpc"], tmp_path)
    finally:
        server.terminate()
        assert server.wait(30) == 0, (tmp_path / "log").read_text()


def test_the_gateway_knows_every_server(rendered):
    documents = rendered(CHART / "ci/gpu-statefulset-values.yaml")
    arguments = only(documents, "Deployment", "weir-gateway")["spec"]["template"]["spec"]["containers"][0]["args"]
    backends = next(a for a in arguments if a.startswith("--backend=")).removeprefix("--backend=").split(",")
    # As many as the autoscaler may start.
    assert backends == [f"weir-{i}.weir-headless:50051" for i in range(4)]
    assert only(documents, "StatefulSet")["spec"]["serviceName"] == "weir-headless"
    assert only(documents, "Service", "weir-headless")["spec"]["publishNotReadyAddresses"] is True
    assert_known_flags(arguments)
    door = only(documents, "Service", "weir-http")["spec"]["selector"]
    assert door["app.kubernetes.io/component"] == "gateway"


def test_monitors_find_the_ports_of_servers_and_gateways(rendered):
    documents = rendered(CHART / "ci/gpu-statefulset-values.yaml")
    for monitor, service in (("weir", "weir"), ("weir-gateway", "weir-http")):
        spec = only(documents, "ServiceMonitor", monitor)["spec"]
        found = only(documents, "Service", service)
        assert spec["selector"]["matchLabels"].items() <= found["metadata"]["labels"].items()
        assert spec["endpoints"][0]["port"] in {port["name"] for port in found["spec"]["ports"]}


def test_a_closed_gateway_has_what_it_needs(rendered):
    documents = rendered(CHART / "ci/closed-values.yaml")
    pod = only(documents, "Deployment", "weir-gateway")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert_known_flags(container["args"])
    # Every file that is named lies in a volume that is mounted, every variable is there.
    mounts = {m["mountPath"] for m in container["volumeMounts"]}
    for argument in container["args"][1:]:
        value = argument.split("=", 1)[1]
        if value.startswith("/"):
            assert str(pathlib.PurePath(value).parent) in mounts, argument
        if value.startswith("$("):
            assert value[2:-1] in {e["name"] for e in container["env"]}


def test_gpu_pods_ask_for_gpus(rendered):
    stateful = only(rendered(CHART / "ci/gpu-statefulset-values.yaml"), "StatefulSet")
    pod = stateful["spec"]["template"]["spec"]
    main = pod["containers"][0]
    assert main["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": 1}
    assert main["image"].endswith("-cuda")
    assert pod["runtimeClassName"] == "nvidia"
    assert {t["key"] for t in pod["tolerations"]} == {"nvidia.com/gpu", "dedicated"}
    assert weir_yaml(rendered(CHART / "ci/gpu-statefulset-values.yaml"))["device"] == "cuda"
    assert "replicas" not in stateful["spec"]  # the autoscaler's
    assert stateful["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] == "100Gi"


def test_the_autoscaler_reads_numbers_that_the_adapter_offers(rendered):
    scaler = only(rendered(CHART / "ci/gpu-statefulset-values.yaml"), "HorizontalPodAutoscaler")
    adapter = (ROOT / "deploy/prometheus/adapter-values.yaml").read_text()
    metrics = (ROOT / "docs/metrics.md").read_text()
    for metric in scaler["spec"]["metrics"]:
        name = metric["pods"]["metric"]["name"]
        assert name in adapter and f"`{name}`" in metrics
    assert scaler["spec"]["scaleTargetRef"]["kind"] == "StatefulSet"


def test_rules_and_dashboard_in_the_chart_are_those_that_are_tested(rendered):
    documents = rendered(CHART / "ci/deployment-values.yaml")
    groups = [group for name in ("rules", "alerts")
              for group in yaml.safe_load((ROOT / f"deploy/prometheus/{name}.yaml").read_text())["groups"]]
    assert only(documents, "PrometheusRule")["spec"]["groups"] == groups
    board = only(documents, "ConfigMap", "weir-dashboard")["data"]["weir.json"]
    assert yaml.safe_load(board) == yaml.safe_load((ROOT / "deploy/grafana/weir.json").read_text())
    monitor = only(documents, "ServiceMonitor")
    labels = only(documents, "Service")["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
