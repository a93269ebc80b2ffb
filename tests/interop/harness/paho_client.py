"""paho-mqtt whose answers are awaited."""

import queue

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from harness import DEADLINE


def properties(kind, **values):
    """MQTT 5 properties of a packet; UserProperty takes a list of pairs."""
    made = Properties(getattr(PacketTypes, kind))
    for name, value in values.items():
        if name == "UserProperty":
            for pair in value:
                made.UserProperty = pair
        else:
            setattr(made, name, value)
    return made


class Paho:
    """A connected client: version 5 unless said otherwise. `prepare` gets paho's own client before it connects."""

    def __init__(
        self, port, client_id="", version=5, clean=True, expiry=None, will=None, manual_ack=False, transport="tcp",
        prepare=None,
    ):  # fmt: skip
        self._events = {name: queue.SimpleQueue() for name in ("connack", "suback", "ack", "message", "end")}
        self._port = port
        self._version = version
        self._clean = clean
        self._expiry = expiry
        protocol = {4: paho.MQTTv311, 5: paho.MQTTv5}[version]
        options = {} if version == 5 else {"clean_session": clean}
        options |= {"manual_ack": manual_ack, "transport": transport}
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=protocol, **options)
        self.client.on_connect = lambda _c, _u, flags, reason, props: self._put("connack", (flags, reason, props))
        self.client.on_subscribe = lambda _c, _u, _mid, reasons, _props: self._put("suback", reasons)
        self.client.on_unsubscribe = lambda _c, _u, _mid, reasons, _props: self._put("suback", reasons)
        self.client.on_publish = lambda _c, _u, mid, reason, _props: self._put("ack", (mid, reason))
        self.client.on_message = lambda _c, _u, message: self._put("message", message)
        self.client.on_disconnect = lambda _c, _u, _flags, reason, _props: self._put("end", reason)
        if will:
            self.client.will_set(*will)
        if prepare:
            prepare(self.client)
        self.session_present = self.connect()

    def _put(self, name, value):
        self._events[name].put(value)

    def _next(self, name, deadline=DEADLINE):
        try:
            return self._events[name].get(timeout=deadline)
        except queue.Empty:
            raise AssertionError(f"no {name} within {deadline} s") from None

    def connect(self):
        """Connects; see `connected`."""
        options = {}
        if self._version == 5:
            options["clean_start"] = self._clean
            if self._expiry is not None:
                options["properties"] = properties("CONNECT", SessionExpiryInterval=self._expiry)
        self.client.connect("127.0.0.1", self._port, keepalive=60, **options)
        self.client.loop_start()
        return self.connected()

    def connected(self):
        """Waits for a CONNACK; says whether a session was there."""
        flags, reason, self.connack = self._next("connack")
        assert not reason.is_failure, reason
        return flags.session_present

    def subscribe(self, *arguments, **options):
        """Subscribes and waits for SUBACK; the reason codes as numbers."""
        result, _mid = self.client.subscribe(*arguments, **options)
        assert result == paho.MQTT_ERR_SUCCESS, result
        return [reason.value for reason in self._next("suback")]

    def unsubscribe(self, *arguments):
        """Unsubscribes and waits for UNSUBACK."""
        self.client.unsubscribe(*arguments)
        return [reason.value for reason in self._next("suback")]

    def publish(self, topic, payload=b"", qos=0, retain=False, **values):
        """Publishes and waits until it is acknowledged (QoS 0: sent); the reason code as a number."""
        options = {"properties": properties("PUBLISH", **values)} if values else {}
        self.client.publish(topic, payload, qos=qos, retain=retain, **options)
        _mid, reason = self._next("ack")
        return reason.value

    def message(self, deadline=DEADLINE):
        """The next message."""
        return self._next("message", deadline)

    def quiet(self, seconds):
        """Asserts that no message comes within this time."""
        try:
            message = self._events["message"].get(timeout=seconds)
        except queue.Empty:
            return
        raise AssertionError(f"unexpected on {message.topic}: {message.payload!r}")

    def disconnect(self):
        """DISCONNECT, awaited."""
        self.client.disconnect()
        self._next("end")
        self.client.loop_stop()

    def drop(self):
        """Cuts the connection without DISCONNECT."""
        # Its loop ends first, so that it does not come back.
        self.client.loop_stop()
        sock = self.client.socket()
        if sock is not None:
            sock.close()
