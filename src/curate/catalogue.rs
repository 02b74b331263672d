//! `curation.json`: what a folder of pairs holds, and the guard against mixing two kinds in one.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::shard::{REFERENCE_FILE, Strings};
use super::{CurateError, FORMAT, Options, Subject};
use crate::formats::{FormatError, write_whole};

/// Name of the file.
pub const CATALOGUE_FILE: &str = "curation.json";

/// The file's content.
pub(super) struct Catalogue {
    path: PathBuf,
    options: Value,
    /// By name.
    subjects: BTreeMap<String, Value>,
    /// By path.
    shards: BTreeMap<String, Value>,
}

fn described(subject: &Subject) -> Value {
    json!({
        "name": subject.name,
        "key": subject.key,
        "anatomy": subject.anatomy,
        "split": subject.split,
        "source": subject.source_name(),
        "sha256": subject.sha256,
        "licence": subject.licence,
        "reference": format!("{}/{REFERENCE_FILE}", subject.folder()),
    })
}

/// `key: there THIS, now THAT` of each key whose value differs.
fn differences(there: &Value, now: &Value) -> Vec<String> {
    let keys: std::collections::BTreeSet<&String> =
        [there, now].into_iter().filter_map(Value::as_object).flat_map(serde_json::Map::keys).collect();
    keys.into_iter()
        .filter(|key| there.get(*key) != now.get(*key))
        .map(|key| {
            let shown = |value: &Value| value.get(key).map_or("nothing".into(), Value::to_string);
            format!("{key}: there {}, now {}", shown(there), shown(now))
        })
        .collect()
}

impl Catalogue {
    /// Takes over what an earlier run with the same options has left, or begins a new folder.
    ///
    /// # Errors
    /// [`CurateError::Folder`] naming what differs, or where other files are there.
    pub(super) fn open(folder: &Path, options: &Options, subjects: &[Subject]) -> Result<Self, CurateError> {
        let path = folder.join(CATALOGUE_FILE);
        let refuse = |problem: String, advice| {
            Err(CurateError::Folder { folder: folder.display().to_string(), problem, advice })
        };
        let mut catalogue =
            Self { path: path.clone(), options: json!(options), subjects: BTreeMap::new(), shards: BTreeMap::new() };
        if !path.is_file() {
            let occupied = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
            if occupied {
                return refuse(format!("holds files but no {CATALOGUE_FILE}"), "choose another folder for -o");
            }
            fs::create_dir_all(folder).map_err(|error| FormatError::io(folder, "create the folder", error))?;
            return Ok(catalogue);
        }
        let text = fs::read_to_string(&path).map_err(|error| FormatError::io(&path, "read", error))?;
        let there: Value = serde_json::from_str(&text)
            .map_err(|error| FormatError::damaged(&path, error.to_string(), "remove the folder and begin anew"))?;
        let about = |format: &Value, version: &Value| json!({"format": format, "version": version});
        let mut differs = differences(
            &about(&there["format"], &there["version"]),
            &about(&json!(FORMAT), &json!(env!("CARGO_PKG_VERSION"))),
        );
        differs.extend(differences(&there["options"], &catalogue.options));
        if !differs.is_empty() {
            let problem = format!("was begun with other options ({})", differs.join("; "));
            return refuse(problem, "give the same ones to go on with it, or another folder for -o");
        }
        for (list, kept, name) in
            [("subjects", &mut catalogue.subjects, "name"), ("shards", &mut catalogue.shards, "path")]
        {
            for entry in there[list].as_array().into_iter().flatten() {
                if let Some(name) = entry[name].as_str() {
                    kept.insert(name.to_owned(), entry.clone());
                }
            }
        }
        for subject in subjects {
            let now = described(subject);
            for (name, there) in &catalogue.subjects {
                if *name == subject.name {
                    let differs = differences(there, &now);
                    if !differs.is_empty() {
                        let problem = format!("holds another subject {name} ({})", differs.join("; "));
                        return refuse(problem, "give it as before, or another folder for -o");
                    }
                } else if there["sha256"] == now["sha256"] {
                    let problem = format!("holds the same bytes as {} under the name {name}", subject.name);
                    return refuse(problem, "give each volume once");
                } else if there["key"] == now["key"] && there["split"] != now["split"] {
                    let problem = format!("holds {name}, the same subject as {}, on the other side", subject.name);
                    return refuse(problem, "a subject stays on one side of the split: name it in --validation or not");
                }
            }
        }
        Ok(catalogue)
    }

    /// Takes in a subject whose shards are all there: path below the folder and metadata of each.
    pub(super) fn add(&mut self, subject: &Subject, shards: &[(String, Strings)]) {
        self.subjects.insert(subject.name.clone(), described(subject));
        for (path, metadata) in shards {
            let text = |key: &str| metadata.get(key).map_or("", String::as_str);
            let number = |key: &str| serde_json::from_str::<Value>(text(key)).ok().filter(Value::is_number);
            let entry = json!({
                "path": path,
                "subject": subject.name,
                "anatomy": subject.anatomy,
                "split": subject.split,
                "method": text("method"),
                "iterations": number("iterations"),
                "views": number("views"),
                "angles": text("angles"),
                "photons": number("photons"),
                "voxel_mm": number("voxel_mm"),
                "psnr_db": number("psnr_db"),
                "parameters_sha256": text("parameters_sha256"),
            });
            self.shards.insert(path.clone(), entry);
        }
    }

    /// Writes the file; `complete` says that no subject is waiting.
    pub(super) fn save(&self, complete: bool) -> Result<(), CurateError> {
        let all = json!({
            "format": FORMAT,
            "version": env!("CARGO_PKG_VERSION"),
            "complete": complete,
            "options": self.options,
            "subjects": self.subjects.values().collect::<Vec<_>>(),
            "shards": self.shards.values().collect::<Vec<_>>(),
        });
        Ok(write_whole(&self.path, |file| writeln!(file, "{all:#}"))?)
    }

    /// Shards: path below the folder, method, path of the subject's reference below the folder.
    pub(super) fn shards(&self) -> Vec<(String, String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.shards
            .values()
            .map(|shard| {
                let reference = self.subjects.get(&text(&shard["subject"])).map(|subject| text(&subject["reference"]));
                (text(&shard["path"]), text(&shard["method"]), reference.unwrap_or_default())
            })
            .collect()
    }
}
