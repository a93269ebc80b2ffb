"""The broker as a bridge to Debian's mosquitto: in 3.1.1 and 5, over TCP and TLS, over losses of either side."""

import pytest

from harness.broker import free_port
from harness.certificates import certify
from harness.tools import Mosquitto, Tool, got

VERSIONS = ("3.1.1", "5")
BRIDGE = """
[[bridges]]
name = "house"
url = "{url}"
version = "{version}"
reconnect_min = "10ms"
reconnect_max = "100ms"
{lines}
[[bridges.topics]]
filter = "out/#"
direction = "out"
qos = 2
[[bridges.topics]]
filter = "in/#"
direction = "in"
qos = 2
[[bridges.topics]]
filter = "both/#"
qos = 1
local_prefix = "here/"
remote_prefix = "there/"
"""
STATE = "$SYS/broker/connection/house/state"


class Remote:
    """A mosquitto that keeps what it has over its restarts."""

    def __init__(self, directory, lines=""):
        self.directory = directory
        self.port = free_port()
        self._config = directory / "mosquitto.conf"
        self._config.write_text(
            f"user root\npersistence true\npersistence_location {directory}/\nautosave_interval 1\nautosave_on_changes true\n"
            f"log_dest stdout\nlog_type all\nlistener {self.port} 127.0.0.1\n{lines or 'allow_anonymous true'}\n"
        )
        self.start()

    def start(self):
        """Starts it and waits until it listens."""
        self.process = Tool("mosquitto", "-c", self._config)
        self.process.says(" running")

    def stop(self):
        """Ends it by SIGTERM: it writes down what it has."""
        self.process.stop()


