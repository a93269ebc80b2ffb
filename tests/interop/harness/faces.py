"""Clients of several hands behind one face, so that the same can be asked of each.

A face sends a message by a client of its own and waits for its acknowledgement; `listen` gives a listener, which hands
out messages as (topic, text, QoS, retain flag).
"""

import ssl

from harness.gmqtt_client import Gmqtt
from harness.paho_client import Paho
from harness.tools import Mosquitto, got

EXPIRY = 3600


class Face:
    """Where the broker is (`ca`: TLS, trusting this authority), and in which version it is spoken to."""

    # Instead of coming back.
    ends_at_disconnect = False

    def __init__(self, port, version, ca=None):
        self._port = port
        self._version = version
        self._ca = ca
        self._made = []

    def _expiry(self, kept):
        return {"clean": not kept, "expiry": EXPIRY if kept and self._version == 5 else None}

    def stop(self):
        """Cuts what is still there."""
        for made in self._made:
            made.drop()


class LibraryListener:
    """A client of a library, subscribed. `settle` waits until nothing more can come again."""

    def __init__(self, client, message, settle=lambda: None):
        self.settle = settle
        self._client = client
        self.session_present = client.session_present
        self.next = message
        self.leave = client.disconnect
        self.lose = client.drop
        self.comes_back = client.connected


class LibraryFace(Face):
    """A library's: `_connect` makes a client, `_listener` what listens with it."""

    def send(self, topic, payload, qos, retain=False):
        client = self._connect()
        client.publish(topic, payload, qos=qos, retain=retain)
        client.disconnect()

    def listen(self, topic, qos, client_id="", kept=False, will=None, again=False, **_):
        client = self._connect(client_id=client_id, will=will, **self._expiry(kept))
        if not again:
            assert client.subscribe(topic, qos=qos) == [qos]
        return self._listener(client)


class PahoFace(LibraryFace):
    """paho-mqtt."""

    def _connect(self, **options):
        def prepare(client):
            client.reconnect_delay_set(min_delay=1, max_delay=1)
            if self._ca:
                client.tls_set(self._ca, tls_version=ssl.PROTOCOL_TLS_CLIENT)

        client = Paho(self._port, version=self._version, prepare=prepare, **options)
        self._made.append(client)
        return client

    def _listener(self, client):
        def message():
            came = client.message()
            return came.topic, came.payload.decode(), came.qos, bool(came.retain)

        return LibraryListener(client, message)


class GmqttFace(LibraryFace):
    """gmqtt."""

    def _connect(self, **options):
        tls = ssl.create_default_context(cafile=self._ca) if self._ca else None
        client = Gmqtt(self._port, version=self._version, tls=tls, **options)
        self._made.append(client)
        return client

    def _listener(self, client):
        # It hands a message out with its PUBLISH: the broker knows of that when it answers what was sent later.
        return LibraryListener(client, client.message, lambda: client.subscribe("nothing", 0))


class ToolListener:
    """mosquitto_sub, which ends after `count` messages."""

    def __init__(self, tool, count):
        self._tool = tool
        self._count = count
        self._taken = 0
        # It does not say so; what comes tells.
        self.session_present = None
        self.lose = tool.kill9

    def next(self):
        self._taken += 1
        qos, retain, topic, text = got(self._tool, self._taken)[-1].split(" ", 3)
        return topic, text, int(qos), retain == "1"

    def settle(self):
        """What it has said is released."""

    def leave(self):
        """DISCONNECT. A signal would leave the will."""
        assert self._taken == self._count, "it leaves after its messages"
        self._tool.ends()

    def comes_back(self):
        """Waits until it has subscribed again; what it says of a session is unknown."""
        self._tool.says("Subscribed (mid", 2)


class MosquittoFace(Face):
    """mosquitto_pub and mosquitto_sub."""

    ends_at_disconnect = True

    def __init__(self, port, version, ca=None):
        super().__init__(port, version, ca)
        self._tools = Mosquitto(port)

    def _options(self, topic, qos):
        version = {4: "mqttv311", 5: "mqttv5"}[self._version]
        return ("-V", version, *(("--cafile", self._ca) if self._ca else ()), "-q", qos, "-t", topic)

    def send(self, topic, payload, qos, retain=False):
        message = ("-m", payload) if payload else ("-n",)
        retained = ("-r",) if retain else ()
        self._tools.start_pub(*self._options(topic, qos), *message, *retained).ends()

    def listen(self, topic, qos, client_id="", kept=False, will=None, again=False, count=None):
        options = list(self._options(topic, qos))
        if client_id:
            options += ["-i", client_id]
        if kept:
            options += ["-c", *(("-x", EXPIRY) if self._version == 5 else ())]
        if will:
            to, payload, level, retain = will
            options += ["--will-topic", to, "--will-payload", payload, "--will-qos", level]
            options += ["--will-retain"] if retain else []
        if count == 0:
            options += ["-E"]
        elif count:
            options += ["-C", count]
        # What waits may come before the answer to SUBSCRIBE, and end it.
        tool = self._tools.start_sub(*options) if again else self._tools.subscribe(*options)
        return ToolListener(tool, count)

    def stop(self):
        self._tools.stop()


FACES = {"mosquitto": MosquittoFace, "paho": PahoFace, "gmqtt": GmqttFace}
