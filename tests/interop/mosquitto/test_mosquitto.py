"""mosquitto_pub and mosquitto_sub against the broker, MQTT 3.1.1 and 5."""

import pytest
from stafett.v1 import queue_pb2

from harness import DEADLINE
from harness.tools import Mosquitto, got, got_together

VERSIONS = ("mqttv311", "mqttv5")
PERSISTENT_V5 = ("-V", "mqttv5", "-x", "3600")


def persistent(version):
    """Options of a session that outlives its connection."""
    return ("-V", "mqttv311", "-c") if version == "mqttv311" else (*PERSISTENT_V5, "-c")


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
def test_retained_values_come_first_and_can_be_deleted(mosquitto, version):
    mosquitto.publish("temp/1", "20", "-r", "-q", 1, "-V", version)
    mosquitto.publish("temp/2", "30", "-r", "-q", 1, "-V", version)
    subscriber = mosquitto.subscribe("-V", version, "-q", 1, "-t", "temp/#", "-C", 3)
    assert sorted(got(subscriber, 2)) == ["1 1 temp/1 20", "1 1 temp/2 30"]
    mosquitto.publish("temp/1", "21", "-r", "-q", 1)
    assert got(subscriber, 3)[-1] == "1 0 temp/1 21"
    mosquitto.start_pub("-t", "temp/1", "-n", "-r", "-q", 1, "-V", version).ends()
    late = mosquitto.subscribe("-V", version, "-q", 1, "-t", "temp/#", "-C", 1)
    assert got(late, 1) == ["1 1 temp/2 30"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_will_is_published_when_the_client_is_lost_and_only_then(mosquitto, version):
    watcher = mosquitto.subscribe("-q", 1, "-t", "state/#")
    will = ("--will-topic", "state/dies", "--will-payload", "gone", "--will-qos", 1)
    lost = mosquitto.subscribe("-V", version, "-t", "nothing", *will)
    lost.kill9()
    assert got(watcher, 1) == ["1 0 state/dies gone"]

    polite = mosquitto.subscribe("-V", version, "-t", "nothing", "-C", 1, *will)
    mosquitto.publish("nothing", "bye")
    polite.ends()
    mosquitto.publish("state/other", "end", "-q", 1)
    assert got(watcher, 2)[-1] == "1 0 state/other end"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ending", ("clean", "kill -9"))
def test_a_persistent_session_survives_a_restart_of_the_broker(start_broker, version, ending):
    broker = start_broker(keep_ports=True)
    clients = Mosquitto(broker.mqtt_port)
    session = ("-i", "kitchen", *persistent(version), "-q", 1, "-t", "shop/#")
    try:
        clients.subscribe(*session, "-E").ends()
        for number in range(20):
            clients.publish("shop/1", f"missed {number}", "-q", 1)
        if ending == "clean":
            assert broker.terminate() == 0
            broker.restart()
        else:
            broker.crash()
        clients.publish("shop/2", "after it", "-q", 2)
        # What waits may come before the answer to SUBSCRIBE.
        back = clients.start_sub(*session, "-C", 21)
        assert got(back, 21) == [f"1 0 shop/1 missed {number}" for number in range(20)] + ["1 0 shop/2 after it"]
        back.ends()
    finally:
        clients.stop()


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
