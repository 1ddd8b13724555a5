"""cluster.yaml: amounts with units, defaults, and errors that name the file, device and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from partition.errors import PartitionError
from partition.making.plan_writer import cluster_text
from partition.placing.cluster_file import MEASURED, access_to, read_cluster
from partition.placing.quantities import (
    BITS_A_SECOND,
    BYTES,
    JOULES,
    MACS_A_SECOND,
    SECONDS,
    amount,
)

WHOLE = """
devices:
  - name: pi-1
    address: 192.168.1.11:8470
    memory: 512MiB
    compute: 2.5 GMAC/s
    energy: 40 J
    energy_per_mac: 15 pJ
    link: 2 Mbit/s
    targets: [onnx]
    threads: 4
    tls: {ca: ca.pem}
    token_file: pi.token
  - name: here
    compute: measured
settings:
  submodels: 3
  inferences: 500
  latency: 50 ms
  total_size: 180MB
  replicas: 2
"""

PI = "name: a, compute: 1e9, address: 'pi:8001'"


def written(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str) -> str:
    path = written(folder, text)
    with pytest.raises(PartitionError) as found:
        read_cluster(path)
    assert found.value.exit_code == 2
    assert str(path) in str(found.value)
    return str(found.value)


def test_a_whole_file_is_read_in_base_units(tmp_path):
    cluster = read_cluster(written(tmp_path, WHOLE))
    pi, here = cluster.devices
    assert pi.memory == 512 * 2**20
    assert pi.compute == 2.5e9
    assert (pi.energy, pi.energy_per_mac) == (40.0, pytest.approx(15e-12))
    assert pi.link == 2e6
    assert (pi.target, pi.threads, pi.is_local) == ("onnx", 4, False)
    assert here.compute == MEASURED and here.is_local
    assert (here.memory, here.energy, here.link) == (None, None, None)
    assert here.targets == ["tflite"]
    settings = cluster.settings
    assert (settings.inferences, settings.latency, settings.total_size) == (500, 0.05, 180_000_000)
    assert cluster.submodels == 3
    assert cluster.targets == ["tflite", "onnx"]


def test_there_is_one_submodel_for_each_device_unless_said(tmp_path):
    text = "devices: [{name: a, compute: 1e9}, {name: b, compute: 1e9}]"
    assert read_cluster(written(tmp_path, text)).submodels == 2


def test_the_access_has_its_files_beside_the_cluster_file(tmp_path):
    (tmp_path / "pi.token").write_text("secret\n")
    cluster = read_cluster(written(tmp_path, WHOLE))
    access = access_to(cluster.devices[0], tmp_path)
    assert access.address == "192.168.1.11:8470"
    assert access.tls_ca == tmp_path / "ca.pem"
    assert access.token == "secret"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("devices: [{name: a, compute: 1e9, memroy: 1MB}]", "device 'a': field 'devices.0.memroy'"),
        ("devices: [{name: a}]", "device 'a': field 'devices.0.compute': Field required"),
        ("devices: [{name: a, compute: fast}]", "2.5 GMAC/s, or measured, got 'fast'"),
        ("devices: [{name: a, compute: 1e9, memory: 1 Gb}]", "the unit 'Gb' is none of B,"),
        ("devices: [{name: a, compute: 1e9, memory: 0}]", "an amount above 0 like 512MiB"),
        ("devices: [{name: a, compute: 1e9, memory: true}]", "like 512MiB, got True"),
        ("devices: [{name: a, compute: -1}]", "an amount above 0"),
        ("devices: [{name: a, compute: .nan}]", "an amount above 0"),
        ("devices: [{name: a, compute: 1e9, energy: 4 J}]", "'energy' says nothing without"),
        ("devices: [{name: a, compute: 1e9, energy_per_mac: 4 pJ}]", "without 'energy'"),
        ("devices: [{name: a, compute: 1e9, address: pi}]", "HOST:PORT, got 'pi'"),
        ("devices: [{name: a, compute: 1e9, targets: [tfl]}]", "'tfl' is no target"),
        ("devices: [{name: a, compute: 1e9, targets: [onnx, onnx]}]", "there twice"),
        ("devices: [{name: a, compute: 1e9, targets: []}]", "field 'devices.0.targets'"),
        ("devices: [{name: ../a, compute: 1e9}]", "field 'devices.0.name'"),
        ("devices: [{name: a, compute: 1e9, tls: true}]", "for a device with an address"),
        ("devices: [{name: a, compute: 1}, {name: a, compute: 1}]", "two devices have the name"),
        (
            "devices: [{name: a, compute: 1, address: 'h:1'}, "
            "{name: b, compute: 1, address: 'h:1'}]",
            "two devices have the address 'h:1'",
        ),
        (f"devices: [{{{PI}, ssh: -oProxyCommand=id}}]", "as USER@HOST, or a name of"),
        (f"devices: [{{{PI}, ssh: 'pi@-oProxyCommand=id'}}]", "device 'a': field 'devices.0.ssh."),
        (f"devices: [{{{PI}, ssh: 'pi@host:22'}}]", "a port has a field of its own"),
        (f"devices: [{{{PI}, ssh: 'pi@host; id'}}]", "got 'pi@host; id'"),
        (f"devices: [{{{PI}, ssh: ''}}]", "as USER@HOST"),
        (f"devices: [{{{PI}, ssh: 7}}]", "field 'devices.0.ssh'"),
        (f"devices: [{{{PI}, ssh: {{port: 22}}}}]", "field 'devices.0.ssh.host': Field required"),
        (f"devices: [{{{PI}, ssh: {{host: pi, prot: 22}}}}]", "field 'devices.0.ssh.prot'"),
        (f"devices: [{{{PI}, ssh: {{host: pi, port: 0}}}}]", "field 'devices.0.ssh.port'"),
        (
            f"devices: [{{{PI}, ssh: {{host: pi, command: --x}}}}]",
            "a path on the device, got '--x'",
        ),
        (f'devices: [{{{PI}, ssh: {{host: pi, store: "a\\nb"}}}}]', "a path on the device"),
        (f"devices: [{{{PI}, ssh: {{host: pi, options: [--store, x]}}}}]", "by the field 'store'"),
        (
            f"devices: [{{{PI}, ssh: {{host: pi, options: [--token-file=x]}}}}]",
            "'token_file', which",
        ),
        (f'devices: [{{{PI}, ssh: {{host: pi, options: ["a\\0"]}}}}]', "words for `edgevit agent`"),
        ("devices: [{name: a, compute: 1, ssh: pi}]", "'ssh' needs an 'address' as HOST:PORT"),
        (
            "devices: [{name: a, compute: 1, ssh: pi, address: 'unix:/x'}]",
            "'ssh' needs an 'address'",
        ),
        ("devices: []", "field 'devices'"),
        ("devices: [{name: a, compute: 1}]\nsettings: {latency: 5 min}", "'min' is none of s, ms"),
        ("devices: [{name: a, compute: 1}]\nsettings: {submodels: 0}", "'settings.submodels'"),
        ("devices: [{name: a, compute: 1}]\nsetings: {}", "field 'setings'"),
        ("- name: a", "expected a mapping with the field 'devices'"),
        ("devices: [", "is not YAML"),
        ("devices: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, said):
    assert said in refusal(tmp_path, text)


def test_a_login_is_a_host_or_all_that_there_is_to_say(tmp_path):
    short, long, v6 = read_cluster(
        written(
            tmp_path,
            f"devices: [{{{PI}, ssh: pi@raspberrypi.local}}, {{name: b, compute: 1, address: 'b:1',"
            " ssh: {host: my-alias, command: ~/venv/bin/edgevit, store: /data/edgevit, port: 2222,"
            " identity: keys/pi, options: [--queue, 8, --insecure]}},"
            " {name: c, compute: 1, address: 'c:1', ssh: 'pi@fe80::1'}]",
        )
    ).devices
    assert short.ssh is not None and long.ssh is not None and v6.ssh is not None
    assert (short.ssh.host, short.ssh.command) == ("pi@raspberrypi.local", "edgevit")
    assert (short.ssh.store, short.ssh.port) == (".local/share/edgevit/cluster", None)
    assert long.ssh.command == "~/venv/bin/edgevit" and long.ssh.port == 2222
    assert long.ssh.options == ["--queue", "8", "--insecure"]
    assert long.beside(tmp_path).ssh.identity == tmp_path / "keys" / "pi"
    assert not short.is_local and v6.ssh.host == "pi@fe80::1"


def test_the_plan_keeps_the_login_with_a_whole_path_to_its_key(tmp_path):
    given = written(tmp_path, f"devices: [{{{PI}, ssh: {{host: pi, identity: key, port: 22}}}}]")
    (tmp_path / "plan").mkdir()
    kept = written(tmp_path / "plan", cluster_text(read_cluster(given), given))
    (device,) = read_cluster(kept).devices
    assert device.ssh is not None and device.ssh.identity == tmp_path / "key"
    assert (device.ssh.host, device.ssh.port, device.ssh.command) == ("pi", 22, "edgevit")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PartitionError, match=r"cannot read .*cluster\.yaml: No such file"):
        read_cluster(tmp_path / "cluster.yaml")


@pytest.mark.parametrize(
    ("written_as", "units", "value"),
    [
        ("512MiB", BYTES, 2**29),
        ("1.5 GB", BYTES, 1.5e9),
        ("10", BYTES, 10),
        (7, BYTES, 7),
        ("2 Mbit/s", BITS_A_SECOND, 2e6),
        ("2Mbps", BITS_A_SECOND, 2e6),
        ("1 MB/s", BITS_A_SECOND, 8e6),
        ("2.5e9", MACS_A_SECOND, 2.5e9),
        ("3 mJ", JOULES, 3e-3),
        ("3 MJ", JOULES, 3e6),
        ("1 Wh", JOULES, 3600),
        ("250 us", SECONDS, 2.5e-4),
        (".5 s", SECONDS, 0.5),
    ],
)
def test_amounts(written_as, units, value):
    assert amount(written_as, units, "1") == pytest.approx(value, rel=1e-12)
