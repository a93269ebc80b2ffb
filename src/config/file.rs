//! The TOML layer.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::entries::{ENTRIES, Entry};
use super::{ConfigError, Place, Settings, nearest, set};

/// Puts what `text` says into `settings`; `path` is for the errors alone.
pub(super) fn apply(settings: &mut Settings, path: &Path, text: &str) -> Result<(), ConfigError> {
    let place = |offset: usize| {
        let line = text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
        Place::File(path.to_owned(), line)
    };
    let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        place: place(error.span().map_or(0, |span| span.start)),
        problem: error.message().to_owned(),
    })?;

    for (section, content) in document.get_ref() {
        let name: &str = section.get_ref();
        if !ENTRIES.iter().any(|entry| entry.split().0 == name) {
            return Err(ConfigError::UnknownKey {
                place: place(section.span().start),
                key: name.to_owned(),
                nearest: nearest(name, ENTRIES.iter().map(|entry| entry.split().0)),
            });
        }
        let DeValue::Table(content) = content.get_ref() else {
            return Err(ConfigError::Syntax {
                place: place(section.span().start),
                problem: format!("{name} is a section, written [{name}]"),
            });
        };
        for (key, value) in content {
            let at = || place(key.span().start);
            let key = format!("{name}.{}", key.get_ref());
            let Some(entry) = ENTRIES.iter().find(|entry| entry.key == key) else {
                let nearest = nearest(&key, ENTRIES.iter().map(|entry| entry.key));
                return Err(ConfigError::UnknownKey { place: at(), key, nearest });
            };
            let written = plain(value.get_ref()).ok_or_else(|| not_plain(entry, at()))?;
            set(settings, entry, &written, at)?;
        }
    }
    Ok(())
}

/// The text of a value that is one word: a string, or a decimal integer.
fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        _ => None,
    }
}

fn not_plain(entry: &Entry, place: Place) -> ConfigError {
    ConfigError::Syntax { place, problem: format!("{} takes a string or a whole number", entry.key) }
}
