//! Making, changing and deleting streams; what is refused.

use stafett::grpc::proto::v1;
use stafett::grpc::proto::v1beta1;
use stafett::grpc::proto::v1beta1::StartFrom;
use stafett::grpc::proto::v1beta1::read_response::Event;
use tonic::Code;
use tonic_types::StatusExt;

use super::{Logs, counted, from_first, named};
use crate::harness::Broker;
use crate::queue::{field, got, reason, refused, seconds};

#[tokio::test]
async fn a_stream_is_made_changed_listed_and_deleted() {
    let broker = Broker::start().await;
    let mut logs = Logs::of(&broker).await;
    let given = v1beta1::Stream { max_age: seconds(60), max_messages: 5, ..named("s", &["a/+", "b", "a/+"]) };
    let made = logs.create(given.clone()).await;
    let filters = vec!["a/+".to_owned(), "b".to_owned()];
    assert_eq!((&made.filters, made.max_age, made.max_messages), (&filters, seconds(60), 5));
    assert!(made.max_bytes > 1 << 30, "the default");

    let again = |if_not_exists, max_age| v1beta1::CreateStreamRequest {
        stream: Some(v1beta1::Stream { max_age, ..given.clone() }),
        if_not_exists,
    };
    assert_eq!(got(logs.logs.create_stream(again(true, seconds(60)))).await.stream.unwrap(), made);
    assert_eq!(refused(logs.logs.create_stream(again(false, seconds(60)))).await.code(), Code::AlreadyExists);
    let differs = refused(logs.logs.create_stream(again(true, None))).await;
    let told = "with other settings: max_age is 60s, asked was none";
    assert!(differs.code() == Code::AlreadyExists && differs.message().ends_with(told), "{differs:?}");

    let update = v1beta1::UpdateStreamRequest {
        stream: Some(named("s", &["c"])),
        update_mask: Some(prost_types::FieldMask { paths: vec!["filters".into(), "max_age".into()] }),
    };
    let changed = got(logs.logs.update_stream(update)).await.stream.unwrap();
    assert_eq!((changed.filters, changed.max_age, changed.max_messages), (vec!["c".into()], None, 5));
    assert_eq!(logs.publish("b", "no").await.matched_streams, 0);
    assert_eq!(logs.publish("c", "yes").await.matched_streams, 1);
    assert_eq!(logs.all().await, [(1, "yes".to_owned())]);

    for n in 0..4 {
        logs.create(named(&format!("p{n}"), &[])).await;
    }
    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1beta1::ListStreamsRequest { name_prefix: "p".into(), page_size: 3, page_token };
        let page = got(logs.logs.list_streams(request)).await;
        names.extend(page.streams.into_iter().map(|stream| stream.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["p0", "p1", "p2", "p3"]);

    let mut reader = logs.read(from_first()).await;
    reader.take(1).await;
    assert!(matches!(reader.hear().await, Event::CaughtUp(_)));
    let delete = v1beta1::DeleteStreamRequest { name: "s".into() };
    assert_eq!(got(logs.logs.delete_stream(delete.clone())).await.deleted_messages, 1);
    assert!(matches!(reader.hear().await, Event::Closing(_)));
    assert_eq!(reader.next().await.unwrap_err().code(), Code::NotFound);
    assert_eq!(refused(logs.logs.delete_stream(delete)).await.code(), Code::NotFound);
    assert_eq!(logs.publish("c", "gone").await.matched_streams, 0);
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let (_broker, mut logs) = Logs::start().await;
    logs.count("t/1", 0..3).await;
    let create = |stream| v1beta1::CreateStreamRequest { stream: Some(stream), if_not_exists: false };
    let wrong = [
        (named("", &[]), "stream.name"),
        (named("a b", &[]), "stream.name"),
        (named("a\u{7}b", &[]), "stream.name"),
        (named("x", &["a/#/b"]), "stream.filters[0]"),
        (named("x", &["a", "$queue/q"]), "stream.filters[1]"),
        (named("x", &["$replay/first/a"]), "stream.filters[0]"),
        (v1beta1::Stream { max_age: seconds(0), ..named("x", &[]) }, "stream.max_age"),
        (v1beta1::Stream { max_age: seconds(-1), ..named("x", &[]) }, "stream.max_age"),
    ];
    for (stream, named) in wrong {
        let status = refused(logs.logs.create_stream(create(stream))).await;
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, named));
    }

    let read = |start: StartFrom, change: fn(&mut v1beta1::ReadRequest)| {
        let mut request = v1beta1::ReadRequest { start: start.into(), ..from_first() };
        change(&mut request);
        request
    };
    let wrong = [
        (read(StartFrom::First, |r| r.stream = "a\nb".into()), Code::InvalidArgument, "stream"),
        (read(StartFrom::First, |r| r.stream = "nothing".into()), Code::NotFound, ""),
        (read(StartFrom::First, |r| r.sequence = 1), Code::InvalidArgument, "sequence"),
        (read(StartFrom::First, |r| r.cursor = "c".into()), Code::InvalidArgument, "cursor"),
        (read(StartFrom::Sequence, |_| {}), Code::InvalidArgument, "sequence"),
        (read(StartFrom::Sequence, |r| r.sequence = 5), Code::OutOfRange, "sequence"),
        (read(StartFrom::Time, |_| {}), Code::InvalidArgument, "time"),
        (read(StartFrom::Committed, |r| r.cursor = "nobody".into()), Code::NotFound, ""),
        (read(StartFrom::Committed, |_| {}), Code::InvalidArgument, "cursor"),
        (read(StartFrom::First, |r| r.start = 77), Code::InvalidArgument, "start"),
        (read(StartFrom::First, |r| r.topic_filter = "a/#/b".into()), Code::InvalidArgument, "topic_filter"),
        (
            read(StartFrom::First, |r| r.heartbeat_interval = seconds(0)),
            Code::InvalidArgument,
            "heartbeat_interval",
        ),
    ];
    for (request, code, named) in wrong {
        let said = format!("{request:?}");
        let status = refused(logs.logs.read(request)).await;
        assert_eq!((status.code(), field(&status).as_str()), (code, named), "{said}");
    }
    // The next one is not there yet, but may be waited for.
    let mut next = logs.read(read(StartFrom::Sequence, |r| r.sequence = 4)).await;
    assert!(matches!(next.hear().await, Event::CaughtUp(_)));
    logs.count("t/1", 3..4).await;
    assert_eq!(next.take(1).await, counted(4, 3..4));
    // A filter that nothing matches finds nothing.
    let nothing = v1beta1::ReadRequest { topic_filter: "u/#".into(), follow: false, ..from_first() };
    assert_eq!(logs.read(nothing).await.rest().await, []);

    let commit = |cursor: &str, sequence| v1beta1::CommitCursorRequest {
        stream: "s".into(),
        cursor: cursor.into(),
        sequence,
        rewind: false,
    };
    let beyond = refused(logs.logs.commit_cursor(commit("c", 5))).await;
    assert_eq!((beyond.code(), field(&beyond).as_str()), (Code::OutOfRange, "sequence"));
    let name = refused(logs.logs.commit_cursor(commit("c\u{1}", 1))).await;
    assert_eq!((name.code(), field(&name).as_str()), (Code::InvalidArgument, "cursor"));
    let delete = v1beta1::DeleteCursorRequest { stream: "s".into(), cursor: "c".into() };
    assert_eq!(refused(logs.logs.delete_cursor(delete)).await.code(), Code::NotFound);
}

