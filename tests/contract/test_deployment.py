"""Images, compose file and Kubernetes manifests agree with the server's settings, and with each other."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template
from typing import Any

import pytest
import typer
import yaml

from offramp_client.cli import app
from offramp_model.bundle import BundleStore
from offramp_server.config import DEFAULT_MODEL, ConfigError, Settings, default_store, load_settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
KUBERNETES = DOCKER / "kubernetes"
PORTS = {Settings.model_fields["grpc_port"].default, Settings.model_fields["http_port"].default}
KUBERNETES_RELEASES = ("1.30", "1.35")


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Each instruction and its text, continued lines joined."""
    lines = (DOCKER / dockerfile).read_text().replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip() and not line.startswith("#")]  # type: ignore[misc]


def environment(dockerfile: str) -> dict[str, str]:
    """What the image sets where no build argument is given."""
    found = instructions(dockerfile)
    defaults = dict(text.split("=", 1) for name, text in found if name == "ARG" and "=" in text)
    pairs = (pair.split("=", 1) for name, text in found if name == "ENV" for pair in shlex.split(text))
    return {name: Template(value).safe_substitute(defaults) for name, value in pairs}


def manifests() -> list[dict[str, Any]]:
    """The kustomization's resources."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    return [each for name in kustomization["resources"] for each in yaml.safe_load_all((KUBERNETES / name).read_text())]


def manifest(kind: str) -> dict[str, Any]:
    (found,) = (each for each in manifests() if each["kind"] == kind)
    return found


@pytest.fixture
def compose() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    return services


# --- images -----------------------------------------------------------------------------------------------------------


def test_the_image_sets_what_the_server_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = {name: value for name, value in environment("server.Dockerfile").items() if name.startswith("OFFRAMP_")}
    assert {name.removeprefix("OFFRAMP_").lower() for name in ours} <= set(Settings.model_fields)
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="--insecure"):  # the image does not ask for it by itself
        load_settings([])
    settings = load_settings(["--insecure"])
    assert (settings.host, settings.store, settings.device) == ("0.0.0.0", Path("/models"), "cpu")


def test_the_image_carries_the_bundles_that_it_serves() -> None:
    copies = [text.split() for name, text in instructions("server.Dockerfile") if name == "COPY"]
    assert ["model_store/bundles", environment("server.Dockerfile")["OFFRAMP_STORE"]] in copies


@pytest.mark.parametrize("dockerfile", ["server.Dockerfile", "training.Dockerfile"])
def test_what_a_build_copies_is_there_and_not_ignored(dockerfile: str) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, text in instructions(dockerfile):
        if name == "COPY" and "--from" not in text:
            for source in text.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source.split("/")[0] in allowed, source


@pytest.mark.parametrize("dockerfile", ["server.Dockerfile", "training.Dockerfile"])
def test_an_image_runs_as_a_user_of_its_own(dockerfile: str) -> None:
    users = [text for name, text in instructions(dockerfile) if name == "USER"]
    assert users == ["10001:10001"]
    assert any(name == "RUN" and "--uid 10001" in text and "--gid 10001" in text for name, text in instructions(dockerfile))


def test_the_image_names_the_ports_and_the_health_check() -> None:
    said = dict(instructions("server.Dockerfile"))
    assert {int(port) for port in said["EXPOSE"].split()} == PORTS
    command = re.search(r"CMD \[(.*)\]", said["HEALTHCHECK"])
    assert command is not None
    assert [word.strip(' "') for word in command[1].split(",")] == ["offramp", "health"]


def test_hadolint_is_content() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    result = subprocess.run([hadolint, *sorted(DOCKER.glob("*.Dockerfile"))], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


# --- compose ----------------------------------------------------------------------------------------------------------


def test_compose_mounts_and_builds_what_is_there(compose: dict[str, Any]) -> None:
    assert (DOCKER / compose["server"]["build"]["context"] / compose["server"]["build"]["dockerfile"]).exists()
    for service in compose.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DOCKER / source).is_dir(), source


def test_compose_gives_grafana_and_prometheus_what_they_look_for(compose: dict[str, Any]) -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "offramp.yaml").read_text())["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    folder = provider["options"]["path"]
    assert f"./grafana/dashboards:{folder}:ro" in compose["grafana"]["volumes"]
    assert compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{folder}/offramp.json"
    assert source["url"] == "http://prometheus:9090"
    assert "127.0.0.1:9090:9090" in compose["prometheus"]["ports"]
    assert {int(port.split(":")[-1]) for port in compose["server"]["ports"]} == PORTS


def test_compose_asks_to_speak_in_the_clear_and_listens_on_this_machine_alone(compose: dict[str, Any]) -> None:
    assert load_settings(["--host", "0.0.0.0", *compose["server"]["command"]]).insecure


def test_the_demo_begins_at_the_embedded_bundles_default(compose: dict[str, Any]) -> None:
    """Frames under any other control don't count for the drift score."""
    command = compose["demo"]["entrypoint"]
    schedule = command[command.index("--lambda-schedule") + 1]
    default = BundleStore(default_store()).open(DEFAULT_MODEL).manifest.default_control
    assert float(schedule.split(",")[0]) == default.lambda_
    assert all(port.startswith("127.0.0.1:") for service in compose.values() for port in service.get("ports", ()))


