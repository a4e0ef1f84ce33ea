"""docker-compose, systemd, the Dockerfile: what can be told of them without running them."""

import pathlib
import re
import shutil
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
SETTINGS = set(re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs/configuration.md").read_text(), re.M))


def flags_of(command: list[str]) -> set[str]:
    return {word.split("=")[0].removeprefix("--") for word in command if word.startswith("--")}


def test_compose_names_files_and_settings_that_exist():
    folder = DEPLOY / "compose"
    compose = yaml.safe_load((folder / "docker-compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"weir", "prometheus", "grafana"}
    weir = services["weir"]
    assert flags_of(weir["command"]) <= SETTINGS
    assert (folder / weir["build"]["context"] / weir["build"]["dockerfile"]).exists()
    assert weir["read_only"] and weir["cap_drop"] == ["ALL"]
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.rsplit(":", 2)[0] if volume.endswith(":ro") else volume.rsplit(":", 1)[0]
            if source.startswith("."):
                assert (folder / source).exists(), source
            elif not source.startswith("$"):
                assert source in compose["volumes"]
    drain = int(re.search(r"--drain-time=(\d+)s", " ".join(weir["command"])).group(1))
    assert int(weir["stop_grace_period"].removesuffix("s")) > drain


def test_compose_provisions_grafana_and_prometheus_with_what_they_look_for():
    source = yaml.safe_load((DEPLOY / "compose/grafana/datasources/prometheus.yaml").read_text())["datasources"][0]
    assert source["type"] == "prometheus" and source["isDefault"]
    compose = yaml.safe_load((DEPLOY / "compose/docker-compose.yaml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in compose
    provider = yaml.safe_load((DEPLOY / "compose/grafana/dashboards/weir.yaml").read_text())["providers"][0]
    mounted = [v for v in compose["grafana"]["volumes"] if f":{provider['options']['path']}" in v]
    assert mounted == [f"../grafana:{provider['options']['path']}:ro"]
    home = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DEPLOY / "grafana" / pathlib.PurePath(home).name).exists()
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"][0]
    port = scraped["static_configs"][0]["targets"][0].removeprefix("weir:")
    assert f"--metrics=0.0.0.0:{port}" in compose["weir"]["command"]


def test_the_image_starts_with_settings_that_exist():
    text = (DEPLOY / "docker/Dockerfile").read_text()
    command = re.search(r"^CMD (\[.*\])$", text, re.M).group(1)
    assert flags_of(yaml.safe_load(command)) <= SETTINGS
    assert re.search(r"^USER 65532:65532$", text, re.M)
    # No base image but the build's: what is not copied in is not there.
    assert re.findall(r"^FROM (\S+)", text, re.M) == ["${BUILD_BASE}", "scratch"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_the_systemd_unit(tmp_path):
    text = (DEPLOY / "systemd/weir.service").read_text()
    # The binary that it starts is not installed here: any other stands in.
    for name, also in (("weir", ""), ("weir-gpu", (DEPLOY / "systemd/weir-gpu.conf").read_text())):
        unit = tmp_path / f"{name}.service"
        unit.write_text((text + also).replace("/opt/weir/bin/weir serve", "/bin/true serve"))
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr.strip(), done.stderr
        exposed = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=30", str(unit)],
                                 capture_output=True, text=True)
        assert exposed.returncode == 0, exposed.stdout[-500:]
    stop = int(re.search(r"^TimeoutStopSec=(\d+)s$", text, re.M).group(1))
    default = re.search(r"^\| `drain-time` \| duration \| `(\d+)s` \|", (ROOT / "docs/configuration.md").read_text(), re.M)
    assert stop > int(default.group(1))
