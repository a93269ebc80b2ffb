"""A lamp as an ESP would be one: MQTT 3.1.1, a topic for commands and one for its state; it knows nothing of calls.

python lamp.py kitchen   is called by   python caller.py lamps/kitchen/set on
"""

import argparse

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion


class Lamp:
    """What the firmware does; the broker's configuration joins its two topics to calls."""

    def __init__(self, name):
        self.name = name
        self.state = "off"
        self.mqtt = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"lamp-{name}", protocol=mqtt.MQTTv311)
        self.mqtt.on_connect = self.connected
        self.mqtt.on_message = self.asked
        self.mqtt.on_disconnect = lambda _client, _data, _flags, reason, _properties: print(f"offline: {reason}")
        self.mqtt.on_subscribe = lambda *_: print(f"ready for lamps/{name}/set")
        self.mqtt.reconnect_delay_set(min_delay=1, max_delay=30)

    def connected(self, client, _data, _flags, reason, _properties):
        """Subscribes, anew after each lost connection: the session ended with it."""
        if reason.is_failure:
            print(f"refused: {reason}")
            return
        client.subscribe(f"lamps/{self.name}/set", qos=1)

    def asked(self, client, _data, message):
        """Switches, and says the state: the answer where this is a call, and news for whoever subscribes."""
        command = message.payload.decode(errors="replace")
        if command in ("on", "off"):
            self.state = command
        print(f"told {command!r}, is {self.state}")
        client.publish(f"lamps/{self.name}/state", self.state, qos=1)

    def run(self, host, port):
        """Connects, and again whenever the connection is lost. Does not return."""
        self.mqtt.connect_async(host, port, keepalive=30)
        self.mqtt.loop_forever(retry_first_connection=True)


def main():
    parser = argparse.ArgumentParser(description="A lamp that is switched over MQTT.")
    parser.add_argument("--server", default="127.0.0.1:1883", metavar="HOST:PORT")
    parser.add_argument("name")
    args = parser.parse_args()
    host, port = args.server.rsplit(":", 1)
    Lamp(args.name).run(host, int(port))


if __name__ == "__main__":
    main()
