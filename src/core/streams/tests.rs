//! Over an engine, what a crash may leave.

use std::sync::Arc;

use super::define::plain_stream;
use super::read::Start;
use crate::core::{Broker, Limits};
use crate::engine::embedded::Embedded;
use crate::engine::settings::EngineSettings;
use crate::engine::{Cursor, Definition, Engine, Op};
use crate::types::{CursorName, Sequence, StreamName, UnixMillis};

#[tokio::test]
async fn a_cursor_beyond_the_end_is_pulled_back_for_good() {
    let dir = tempfile::TempDir::new().unwrap();
    let open = || {
        let settings = EngineSettings {
            data_dir: dir.path().to_owned(),
            ballast_bytes: 0,
            watermark_free_bytes: 0,
            ..EngineSettings::default()
        };
        Arc::new(Embedded::open(settings).unwrap())
    };
    let name = CursorName::parse("reader").unwrap();
    let engine = open();
    let id = engine.next_target();
    let spec = plain_stream(StreamName::parse("s").unwrap(), &Limits::default(), UnixMillis(1));
    // As a crash leaves it that took back what was committed.
    let cursor = Cursor { sequence: Sequence(7), committed_at: UnixMillis(1) };
    let ops = vec![Op::Define(id, Definition::Stream(spec)), Op::SetCursor(id, name.clone(), Some(cursor))];
    engine.commit(ops).await.unwrap();
    engine.close().unwrap();
    drop(engine);
    for _ in 0..2 {
        let engine = open();
        let broker = Broker::open(Arc::clone(&engine) as Arc<dyn Engine>, Limits::default()).await.unwrap();
        let stream = broker.streams().get("s").unwrap();
        assert_eq!(stream.cursor(&name).unwrap().sequence, Sequence(0));
        let reading = broker.read_stream(&stream, &Start::Committed(name.clone()), None).unwrap();
        assert_eq!(reading.next(), Sequence(1));
        drop(reading);
        broker.drain();
        broker.drained().await;
        drop((stream, broker));
        engine.close().unwrap();
        drop(engine);
        let engine = open();
        let kept = engine.stored().streams.remove(0).cursors.remove(0).1;
        assert_eq!(kept.sequence, Sequence(0), "it is so on disk, too");
        engine.close().unwrap();
    }
}
