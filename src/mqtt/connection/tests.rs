//! What a connection costs.

use super::*;

fn size_of_future<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn an_idle_connection_is_small() {
    let size = size_of_future(run);
    assert!(size <= 2048, "the future of a connection has {size} bytes");
}