@pytest.fixture
def remote(tmp_path):
    """One without passwords."""
    made = Remote(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def tools():
    """Makes the command-line tools for a port."""
    made = []

    def make(port):
        made.append(Mosquitto(port))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def joined(start_broker, tmp_path, remote, version, scheme="mqtt", lines=""):
    """A broker that is joined with `remote`."""
    config = tmp_path / "stafett.toml"
    url = f"{scheme}://localhost:{remote.port}" if scheme == "mqtts" else f"{scheme}://127.0.0.1:{remote.port}"
    config.write_text(BRIDGE.format(url=url, version=version, lines=lines))
    return start_broker("--config", config, keep_ports=True)


def connected(clients):
    """Waits until the bridge is connected."""
    clients.subscribe("-t", STATE).says(f"{STATE} 1")


@pytest.mark.parametrize("version", VERSIONS)
def test_topics_go_both_ways_and_nothing_comes_back(start_broker, tmp_path, remote, tools, version):
    broker = joined(start_broker, tmp_path, remote, version)
    here, there = tools(broker.mqtt_port), tools(remote.port)
    connected(here)
    far = there.subscribe("-q", 2, "-t", "out/#", "-t", "there/#")
    near = here.subscribe("-q", 2, "-t", "in/#", "-t", "here/#")
    for qos in (0, 1, 2):
        here.publish("out/a", f"o{qos}", "-q", qos)
        there.publish("in/b", f"i{qos}", "-q", qos)
    assert got(far, 3) == [f"{qos} 0 out/a o{qos}" for qos in (0, 1, 2)]
    assert got(near, 3) == [f"{qos} 0 in/b i{qos}" for qos in (0, 1, 2)]
    here.publish("here/both/c", "mine", "-q", 1)
    assert got(far, 4)[3] == "1 0 there/both/c mine"
    there.publish("there/both/c", "yours", "-q", 1)
    assert got(far, 5)[4] == "1 0 there/both/c yours"
    # Nothing of it comes back before what is said last, on either side: mosquitto knows a bridge in 3.1.1, too.
    there.publish("in/b", "end", "-q", 1)
    assert got(near, 6)[3:] == ["1 0 here/both/c mine", "1 0 here/both/c yours", "1 0 in/b end"]
    here.publish("out/a", "end", "-q", 1)
    assert got(far, 6)[5] == "1 0 out/a end"


@pytest.mark.parametrize("version", VERSIONS)
def test_retained_values_stay_retained(start_broker, tmp_path, remote, tools, version):
    there = tools(remote.port)
    there.publish("in/old", "far", "-r", "-q", 1)
    broker = joined(start_broker, tmp_path, remote, version)
    here = tools(broker.mqtt_port)
    connected(here)
    there.publish("in/new", "far", "-r", "-q", 1)
    here.publish("out/new", "near", "-r", "-q", 1)
    here.subscribe("-q", 1, "-t", "in/new").says("in/new far")
    assert got(here.subscribe("-q", 1, "-t", "in/old"), 1) == ["1 1 in/old far"]
    assert got(here.subscribe("-q", 1, "-t", "in/new"), 1) == ["1 1 in/new far"]
    there.subscribe("-q", 1, "-t", "out/new").says("out/new near")
    assert got(there.subscribe("-q", 1, "-t", "out/new"), 1) == ["1 1 out/new near"]


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_lost_or_doubled_over_losses_of_either_side(start_broker, tmp_path, remote, tools, version):
    broker = joined(start_broker, tmp_path, remote, version)
    here, there = tools(broker.mqtt_port), tools(remote.port)
    connected(here)
    sink = ("-i", "sink", "-c", "-q", 2)
    there.subscribe(*sink, "-t", "out/#", "-E").ends()
    here.subscribe(*sink, "-t", "in/#", "-E").ends()

    def feed(tools, topic, first, last):
        tool = tools.start_pub("-t", topic, "-q", 2, "-l", stdin=True)
        tool.write("".join(f"{number}\n" for number in range(first, last)))
        tool.close_stdin()
        tool.ends()

    feed(here, "out/a", 0, 200)
    remote.stop()
    feed(here, "out/a", 200, 400)
    broker.crash()
    remote.start()
    connected(here)
    feed(there, "in/a", 0, 200)
    broker.kill9()
    feed(there, "in/a", 200, 400)
    broker.restart()
    feed(here, "out/a", 400, 410)
    # As many as there are, and no more: the last one that comes ends it.
    out = there.start_sub(*sink, "-t", "out/#", "-C", 410)
    assert got(out, 410) == [f"2 0 out/a {number}" for number in range(410)]
    inward = here.start_sub(*sink, "-t", "in/#", "-C", 400)
    assert got(inward, 400) == [f"2 0 in/a {number}" for number in range(400)]


def test_a_password_is_asked_for_and_a_wrong_one_is_told(start_broker, tmp_path, tools):
    passwords = tmp_path / "passwords"
    Tool("mosquitto_passwd", "-b", "-c", passwords, "house", "right").ends()
    remote = Remote(tmp_path, f"allow_anonymous false\npassword_file {passwords}")
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    lines = f'username = "house"\npassword_file = "{secret}"'
    try:
        broker = joined(start_broker, tmp_path, remote, "5", lines=lines)
        here = tools(broker.mqtt_port)
        remote.process.says("not authorised", count=2)
        assert "refused: Not authorized" in broker.log()
        here.subscribe("-t", STATE).says(f"{STATE} 0")
        secret.write_text("right\n")
        connected(here)
    finally:
        remote.stop()


@pytest.mark.parametrize("version", VERSIONS)
def test_over_tls_with_a_certificate(start_broker, tmp_path, tools, version):
    certify(tmp_path)
    remote = Remote(
        tmp_path,
        f"allow_anonymous true\ncertfile {tmp_path}/server.pem\nkeyfile {tmp_path}/server.key\n"
        f"cafile {tmp_path}/clients.pem\nrequire_certificate true",
    )
    lines = f'tls = {{ ca = "{tmp_path}/authority.pem", cert = "{tmp_path}/device.pem", key = "{tmp_path}/device.key" }}'
    try:
        broker = joined(start_broker, tmp_path, remote, version, "mqtts", lines)
        here, there = tools(broker.mqtt_port), tools(remote.port)
        connected(here)
        own = ("--cafile", tmp_path / "authority.pem", "--cert", tmp_path / "device.pem", "--key", tmp_path / "device.key")
        far = there.subscribe(*own, "-q", 1, "-t", "out/#")
        here.publish("out/a", "secret", "-q", 1)
        assert got(far, 1) == ["1 0 out/a secret"]
    finally:
        remote.stop()
