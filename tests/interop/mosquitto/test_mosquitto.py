"""mosquitto_pub and mosquitto_sub against the broker, MQTT 3.1.1 and 5."""

import pytest
from stafett.v1 import queue_pb2

from harness import DEADLINE
from harness.tools import got, got_together

VERSIONS = ("mqttv311", "mqttv5")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", (0, 1, 2))
def test_messages_arrive_at_each_qos(mosquitto, version, qos):
    subscriber = mosquitto.subscribe("-V", version, "-q", qos, "-t", "shop/+/orders", "-C", 100)
    publisher = mosquitto.start_pub("-V", version, "-q", qos, "-t", "shop/1/orders", "-l", stdin=True)
    publisher.write("".join(f"line {number}\n" for number in range(100)))
    publisher.close_stdin()
    publisher.ends()
    assert got(subscriber, 100) == [f"{qos} 0 shop/1/orders line {number}" for number in range(100)]
    subscriber.ends()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_subscription_lowers_the_qos(mosquitto, version):
    subscriber = mosquitto.subscribe("-V", version, "-q", 1, "-t", "a", "-C", 2)
    mosquitto.publish("a", "two", "-q", 2)
    mosquitto.publish("a", "none", "-q", 0)
    assert got(subscriber, 2) == ["1 0 a two", "0 0 a none"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_shared_subscription_divides_the_messages(mosquitto, version):
    members = [mosquitto.subscribe("-V", version, "-q", 1, "-t", "$share/crew/jobs/#") for _ in range(2)]
    all_of_it = mosquitto.subscribe("-V", version, "-q", 1, "-t", "jobs/#")
    publisher = mosquitto.start_pub("-q", 1, "-t", "jobs/1", "-l", stdin=True)
    publisher.write("".join(f"{number}\n" for number in range(100)))
    publisher.close_stdin()
    publisher.ends()
    expected = [f"1 0 jobs/1 {number}" for number in range(100)]
    assert got(all_of_it, 100) == expected

    parts = got_together(members, 100)
    assert sorted(parts[0] + parts[1]) == sorted(expected)
    assert all(parts), "one member got nothing"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_queue_is_fed_and_consumed_under_its_name(mosquitto, broker, version):
    queues = broker.queues()
    queues.CreateQueue(queue_pb2.CreateQueueRequest(queue=queue_pb2.Queue(name="orders")), timeout=DEADLINE)
    for number in range(10):
        mosquitto.publish("$queue/orders", f"order {number}", "-q", 1, "-V", version)
    workers = mosquitto.subscribe("-V", version, "-q", 1, "-t", "$queue/orders", "-C", 10, "-F", "got %q %r %p")
    assert got(workers, 10) == [f"1 0 order {number}" for number in range(10)]
    workers.ends()
    settled = mosquitto.subscribe("-V", version, "-q", 1, "-t", "$queue/orders", "-F", "got %p", "-C", 1)
    mosquitto.publish("$queue/orders", "the next", "-q", 1)
    assert got(settled, 1) == ["the next"]


def test_version_5_carries_properties(mosquitto):
    form = "got %t %p content=%C reply=%R correlation=%D user=%P expiry=%E utf8=%F"
    subscriber = mosquitto.subscribe("-V", "mqttv5", "-q", 1, "-t", "a", "-C", 1, "-F", form)
    mosquitto.publish(
        *("a", "x", "-V", "mqttv5", "-q", 1),
        *("-D", "publish", "content-type", "text/plain"),
        *("-D", "publish", "response-topic", "answers"),
        *("-D", "publish", "correlation-data", "c7"),
        *("-D", "publish", "user-property", "b", "1"),
        *("-D", "publish", "user-property", "a", "2"),
        *("-D", "publish", "message-expiry-interval", "60"),
        *("-D", "publish", "payload-format-indicator", "1"),
    )
    (line,) = got(subscriber, 1)
    assert "content=text/plain reply=answers correlation=c7" in line and "user=b:1 a:2" in line
    assert "utf8=1" in line and ("expiry=60" in line or "expiry=59" in line)


def test_an_old_client_reaches_a_new_one_and_back(mosquitto):
    new = mosquitto.subscribe("-V", "mqttv5", "-q", 1, "-t", "to/new", "-C", 1)
    old = mosquitto.subscribe("-V", "mqttv311", "-q", 1, "-t", "to/old", "-C", 1)
    mosquitto.publish("to/new", "hello", "-q", 1, "-V", "mqttv311")
    mosquitto.publish("to/old", "hello", "-q", 1, "-V", "mqttv5", "-D", "publish", "user-property", "a", "b")
    assert got(new, 1) == ["1 0 to/new hello"]
    assert got(old, 1) == ["1 0 to/old hello"]