def test_the_demo_client_has_a_command_that_there_is(compose: dict[str, Any]) -> None:
    program, name, *arguments = compose["demo"]["entrypoint"]
    assert program == "offramp"
    command = typer.main.get_command(app)
    stream = command.commands[name]  # type: ignore[attr-defined]
    parameters = stream.make_context(name, arguments).params
    assert (parameters["source"], parameters["fps"], parameters["every"]) == ("demo", 20.0, 300)
    assert compose["demo"]["environment"]["OFFRAMP_ADDRESS"] == f"server:{Settings.model_fields['grpc_port'].default}"


def test_an_engine_waits_longer_than_the_server_drains(compose: dict[str, Any]) -> None:
    assert float(compose["server"]["stop_grace_period"].removesuffix("s")) > Settings.model_fields["drain_timeout_s"].default


# --- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", KUBERNETES_RELEASES)
@pytest.mark.parametrize("kind", [each["kind"] for each in manifests()])
def test_a_manifest_is_what_kubernetes_published_its_schema_for(kind: str, release: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    assert validate.validate(manifest(kind), release, strict=True) == release


def test_a_misspelt_manifest_would_not_pass() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    wrong = manifest("Service")
    wrong["spec"]["clusterIp"] = wrong["spec"].pop("clusterIP")
    with pytest.raises(validate.ValidationError):
        validate.validate(wrong, KUBERNETES_RELEASES[-1], strict=True)


def test_pods_get_arguments_that_the_server_takes_and_time_to_drain() -> None:
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    settings = load_settings(["--host", "0.0.0.0", *server["args"]])
    (pause,) = (int(word) for word in server["lifecycle"]["preStop"]["exec"]["command"] if word.isdecimal())
    assert pod["terminationGracePeriodSeconds"] > pause + settings.drain_timeout_s
    assert str(settings.torch_threads) == server["resources"]["limits"]["cpu"]
    assert settings.max_connection_age_s > 0


def test_pods_probes_and_services_name_the_servers_ports() -> None:
    pod = manifest("Deployment")["spec"]["template"]
    (server,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert set(ports.values()) == PORTS
    assert server["startupProbe"]["grpc"]["port"] == server["readinessProbe"]["grpc"]["port"] == ports["grpc"]
    assert server["livenessProbe"]["httpGet"]["port"] == "http"
    assert int(pod["metadata"]["annotations"]["prometheus.io/port"]) == ports["http"]
    service = manifest("Service")["spec"]
    assert service["clusterIP"] == "None"
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == ports


def test_pods_may_do_no_more_than_the_image_needs() -> None:
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == "10001:10001"
    assert server["securityContext"]["readOnlyRootFilesystem"]
    assert not server["securityContext"]["allowPrivilegeEscalation"]
    assert server["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_selectors_find_the_pods_and_the_autoscaler_the_deployment() -> None:
    labels = manifest("Deployment")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        manifest("Deployment")["spec"]["selector"]["matchLabels"],
        manifest("Service")["spec"]["selector"],
        manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    scaler = manifest("HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == manifest("Deployment")["metadata"]["name"]
    (metric,) = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] == "offramp_frames_in_flight"
    assert int(metric["pods"]["target"]["averageValue"]) < Settings.model_fields["max_in_flight"].default
    least = manifest("PodDisruptionBudget")["spec"]["minAvailable"]
    assert manifest("Deployment")["spec"]["replicas"] >= scaler["minReplicas"] > least
