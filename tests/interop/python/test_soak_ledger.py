"""The soak's own check, on logs that were doctored: what breaks a promise must be found, what does not must pass."""

import pytest

from harness.soak.client import decode, encode
from harness.soak.ledger import Ledger, Stream, Topic
from harness.soak.memory import FLOOR, Memory, is_flat


def stream(qos=2, published=2, resent=True, lasting=True, owed=True, sent=10):
    """A stream that has begun, of a topic on which so many messages were sent and acknowledged since."""
    topic = Topic("soak/1/2", published, resent)
    made = Stream(topic, qos, lasting, owed)
    made.begin()
    for _ in range(sent):
        topic.acked(topic.send())
    return made


def take(made, numbers, stretch=1):
    """What is said of these deliveries, one after the other."""
    return [made.take(number, stretch) for number in numbers]


def test_a_whole_log_passes():
    made = stream()
    assert set(take(made, range(10))) == {None}
    assert made.lost() == []


@pytest.mark.parametrize("missing", (0, 4, 9))
@pytest.mark.parametrize(("published", "qos", "owed"), ((1, 1, True), (2, 1, True), (2, 2, True), (1, 0, False)))
def test_what_does_not_come_is_lost_above_qos_0(missing, published, qos, owed):
    made = stream(qos, published)
    take(made, [number for number in range(10) if number != missing])
    assert made.lost() == ([missing] if owed else [])


def test_what_is_not_acknowledged_may_be_lost():
    made = stream(sent=3)
    number = made.topic.send()
    take(made, range(3))
    assert made.lost() == []
    made.topic.acked(number)
    assert made.lost() == [number]


def test_what_was_sent_before_suback_is_not_owed():
    topic = Topic("soak/1/2", 2, resent=True)
    for _ in range(5):
        topic.acked(topic.send())
    made = Stream(topic, 2, lasting=True)
    assert take(made, [3]) == [None]
    made.begin()
    assert (made.lost(), take(made, [3, 4])) == ([], ["repeated", None])


@pytest.mark.parametrize(("later", "said"), ((1, None), (2, "out of order")))
def test_what_waited_behind_the_store_may_come_after_the_publishers_next_connection(later, said):
    made = stream(qos=0, published=0, resent=False, sent=0)
    for _ in range(3):
        made.topic.send()
    assert (made.take(2, stretch=2), made.take(0, later)) == (None, said)
    assert made.take(0, later) == "repeated"


def test_of_a_filter_of_a_while_nothing_is_owed():
    made = stream(owed=False)
    assert (take(made, [7, 7]), made.lost()) == ([None, "repeated"], [])


@pytest.mark.parametrize(
    ("published", "qos", "resent", "lasting", "said"),
    (
        (2, 2, True, True, "repeated"),
        (2, 2, False, False, "repeated"),
        (2, 1, True, False, "repeated"),
        (2, 0, True, True, "repeated"),
        (0, 0, True, True, "repeated"),
        (1, 1, False, False, "repeated"),
        # The broker may send again.
        (2, 1, False, True, "sent again"),
        # The publisher may.
        (1, 1, True, False, "sent again"),
        (1, 0, True, False, "sent again"),
    ),
)
def test_nothing_comes_twice_unless_somebody_may_send_it_again(published, qos, resent, lasting, said):
    made = stream(qos, published, resent, lasting)
    assert take(made, [0, 1, 2, 1, 3]) == [None, None, None, said, None]


def test_first_deliveries_are_in_order():
    made = stream()
    assert take(made, [0, 2, 1]) == [None, None, "out of order"]
    assert made.lost() == list(range(3, 10))


def test_a_publisher_that_begins_anew_may_be_overtaken():
    made = stream()
    assert made.take(1, 2) is None
    assert made.take(0, 1) is None
    assert take(stream(), [1, 0]) == [None, "out of order"]


def test_what_was_missed_at_qos_0_may_be_published_again():
    made = stream(qos=0, published=1)
    assert take(made, [5, 3]) == [None, "sent again"]
    assert take(stream(qos=0, published=2), [5, 3]) == [None, "out of order"]


def test_a_connection_that_ends_has_no_gap():
    made = stream(lasting=False)
    take(made, [0, 1, 3])
    assert made.gaps() == [2]


def test_faults_are_counted_and_told():
    ledger = Ledger()
    made = stream()
    for number in (0, 2, 1, 1):
        ledger.delivery("it", made, number, 1)
    ledger.judge("it", made, made.lost())
    assert ledger.faults == {"out of order": 1, "repeated": 1, "lost": 7}
    assert ledger.told[0] == "out of order: it: soak/1/2 1 at QoS 2, newest 2, stretch 1 after 1"


def test_a_payload_that_is_not_whole_is_seen():
    payload = encode("soak/1/2", 3, 4, 700)
    assert decode(payload) == ("soak/1/2", 3, 4)
    assert decode(payload[:-1]) is None
    assert decode(payload.replace(b"700", b"701")) is None
    assert decode(b"") is None


def test_memory_that_grows_is_seen():
    memory = Memory()
    for size in (100, 130):
        memory.begin()
        for age in range(40):
            memory.sample(age - 10, size + 2 * age)
    early, late = memory.over_lives()
    assert late - early == 30
    early, late = memory.within_life()
    assert late / early > 1.1
    memory.begin()
    assert memory.over_lives() is not None, "a life without samples does not count"
    assert Memory().within_life() is None
    assert is_flat(FLOOR // 4, FLOOR, 1.25) and is_flat(4 * FLOOR, 5 * FLOOR, 1.25)
    assert not is_flat(FLOOR // 4, 2 * FLOOR, 1.25) and not is_flat(4 * FLOOR, 6 * FLOOR, 1.25)
