"""Listeners beside plain TCP: the command-line tools over TLS, paho-mqtt over TLS and WebSocket."""

import ssl
import subprocess

import pytest

from harness.paho_client import Paho
from harness.tools import Mosquitto, got

CONFIG = """
[[mqtt.listeners]]
name = "secure"
listen = "127.0.0.1:0"
tls = {{ cert = "{0}/server.pem", key = "{0}/server.key" }}

[[mqtt.listeners]]
name = "devices"
listen = "127.0.0.1:0"
tls = {{ cert = "{0}/server.pem", key = "{0}/server.key", client_cert = "required", client_ca = "{0}/clients.pem" }}

[[mqtt.listeners]]
name = "browsers"
listen = "127.0.0.1:0"
transport = "websocket"
websocket.path = "/mqtt"

[[mqtt.listeners]]
name = "secure-browsers"
listen = "127.0.0.1:0"
transport = "websocket"
tls = {{ cert = "{0}/server.pem", key = "{0}/server.key" }}
"""


class Listeners:
    """A broker with listeners of every kind."""

    def __init__(self, start_broker, directory, certificates):
        self.directory = certificates
        config = directory / "stafett.toml"
        config.write_text(CONFIG.format(certificates))
        self.broker = start_broker("--config", config)
        self._clients = []

    def port(self, name):
        """The port of the listener called so."""
        return int(self.broker.doors[f"mqtt.{name}"].rsplit(":", 1)[1])

    def mosquitto(self, name):
        """The command-line tools for one of them."""
        self._clients.append(Mosquitto(self.port(name)))
        return self._clients[-1]

    def stop(self):
        """Ends the tools."""
        for client in self._clients:
            client.stop()


@pytest.fixture
def listeners(start_broker, tmp_path, certificates):
    """See the class."""
    made = Listeners(start_broker, tmp_path, certificates)
    yield made
    made.stop()


@pytest.mark.parametrize("tls", ("tlsv1.2", "tlsv1.3"))
@pytest.mark.parametrize("version", ("mqttv311", "mqttv5"))
def test_the_tools_over_tls(listeners, tls, version):
    tools = listeners.mosquitto("secure")
    options = ("-V", version, "--cafile", listeners.directory / "authority.pem", "--tls-version", tls, "-q", 2, "-t", "a")
    subscriber = tools.subscribe(*options, "-C", 2)
    tools.start_pub(*options, "-m", "plain").ends()
    tools.start_pub(*options, "--tls-alpn", "mqtt", "-m", "agreed").ends()
    assert got(subscriber, 2) == ["2 0 a plain", "2 0 a agreed"]


def test_the_tools_with_a_certificate(listeners):
    tools = listeners.mosquitto("devices")
    trust = ("--cafile", listeners.directory / "authority.pem", "-q", 1, "-t", "a")
    own = ("--cert", listeners.directory / "device.pem", "--key", listeners.directory / "device.key")
    subscriber = tools.subscribe(*trust, *own, "-C", 1)
    tools.start_pub(*trust, *own, "-m", "known").ends()
    assert got(subscriber, 1) == ["1 0 a known"]
    stranger = subprocess.run(
        [str(word) for word in ("mosquitto_pub", "-p", listeners.port("devices"), *trust, "-m", "x")],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert stranger.returncode != 0


@pytest.mark.parametrize("version", (4, 5))
@pytest.mark.parametrize("name", ("secure", "browsers", "secure-browsers"))
def test_paho(listeners, name, version):
    def prepare(client):
        if name != "browsers":
            client.tls_set(listeners.directory / "authority.pem", tls_version=ssl.PROTOCOL_TLS_CLIENT)
        if name != "secure":
            client.ws_set_options(path="/mqtt")

    transport = "tcp" if name == "secure" else "websockets"
    client = Paho(listeners.port(name), version=version, transport=transport, prepare=prepare)
    assert client.subscribe("a/#", qos=2) == [2]
    for payload in (b"small", b"x" * 300_000):
        for qos in (0, 1, 2):
            client.publish("a/b", payload, qos=qos)
            message = client.message()
            assert (message.payload, message.qos) == (payload, qos)
    client.disconnect()
