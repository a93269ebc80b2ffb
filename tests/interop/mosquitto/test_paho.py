"""paho-mqtt against the broker: what the command-line tools cannot say."""

import pytest
from paho.mqtt.client import SubscribeOptions

from harness.paho_client import properties


def test_properties_arrive_as_they_were_sent(paho):
    receiver, sender = paho("receiver"), paho("sender")
    receiver.subscribe(
        "a/#", options=SubscribeOptions(qos=2), properties=properties("SUBSCRIBE", SubscriptionIdentifier=7)
    )
    sent = {
        "UserProperty": [("b", "1"), ("a", "ä"), ("b", "1")],
        "ContentType": "text/plain",
        "PayloadFormatIndicator": 1,
        "ResponseTopic": "answers",
        "CorrelationData": b"\x00\xff",
        "MessageExpiryInterval": 60,
    }
    assert sender.publish("a/b", "smörgås".encode(), qos=2, **sent) == 0
    message = receiver.message()
    assert (message.topic, message.payload.decode(), message.qos) == ("a/b", "smörgås", 2)
    for name, value in sent.items():
        if name != "MessageExpiryInterval":
            assert getattr(message.properties, name) == value, name
    assert 50 <= message.properties.MessageExpiryInterval <= 60
    assert message.properties.SubscriptionIdentifier == [7]


@pytest.mark.parametrize("version", (4, 5))
def test_qos_2_is_exactly_once_and_in_order(paho, version):
    receiver, sender = paho("receiver", version=version), paho("sender", version=version)
    assert receiver.subscribe("a", qos=2) == [2]
    for number in range(200):
        assert sender.publish("a", str(number), qos=2) == 0
    received = [receiver.message() for _ in range(200)]
    assert [int(message.payload) for message in received] == list(range(200))
    assert {(message.qos, message.dup) for message in received} == {(2, False)}
    receiver.quiet(0.3)


def test_request_and_response(paho):
    server, client = paho("server"), paho("client")
    server.subscribe("requests", qos=1)
    client.subscribe("answers/client", qos=1)
    for number in (b"1", b"2"):
        client.publish("requests", b"double " + number, qos=1, ResponseTopic="answers/client", CorrelationData=number)
    for _ in range(2):
        asked = server.message()
        value = str(2 * int(asked.payload.split()[1]))
        server.publish(asked.properties.ResponseTopic, value, qos=1, CorrelationData=asked.properties.CorrelationData)
    answers = [client.message() for _ in range(2)]
    assert [(a.properties.CorrelationData, a.payload) for a in answers] == [(b"1", b"2"), (b"2", b"4")]


def test_nobody_there_is_said(paho):
    sender = paho("sender")
    assert sender.publish("nobody/listens", b"x", qos=1) == 0x10


def test_subscription_options(paho):
    talker, other = paho("talker"), paho("other")
    other.publish("talk", b"kept", qos=1, retain=True)
    options = SubscribeOptions(qos=1, noLocal=True, retainAsPublished=True, retainHandling=2)
    talker.subscribe("talk", options=options)
    talker.publish("talk", b"own", qos=1)
    other.publish("talk", b"retained by another", qos=1, retain=True)
    message = talker.message()
    assert (message.payload, message.retain) == (b"retained by another", True)


def test_an_id_is_assigned(paho):
    client = paho("")
    assert client.connack.AssignedClientIdentifier


def test_a_session_of_version_5_lasts_as_long_as_it_asked(paho):
    first = paho("kitchen", clean=True, expiry=3600)
    assert not first.session_present
    first.subscribe("a", qos=1)
    first.disconnect()
    paho("sender").publish("a", b"missed", qos=1)
    second = paho("kitchen", clean=False, expiry=3600)
    assert second.session_present
    assert second.message().payload == b"missed"
    second.disconnect()
    third = paho("kitchen", clean=True, expiry=0)
    assert not third.session_present
    third.disconnect()
    assert not paho("kitchen", clean=False, expiry=0).session_present


def test_unsubscribed_is_silent(paho):
    client = paho("client")
    client.subscribe([("a", 1), ("b", 1)])
    assert client.unsubscribe("a") == [0]
    assert client.unsubscribe("a") == [0x11]
    client.publish("a", b"no", qos=1)
    client.publish("b", b"yes", qos=1)
    assert client.message().payload == b"yes"


def test_a_will_with_properties(paho):
    watcher = paho("watcher")
    watcher.subscribe("state", qos=1)
    will = properties("WILLMESSAGE", UserProperty=[("why", "lost")], ContentType="text/plain")
    lost = paho("device", will=("state", b"gone", 1, False, will))
    lost.drop()
    message = watcher.message()
    assert message.payload == b"gone" and message.properties.UserProperty == [("why", "lost")]
    assert message.properties.ContentType == "text/plain"
