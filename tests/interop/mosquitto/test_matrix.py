"""The same of every client and both versions, plain and over TLS: each QoS both ways, retained values, wills, sessions."""

import pytest

from harness.faces import FACES

TLS = """
[[mqtt.listeners]]
name = "secure"
listen = "{1}"
tls = {{ cert = "{0}/server.pem", key = "{0}/server.key" }}
"""


class Scene:
    """A broker with a plain and a secure listener, and a client that is led to one of them."""

    def __init__(self, start_broker, tmp_path, certificates, name, version, carrier):
        config = tmp_path / "listeners.toml"
        config.write_text(TLS.format(certificates, "127.0.0.1:0"))
        self.broker = start_broker("--config", config, keep_ports=carrier == "tcp")
        self._name, self._version, self._carrier = name, version, carrier
        self._ca = certificates / "authority.pem"
        self._faces = []
        self.lead()

    def lead(self):
        """Leads clients to where the broker is now."""
        door = {"tcp": "mqtt", "tls": "mqtt.secure"}[self._carrier]
        port = int(self.broker.doors[door].rsplit(":", 1)[1])
        self.face = FACES[self._name](port, self._version, self._ca if self._carrier == "tls" else None)
        self._faces.append(self.face)

    def restart(self, ending):
        """The broker ends and comes back on the same store."""
        if ending == "clean":
            assert self.broker.terminate() == 0
            self.broker.restart()
        else:
            self.broker.crash()

    def stop(self):
        for face in self._faces:
            face.stop()


@pytest.fixture(params=("tcp", "tls"))
def carrier(request):
    return request.param


@pytest.fixture(params=(4, 5), ids=("3.1.1", "5"))
def version(request):
    return request.param


@pytest.fixture(params=FACES)
def scene(start_broker, tmp_path, certificates, request, version, carrier):
    made = Scene(start_broker, tmp_path, certificates, request.param, version, carrier)
    yield made
    made.stop()


def test_each_qos_both_ways(scene):
    for granted in (0, 1, 2):
        listener = scene.face.listen("shop/+/orders", granted, count=9)
        for qos in (0, 1, 2):
            for payload in ("smörgås", "x" * 100_000, "last"):
                scene.face.send("shop/1/orders", payload, qos)
                assert listener.next() == ("shop/1/orders", payload, min(qos, granted), False)
        listener.leave()


def test_retained_values(scene):
    for qos in (0, 1, 2):
        topic = f"temp/{qos}"
        watcher = scene.face.listen("temp/+", 2, count=3)
        scene.face.send(topic, "20", qos, retain=True)
        assert watcher.next() == (topic, "20", qos, False)
        late = scene.face.listen("temp/+", 2, count=2)
        assert late.next() == (topic, "20", qos, True)
        # What comes while it is there is not marked.
        scene.face.send(topic, "21", qos, retain=True)
        for listener in (watcher, late):
            assert listener.next() == (topic, "21", qos, False)
        late.leave()
        # An empty one deletes it.
        scene.face.send(topic, "", qos, retain=True)
        assert watcher.next() == (topic, "", qos, False)
        watcher.leave()


def test_wills(scene):
    for qos in (0, 1, 2):
        watcher = scene.face.listen("state/#", 2, count=3)
        will = (f"state/{qos}", "gone", qos, True)
        lost = scene.face.listen("nothing", 0, will=will)
        lost.lose()
        assert watcher.next() == (f"state/{qos}", "gone", qos, False)
        # The will was retained: it goes, so that nobody finds it later.
        scene.face.send(f"state/{qos}", "", 1, retain=True)
        assert watcher.next()[1] == ""

        polite = scene.face.listen("farewell", 1, count=1, will=will)
        scene.face.send("farewell", "bye", 1)
        polite.next()
        polite.leave()
        scene.face.send("state/other", "end", 1)
        assert watcher.next() == ("state/other", "end", 1, False)
        watcher.leave()


@pytest.fixture(params=("clean", "kill -9"))
def ending(request):
    return request.param


def test_a_session_that_is_away_over_a_restart(scene, ending):
    session = {"client_id": "kitchen", "kept": True}
    listener = scene.face.listen("shop/#", 2, **session, count=0)
    assert not listener.session_present
    listener.leave()
    missed = [("shop/1", f"missed {number}", 1 + number % 2, False) for number in range(10)]
    for topic, payload, qos, _ in missed:
        scene.face.send(topic, payload, qos)
    scene.restart(ending)
    scene.lead()
    scene.face.send("shop/2", "after it", 2)
    back = scene.face.listen("shop/#", 2, **session, again=True, count=12)
    assert back.session_present is not False
    expected = [*missed, ("shop/2", "after it", 2, False)]
    came = [back.next() for _ in expected]
    # A client may hand a message out with its PUBREL: their order is that of each QoS.
    assert sorted(came, key=lambda message: message[2]) == sorted(expected, key=lambda message: message[2])
    scene.face.send("shop/3", "live", 1)
    assert back.next() == ("shop/3", "live", 1, False)
    back.leave()


@pytest.mark.parametrize("carrier", ("tcp",))
def test_a_session_that_is_there_over_a_restart(scene, version, ending):
    if scene.face.ends_at_disconnect and version == 5 and ending == "clean":
        pytest.skip("the tool ends when it is told that the broker stops")
    listener = scene.face.listen("shop/#", 2, client_id="kitchen", kept=True, count=3)
    scene.face.send("shop/1", "before", 2)
    assert listener.next() == ("shop/1", "before", 2, False)
    listener.settle()
    scene.restart(ending)
    # It comes back by itself, and misses nothing until then.
    scene.face.send("shop/1", "meanwhile", 2)
    assert listener.next() == ("shop/1", "meanwhile", 2, False)
    assert listener.comes_back() is not False
    scene.face.send("shop/1", "after", 2)
    assert listener.next() == ("shop/1", "after", 2, False)
    listener.leave()
