"""What images and compose promise: small rights, nothing written outside the volume, the same service on both devices, and a
dashboard beside it where one is wanted."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from service.cli import build_parser
from service.cli.serve import check_reach
from service.errors import SettingInvalid
from service.settings import Settings

Stage = list[tuple[str, str]]


@pytest.fixture(scope="module")
def stages(root: Path) -> dict[str, Stage]:
    """Each stage's instructions as (name, text), by the stage's name."""
    text = (root / "docker" / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found[rest.rpartition(" AS ")[2]] = [(name, rest)]
        elif name and found:
            found[list(found)[-1]].append((name, rest))
    return found


def one(stage: Stage, name: str) -> str:
    (value,) = (rest for instruction, rest in stage if instruction == name)
    return value


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load((root / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


def test_both_images_run_the_same_service(stages: dict[str, Stage]) -> None:
    def plain(device: str) -> Stage:
        kept = [item for item in stages[device] if item[0] != "LABEL"]
        return [
            (name, rest.replace(f"-{device}", "").replace(" VISION_DEVICE=cuda", "").replace(f"AS {device}", ""))
            for name, rest in kept
        ]

    assert plain("cpu") == plain("gpu")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_an_image_runs_as_a_fixed_user_without_root(stages: dict[str, Stage], device: str) -> None:
    user, group = one(stages[device], "USER").split(":")
    assert int(user) >= 10_000
    assert f"--uid {user} " in dict(stages[device])["RUN"]
    assert f"--chown={user}:{group} /data /data" in [rest for name, rest in stages[device] if name == "COPY"][-1]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_an_image_starts_without_a_shell_and_writes_only_into_its_volume(stages: dict[str, Stage], device: str) -> None:
    stage = stages[device]
    assert json.loads(one(stage, "ENTRYPOINT")) == ["vision-service"]
    assert json.loads(one(stage, "CMD"))[:3] == ["serve", "--host", "0.0.0.0"]
    assert one(stage, "EXPOSE") == "8000"
    values = dict(pair.split("=", 1) for pair in one(stage, "ENV").split())
    assert values["VISION_DATA_DIR"] == "/data"
    assert values["HOME"] == "/tmp"
    assert values["PYTHONDONTWRITEBYTECODE"] == "1"
    assert values.get("VISION_DEVICE") == ("cuda" if device == "gpu" else None)


def test_the_gpu_image_takes_cuda_from_its_base(stages: dict[str, Stage]) -> None:
    assert "[cuda" not in str(stages["venv-gpu"])
    assert "onnxruntime-gpu" in str(stages["venv-gpu"])
    assert "onnxruntime-gpu" not in str(stages["venv-cpu"])


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_compose_gives_a_service_small_rights(compose: dict[str, Any], device: str) -> None:
    service = compose["services"][device]
    assert service["profiles"] == [device]
    assert service["build"]["target"] == device
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [item.split(":")[0] for item in service["tmpfs"]] == ["/tmp"]
    assert service["volumes"] == ["models:/data"]
    assert service["ports"] == ["${BIND:-127.0.0.1}:${PORT:-8000}:8000"]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_only_compose_says_that_nobody_else_can_come_in(compose: dict[str, Any], stages: dict[str, Stage], device: str) -> None:
    """An image by itself cannot know where its port is published, so without keys it must refuse."""
    command = compose["services"][device]["command"]
    published = compose["services"][device]["ports"][0].partition(":${PORT")[0]
    assert command[command.index("--published-on") + 1] == published
    told = build_parser().parse_args([re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in command])
    assert (told.host, told.published_on, told.workers) == ("0.0.0.0", "127.0.0.1", 1)
    arguments = build_parser().parse_args(json.loads(one(stages[device], "CMD")))
    assert arguments.published_on is None
    with pytest.raises(SettingInvalid, match="--published-on"):
        check_reach(arguments.host, Settings())


def test_prometheus_can_be_given_a_key(root: Path) -> None:
    text = (root / "docker" / "prometheus.yml").read_text(encoding="utf-8")
    taken_in = re.sub(r"# (authorization:|  credentials_file:)", r"\1", text)
    (job,) = YAML(typ="safe").load(taken_in)["scrape_configs"]
    assert job["authorization"] == {"credentials_file": "/run/secrets/vision-key"}
    assert job["static_configs"]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_compose_and_image_ask_the_same_question(compose: dict[str, Any], stages: dict[str, Stage], device: str) -> None:
    options, _, command = one(stages[device], "HEALTHCHECK").partition("CMD ")
    check = compose["services"][device]["healthcheck"]
    assert check["test"] == ["CMD", *json.loads(command)]
    given = dict(re.findall(r"--([a-z-]+)=(\S+)", options))
    assert given == {name.replace("_", "-"): str(value) for name, value in check.items() if name != "test"}
    compile(check["test"][3], "healthcheck", "exec")


def test_only_the_gpu_service_asks_for_a_gpu(compose: dict[str, Any]) -> None:
    (device,) = compose["services"]["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "deploy" not in compose["services"]["cpu"]


def test_the_build_context_holds_what_the_image_copies(stages: dict[str, Stage], root: Path) -> None:
    kept = {line[1:] for line in (root / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    copied = {name for kind, rest in stages["wheel"] if kind == "COPY" for name in rest.split()[:-1]}
    assert copied == kept


def test_prometheus_finds_the_service_on_either_device(compose: dict[str, Any], root: Path) -> None:
    config = YAML(typ="safe").load((root / "docker" / "prometheus.yml").read_text(encoding="utf-8"))
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    name, _, port = target.partition(":")
    assert config["scrape_configs"][0].get("metrics_path", "/metrics") == "/metrics"
    for device in ("cpu", "gpu"):
        service = compose["services"][device]
        assert name in service["networks"]["default"]["aliases"]
        assert service["ports"][0].endswith(f":{port}")


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_observability_is_pinned_and_for_this_machine_only(compose: dict[str, Any], root: Path, name: str) -> None:
    service = compose["services"][name]
    assert service["profiles"] == ["observability"]
    assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    for volume in service["volumes"]:
        if volume.startswith("./"):
            source, _, mode = volume.split(":")
            assert (root / source).exists()
            assert mode == "ro"


def test_grafana_shows_the_dashboard_to_whoever_looks_and_has_no_password(compose: dict[str, Any], root: Path) -> None:
    service, folder = compose["services"]["grafana"], root / "docker" / "grafana"
    given = service["environment"]
    assert (given["GF_AUTH_ANONYMOUS_ENABLED"], given["GF_AUTH_ANONYMOUS_ORG_ROLE"]) == ("true", "Viewer")
    assert given["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert "password" not in str(service).lower()
    yaml, provisioning = YAML(typ="safe"), folder / "provisioning"
    (source,) = yaml.load((provisioning / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.load((provisioning / "dashboards" / "vision-service.yml").read_text(encoding="utf-8"))["providers"]
    assert provider["options"]["path"] in [volume.split(":")[1] for volume in service["volumes"]]
    assert given["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == provider["options"]["path"] + "/vision-service.json"
    dashboard = json.loads((folder / "dashboards" / "vision-service.json").read_text(encoding="utf-8"))
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
