//! How much a request may ask for and an answer may carry, and how that is checked.

use std::collections::VecDeque;

use tonic::{Response, Status};

use crate::core::queues::consumer::Window;
use crate::core::{Broker, CoreError};
use crate::types::UnixMillis;

use super::convert::Intake;
use super::proto::v1;
use super::status::status;

/// Items of one request that names deliveries, and messages of one batch.
pub(super) const MAX_ITEMS: usize = 10_000;
/// Messages of one answer or page.
pub(super) const MAX_PAGE: usize = 1_000;
/// Entries of a page when nobody says.
pub(super) const DEFAULT_PAGE: usize = 100;
/// Bytes of messages in one answer or frame; one message may overdraw. Most clients take 4 MiB.
pub(super) const FRAME_BYTES: usize = 1 << 20;
/// What one frame of deliveries carries at most.
pub(super) const FRAME: Window = Window { messages: 1000, bytes: FRAME_BYTES };
/// Errors that the answer to a stream of many messages tells of.
pub(super) const FIRST_ERRORS: usize = 100;
/// The window when the client does not say.
const WINDOW: Window = Window { messages: 1000, bytes: 16 << 20 };
/// The widest window, in messages.
const WINDOW_MESSAGES: u32 = 65_535;

/// How a call is answered.
pub(super) type Answer<T> = Result<Response<T>, Status>;

pub(super) fn answer<T>(result: Result<T, CoreError>) -> Answer<T> {
    result.map(Response::new).map_err(|error| status(&error))
}

pub(super) fn intake(broker: &Broker, now: UnixMillis) -> Intake<'_> {
    Intake { limits: broker.limits(), ids: broker.ids(), now, recent: None }
}

/// The number of things asked for: 0 is `default`, what is too much is refused.
pub(super) fn count(field: &str, asked: u32, default: usize, max: usize) -> Result<usize, CoreError> {
    match usize::try_from(asked).unwrap_or(usize::MAX) {
        0 => Ok(default),
        asked if asked <= max => Ok(asked),
        asked => Err(CoreError::invalid(field, format!("{asked} is more than {max}"))),
    }
}

/// The size of a page: 0 is the default, what is too much is as much as there may be.
pub(super) fn page_size(asked: i32) -> Result<usize, CoreError> {
    match usize::try_from(asked) {
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(asked) => Ok(asked.min(MAX_PAGE)),
        Err(_) => Err(CoreError::invalid("page_size", "must not be negative")),
    }
}

/// The fields that an update names, each one of `known`.
pub(super) fn masked(
    mask: Option<prost_types::FieldMask>,
    known: &[&'static str],
) -> Result<Vec<&'static str>, CoreError> {
    let paths = mask.map(|mask| mask.paths).unwrap_or_default();
    if paths.is_empty() {
        return Err(CoreError::invalid("update_mask", "names no field"));
    }
    let find = |path: String| {
        let found = known.iter().copied().find(|&field| field == path);
        found.ok_or_else(|| {
            let may = known.join(", ");
            CoreError::invalid("update_mask", format!("{path:?} is not one of {may}"))
        })
    };
    paths.into_iter().map(find).collect()
}

/// A list that must have something, but not too much.
pub(super) fn some_items(field: &str, len: usize, max: usize) -> Result<(), CoreError> {
    if len == 0 {
        return Err(CoreError::invalid(field, "is empty"));
    }
    at_most_items(field, len, max)
}

/// A list that must not have too much.
pub(super) fn at_most_items(field: &str, len: usize, max: usize) -> Result<(), CoreError> {
    if len > max {
        let (field, len, max) = (field.to_owned(), len as u64, max as u64);
        return Err(CoreError::TooLarge { field, len, max, unit: "entries" });
    }
    Ok(())
}

/// The window that a client asks for.
pub(super) fn window_of(field: &str, window: Option<&v1::Window>) -> Result<Window, CoreError> {
    let Some(window) = window else { return Ok(WINDOW) };
    let messages = match window.max_outstanding_messages {
        0 => WINDOW.messages,
        messages if messages <= WINDOW_MESSAGES => messages as usize,
        messages => {
            let field = format!("{field}.max_outstanding_messages");
            return Err(CoreError::invalid(field, format!("{messages} is more than {WINDOW_MESSAGES}")));
        }
    };
    let bytes = match window.max_outstanding_bytes {
        0 => WINDOW.bytes,
        bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
    };
    Ok(Window { messages, bytes })
}

/// The window as a client is told of it.
pub(super) fn told_window(window: Window) -> v1::Window {
    v1::Window {
        max_outstanding_messages: u32::try_from(window.messages).unwrap_or(u32::MAX),
        max_outstanding_bytes: window.bytes as u64,
    }
}

/// Items that never came in, by their place among all.
pub(super) type Refused = VecDeque<(usize, CoreError)>;

/// The results of what came in, with what did not in its places.
pub(super) fn merged<T>(
    mut results: impl Iterator<Item = Result<T, CoreError>>,
    mut refused: Refused,
) -> impl Iterator<Item = Result<T, CoreError>> {
    let mut place = 0;
    std::iter::from_fn(move || {
        let next = match refused.pop_front_if(|(at, _)| *at == place) {
            Some((_, error)) => Some(Err(error)),
            None => results.next(),
        };
        place += 1;
        next
    })
}

/// What became of the messages of a stream that is answered once.
#[derive(Debug, Default)]
pub(super) struct Sum {
    /// How many were accepted.
    pub(super) accepted: u64,
    /// How many were refused.
    pub(super) rejected: u64,
    /// The first of these.
    pub(super) first_errors: Vec<v1::IndexedError>,
}

impl Sum {
    /// Adds results in their order.
    pub(super) fn add<T>(&mut self, results: impl Iterator<Item = Result<T, CoreError>>) {
        for result in results {
            let Err(error) = result else {
                self.accepted += 1;
                continue;
            };
            if self.first_errors.len() < FIRST_ERRORS {
                let index = self.accepted + self.rejected;
                self.first_errors.push(v1::IndexedError { index, error: Some(super::status::item(&error)) });
            }
            self.rejected += 1;
        }
    }
}