#[tokio::test]
async fn an_append_is_refused_where_another_sequence_comes_next() {
    let (_broker, mut logs) = Logs::start().await;
    let first = logs.append(&["0", "1"], Some(1)).await.unwrap();
    assert_eq!((first.first_sequence, first.last_sequence), (1, 2));
    let status = logs.append(&["2"], Some(2)).await.unwrap_err();
    let details = status.get_error_details();
    assert_eq!((status.code(), reason(&details)), (Code::Aborted, "OTHER_SEQUENCE"));
    assert_eq!(details.error_info().unwrap().metadata["next_sequence"], "3");
    assert_eq!(logs.all().await, counted(1, 0..2));

    let append = |message| v1beta1::AppendRequest {
        stream: "s".into(),
        messages: vec![crate::queue::message("fine"), message],
        expected_next_sequence: None,
    };
    let wrong = [
        (v1::Message { topic: "$queue/q".into(), ..Default::default() }, "messages[1].topic"),
        (v1::Message { topic: "a/+".into(), ..Default::default() }, "messages[1].topic"),
        (v1::Message { retain: true, ..Default::default() }, "messages[1].retain"),
        (v1::Message { dedup_id: "d".into(), ..Default::default() }, "messages[1].dedup_id"),
        (v1::Message { priority: Some(1), ..Default::default() }, "messages[1].priority"),
    ];
    for (message, named) in wrong {
        let status = refused(logs.logs.append(append(message))).await;
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, named));
    }
    let nothing = v1beta1::AppendRequest { messages: Vec::new(), ..append(v1::Message::default()) };
    assert_eq!(field(&refused(logs.logs.append(nothing)).await), "messages");
    assert_eq!(logs.state().await.next_sequence, 3);

    // What is larger than all that is kept is refused, whole.
    let small = v1beta1::UpdateStreamRequest {
        stream: Some(v1beta1::Stream { max_bytes: 1000, ..named("s", &[]) }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["max_bytes".into()] }),
    };
    got(logs.logs.update_stream(small)).await;
    let large = "x".repeat(2000);
    let status = logs.append(&[&large], None).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status.get_error_details())),
        (Code::FailedPrecondition, "STREAM_TOO_SMALL")
    );
    assert_eq!(logs.all().await, counted(1, 0..2));
}
