//! The keys that exist, and the refusal of those that do not.

use super::{ConfigError, RawSettings};

/// Sections and their keys, read off the raw structs themselves so that the list cannot differ from what is parsed.
pub(super) fn known() -> Vec<(String, Vec<String>)> {
    let Ok(serde_json::Value::Object(sections)) = serde_json::to_value(RawSettings::default()) else {
        return Vec::new();
    };
    sections
        .into_iter()
        .map(|(section, keys)| {
            let keys = match keys {
                serde_json::Value::Object(keys) => keys.into_iter().map(|(key, _)| key).collect(),
                _ => Vec::new(),
            };
            (section, keys)
        })
        .collect()
}

/// The nearest of `candidates`, if it is near enough to be a slip of the pen: Jaro-Winkler, which forgives endings.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Refuses sections and keys of `table` that do not exist.
pub(super) fn check(table: &toml::Table, origin: &str) -> Result<(), ConfigError> {
    for (section, value) in table {
        match value {
            toml::Value::Table(keys) if !keys.is_empty() => {
                keys.keys().try_for_each(|key| check_path(&format!("{section}.{key}"), origin))?;
            }
            _ => check_path(section, origin)?,
        }
    }
    Ok(())
}

/// Refuses `section.key` (or `section`) where it does not exist.
pub(super) fn check_path(path: &str, origin: &str) -> Result<(), ConfigError> {
    let known = known();
    let (section, key) = path.split_once('.').map_or((path, None), |(section, key)| (section, Some(key)));
    let unknown = |nearest: Option<String>, known: String| {
        Err(ConfigError::UnknownKey { path: path.into(), origin: origin.into(), nearest, known })
    };
    let Some((_, keys)) = known.iter().find(|(name, _)| name == section) else {
        // A key written outside its section is as common as a misspelt section.
        let elsewhere = known.iter().find(|(_, keys)| key.is_none() && keys.iter().any(|k| k == section));
        let near = elsewhere.map(|(name, _)| format!("{name}.{section}")).or_else(|| {
            nearest(section, known.iter().map(|(name, _)| name))
                .map(|name| key.map_or(name.clone(), |key| format!("{name}.{key}")))
        });
        let sections: Vec<String> = known.iter().map(|(name, _)| format!("[{name}]")).collect();
        return unknown(near, sections.join(", "));
    };
    match key {
        Some(key) if !keys.iter().any(|k| k == key) => {
            let elsewhere = known.iter().find(|(_, keys)| keys.iter().any(|k| k == key));
            let near = nearest(key, keys.iter())
                .map(|near| format!("{section}.{near}"))
                .or_else(|| elsewhere.map(|(name, _)| format!("{name}.{key}")));
            unknown(near, keys.join(", "))
        }
        _ => Ok(()),
    }
}
