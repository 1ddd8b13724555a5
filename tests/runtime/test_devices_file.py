"""devices.yaml: what it may hold, where it is looked for, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.devices.file import AddressOptions, devices_file, find_devices, read_devices
from runtime.errors import RuntimeFault

FULL = """
- name: pi
  address: raspberrypi.local:8001
  tls: {ca: pems/ca.pem, cert: pems/me.pem, key: pems/me.key, server_name: pi.test}
  token_file: pi.token
- name: jetson
  address: "[fe80::1]:8001"
  tls: true
- name: plain
  address: 10.0.0.7:8001
"""


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder and a home without devices.yaml."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EDGEVIT_DEVICES", raising=False)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def written(text: str, folder: Path = Path()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "devices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_full_file_with_paths_beside_it(tmp_path):
    pi, jetson, plain = read_devices(written(FULL, tmp_path / "lab"))
    assert [d.name for d in (pi, jetson, plain)] == ["pi", "jetson", "plain"]
    assert pi.how.address == "raspberrypi.local:8001" and pi.how.server_name == "pi.test"
    assert pi.how.tls_ca == tmp_path / "lab" / "pems" / "ca.pem"
    assert pi.how.tls_cert == tmp_path / "lab" / "pems" / "me.pem"
    assert pi.how.tls_key == tmp_path / "lab" / "pems" / "me.key"
    assert jetson.how.secure and jetson.how.tls_ca is None
    assert not plain.how.secure and plain.access().token is None
    (tmp_path / "lab" / "pi.token").write_text(" s3cret\n")
    assert pi.access().token == "s3cret"


def test_the_example():
    example = Path(__file__).parents[2] / "examples" / "agent" / "devices.yaml"
    assert "pi" in [device.name for device in read_devices(example)]


def test_a_token_file_that_is_gone_or_empty_is_one_devices_trouble(tmp_path):
    pi = read_devices(written(FULL, tmp_path / "lab"))[0]
    with pytest.raises(RuntimeFault, match=r"cannot read the token file .*lab/pi\.token"):
        pi.access()
    (tmp_path / "lab" / "pi.token").write_text("\n")
    with pytest.raises(RuntimeFault, match=r"the token file .*pi\.token is empty"):
        pi.access()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a list of devices, each with a name and an address"),
        ("name: pi", "expected a list of devices"),
        ("- [", "is not YAML: "),
        ("- pi", "field '0': "),
        ("- {name: pi}", "pi: field '0.address': Field required"),
        ("- {address: 'pi:1'}", "field '0.name': Field required"),
        ("- {name: pi, address: 'pi:1', adress: x}", "pi: field '0.adress': Extra inputs"),
        ("- {name: pi, address: pi}", "pi: field '0.address': Value error, expected the address"),
        ("- {name: 'a b', address: 'pi:1'}", "field '0.name': String should match"),
        ("- {name: local, address: 'pi:1'}", "local: field '0.name': Value error, 'local' is this"),
        ("- {name: pi, address: 'pi:1', tls: {cq: x}}", "pi: field '0.tls."),
        ("- {name: pi, address: 'pi:1', tls: {cert: x}}", "pi: field 'tls': a client certificate"),
        (
            "- {name: pi, address: 'a:1'}\n- {name: pi, address: 'b:1'}",
            "two devices are called 'pi'",
        ),
    ],
)
def test_wrong_files(text, said):
    path = written(text)
    with pytest.raises(RuntimeFault) as caught:
        read_devices(path)
    assert str(caught.value).startswith("devices.yaml") and said in str(caught.value)


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "devices.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RuntimeFault, match=r"cannot read .*devices\.yaml"):
        read_devices(path)


def test_where_the_file_is_looked_for(tmp_path, monkeypatch):
    assert devices_file() is None
    home = written(FULL, tmp_path / "home" / ".config" / "edgevit")
    assert devices_file() == home
    here = written(FULL)
    assert devices_file() == here
    named = written(FULL, tmp_path / "named")
    monkeypatch.setenv("EDGEVIT_DEVICES", str(named))
    assert devices_file() == named
    given = written(FULL, tmp_path / "given")
    assert devices_file(given) == given


def test_a_file_that_is_named_has_to_be_there(tmp_path, monkeypatch):
    written(FULL)
    with pytest.raises(RuntimeFault, match=r"--devices names .*gone\.yaml, which is no file"):
        devices_file(tmp_path / "gone.yaml")
    monkeypatch.setenv("EDGEVIT_DEVICES", "other.yaml")
    with pytest.raises(RuntimeFault, match=r"EDGEVIT_DEVICES names other\.yaml"):
        devices_file()


def test_names_and_addresses():
    written(FULL)
    options = AddressOptions(tls_ca=Path("ca.pem"), token_file=Path("token"))
    everything = find_devices([], None, AddressOptions())
    assert [d.name for d in everything] == ["pi", "jetson", "plain"]
    plain, other = find_devices(["plain", "10.0.0.9:1"], None, options)
    assert plain.how.tls_ca is None and plain.token_file is None, "a file says it all itself"
    assert (other.name, other.how.address) == ("10.0.0.9:1", "10.0.0.9:1")
    assert other.how.tls_ca == Path("ca.pem") and other.token_file == Path("token")


@pytest.mark.parametrize("words", [[], ["pi"], ["pi", "plain"]])
def test_options_that_no_device_would_take(words):
    written(FULL)
    options = AddressOptions(tls_ca=Path("ca.pem"), token_file=Path("token"))
    with pytest.raises(RuntimeFault) as caught:
        find_devices(words, None, options)
    assert str(caught.value).startswith("--token-file, --tls-ca: only for devices given as HOST")
    assert "devices.yaml" in str(caught.value)


def test_addresses_need_no_file(monkeypatch):
    monkeypatch.setenv("EDGEVIT_DEVICES", "gone.yaml")
    (found,) = find_devices(["10.0.0.9:1"], None, AddressOptions())
    assert found.access().address == "10.0.0.9:1"


def test_names_that_are_not_known():
    with pytest.raises(RuntimeFault, match=r"there is no devices\.yaml here or in ~/\.config"):
        find_devices([], None, AddressOptions())
    with pytest.raises(RuntimeFault, match=r"'pi': there is no devices\.yaml; .* HOST:PORT"):
        find_devices(["pi"], None, AddressOptions())
    written(FULL)
    with pytest.raises(RuntimeFault, match=r"has: pi, jetson, plain\. Did you mean 'jetson'\?"):
        find_devices(["jetsn"], None, AddressOptions())
    with pytest.raises(RuntimeFault, match="HOST:PORT, got 'pi:port'"):
        find_devices(["pi:port"], None, AddressOptions())
