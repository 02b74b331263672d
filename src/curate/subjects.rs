//! Who stands in the beam, and on which side of the split.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{CurateError, hex};
use crate::formats::FormatError;

/// Ends of names that say: not a CT volume.
const MASKS: [&str; 4] = ["_labels", "_lungs", "_gtv", "_mask"];

/// Side of the split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// To learn from.
    Train,
    /// Never learnt from.
    Validation,
}

impl Split {
    /// Name of its folder.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }
}

/// Where a subject comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A CT volume in HU (NIfTI), as it is, or deformed: another body for each number.
    Ct(PathBuf, Option<usize>),
    /// The chest of a seed.
    Thorax(u64),
    /// A body of random ellipsoids, of a seed.
    Ellipsoids(u64),
}

/// A subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its folder's name: the file's name without `.nii` and `.gz`.
    pub name: String,
    /// Whose body it is: two volumes of one person have the same key, and stand on the same side of the split.
    pub key: String,
    /// Part of the body.
    pub anatomy: String,
    /// Where it comes from.
    pub source: Source,
    /// SHA-256 of the file's bytes, or of the phantom's name and seed, in hexadecimal.
    pub sha256: String,
    /// Side of the split.
    pub split: Split,
    /// Licence of the data, where one was given.
    pub licence: Option<String>,
}

impl Subject {
    /// The file's name without folders, or what the phantom is made by.
    #[must_use]
    pub fn source_name(&self) -> String {
        match &self.source {
            Source::Ct(path, None) => file_name(path),
            Source::Ct(path, Some(number)) => format!("{}, deformed {number}", file_name(path)),
            Source::Thorax(seed) => format!("thorax, seed {seed}"),
            Source::Ellipsoids(seed) => format!("ellipsoids, seed {seed}"),
        }
    }

    /// Folder below the curation's, with `/`.
    #[must_use]
    pub fn folder(&self) -> String {
        format!("{}/{}", self.split.name(), self.name)
    }
}

/// What the user asks for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `PATH` or `ANATOMY=PATH`.
    pub volumes: Vec<String>,
    /// Number of phantoms.
    pub phantoms: usize,
    /// Deformed copies of each volume that is learnt from.
    pub deformed: usize,
    /// Names or keys of the subjects that are kept out.
    pub validation: Vec<String>,
    /// `TEXT` for all volumes, or `NAME=TEXT`.
    pub licences: Vec<String>,
    /// Seed of the phantoms.
    pub seed: u64,
}

/// Subjects sorted by name, and files that were left out, with the reason.
#[derive(Debug, Clone, Default)]
pub struct Gathered {
    /// The subjects.
    pub subjects: Vec<Subject>,
    /// Left out by their names.
    pub left_out: Vec<String>,
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whose body a volume shows: what follows the first `_` of its name (`chest_lidc0001`: `lidc0001`), the whole name where there is none. Thus
/// `headneck_acrin001` and `abdomen_acrin001` are one subject.
fn key_of(name: &str) -> &str {
    name.split_once('_').map_or(name, |(_, key)| key)
}

fn sha256_of(path: &Path) -> Result<String, FormatError> {
    let error = |error| FormatError::io(path, "read", error);
    let mut hash = Sha256::new();
    let mut file = File::open(path).map_err(error)?;
    let mut block = vec![0_u8; 1 << 20];
    loop {
        match io::Read::read(&mut file, &mut block).map_err(error)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&block[..read]),
        }
    }
}

/// Why a name says that its file is no volume to be scanned.
fn left_out(name: &str, anatomy: &str) -> Option<&'static str> {
    if MASKS.iter().any(|end| name.ends_with(end)) {
        return Some("a mask by its name");
    }
    anatomy.ends_with("slices").then_some("a stack of unrelated slices by its name: no body to scan")
}

fn volume(text: &str) -> Result<(PathBuf, String, Option<String>), CurateError> {
    let (given, path) = match text.split_once('=') {
        // A file whose own name holds the sign is a file.
        Some((anatomy, path)) if !Path::new(text).is_file() => (Some(anatomy.to_owned()), PathBuf::from(path)),
        _ => (None, PathBuf::from(text)),
    };
    let file = file_name(&path);
    let stem = file.strip_suffix(".gz").unwrap_or(&file);
    let Some(name) = stem.strip_suffix(".nii").filter(|name| !name.is_empty()) else {
        return Err(CurateError::subject(text, "not a NIfTI volume by its name", "give .nii or .nii.gz"));
    };
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.+".contains(c)) && !text.is_empty();
    if !plain(name) || name.starts_with('.') || given.as_deref().is_some_and(|anatomy| !plain(anatomy)) {
        return Err(CurateError::subject(
            text,
            "names and anatomies become folders and tokens",
            "use letters, digits, '_', '-', '+' and '.' only, and no leading '.'",
        ));
    }
    Ok((path, name.to_owned(), given))
}

/// Finds subjects, their anatomies, hashes, licences and sides.
///
/// # Errors
/// [`CurateError`] for names that are no volumes, subjects given twice (by name or content), names in `validation` or `licences` that
/// match nothing, files that cannot be read.
pub fn gather(request: &Request) -> Result<Gathered, CurateError> {
    let mut gathered = Gathered::default();
    let subjects = &mut gathered.subjects;
    for text in &request.volumes {
        let (path, name, given) = volume(text)?;
        let anatomy = given.unwrap_or_else(|| name.split('_').next().unwrap_or(&name).to_owned());
        if let Some(reason) = left_out(&name, &anatomy) {
            gathered.left_out.push(format!("{}: {reason}", file_name(&path)));
            continue;
        }
        let sha256 = sha256_of(&path)?;
        let key = key_of(&name).to_owned();
        let source = Source::Ct(path, None);
        subjects.push(Subject { name, key, anatomy, source, sha256, split: Split::Train, licence: None });
    }
    for number in 0..request.phantoms {
        // Half of the phantoms are chests, half are bodies of no kind.
        let seed = request.seed.wrapping_mul(1_000_003).wrapping_add(number as u64);
        let (kind, source) =
            if number % 2 == 0 { ("thorax", Source::Thorax(seed)) } else { ("ellipsoids", Source::Ellipsoids(seed)) };
        let key = format!("{kind}{number:04}");
        let sha256 = hex(&Sha256::digest(format!("phantom {kind} {seed}")));
        let licence = Some("made by diffnr, free of rights".to_owned());
        let name = format!("phantom_{key}");
        subjects.push(Subject { name, key, anatomy: "phantom".into(), source, sha256, split: Split::Train, licence });
    }
    if subjects.is_empty() {
        return Err(CurateError::setting("VOLUMES", "none", "give CT volumes, or --phantoms N"));
    }
    subjects.sort_by(|a, b| a.name.cmp(&b.name));
    check_names(subjects)?;
    split(subjects, &request.validation)?;
    license(subjects, &request.licences)?;
    check_contents(subjects)?;
    let copies: Vec<Subject> = subjects.iter().flat_map(|subject| deformed(subject, request.deformed)).collect();
    subjects.extend(copies);
    subjects.sort_by(|a, b| a.name.cmp(&b.name));
    check_names(subjects)?;
    Ok(gathered)
}

/// Two of one name would be written over each other.
fn check_names(subjects: &[Subject]) -> Result<(), CurateError> {
    for pair in subjects.windows(2) {
        if pair[0].name == pair[1].name {
            return Err(CurateError::subject(
                &pair[0].name,
                "two volumes have this name",
                "a subject's name is its file's: give each once, or rename one",
            ));
        }
    }
    Ok(())
}

/// Deformed copies of a CT volume; none of one that is kept out, which is to be what it is.
fn deformed(subject: &Subject, copies: usize) -> impl Iterator<Item = Subject> {
    let path = match &subject.source {
        Source::Ct(path, None) if subject.split == Split::Train => Some(path.clone()),
        _ => None,
    };
    path.into_iter().flat_map(move |path| {
        (1..=copies).map(move |number| Subject {
            name: format!("{}_deformed{number}", subject.name),
            source: Source::Ct(path.clone(), Some(number)),
            sha256: hex(&Sha256::digest(format!("{} deformed {number}", subject.sha256))),
            ..subject.clone()
        })
    })
}

fn split(subjects: &mut [Subject], validation: &[String]) -> Result<(), CurateError> {
    for wanted in validation {
        let keys: Vec<String> =
            subjects.iter().filter(|s| s.name == *wanted || s.key == *wanted).map(|s| s.key.clone()).collect();
        if keys.is_empty() {
            let known: Vec<&str> = subjects.iter().map(|s| s.name.as_str()).collect();
            let requirement = format!("is no subject here; there are {}", known.join(", "));
            return Err(CurateError::setting("--validation", wanted, requirement));
        }
        for subject in subjects.iter_mut().filter(|s| keys.contains(&s.key)) {
            subject.split = Split::Validation;
        }
    }
    Ok(())
}

fn license(subjects: &mut [Subject], licences: &[String]) -> Result<(), CurateError> {
    // What is said of one stands above what is said of all, whatever the order.
    for (of_one, text) in [false, true].into_iter().flat_map(|of_one| licences.iter().map(move |text| (of_one, text))) {
        let (wanted, licence) = match text.split_once('=') {
            Some((name, licence)) => (Some(name), licence),
            None => (None, text.as_str()),
        };
        if wanted.is_some() != of_one {
            continue;
        }
        let mut matched = false;
        for subject in subjects.iter_mut().filter(|s| matches!(s.source, Source::Ct(..))) {
            if wanted.is_none_or(|name| subject.name == name) {
                subject.licence = Some(licence.to_owned());
                matched = true;
            }
        }
        if let Some(name) = wanted.filter(|_| !matched) {
            return Err(CurateError::setting("--licence", name, "is no volume here; write NAME=TEXT, or TEXT for all"));
        }
    }
    Ok(())
}

/// The same bytes under two names would stand on both sides unseen.
fn check_contents(subjects: &[Subject]) -> Result<(), CurateError> {
    for (number, one) in subjects.iter().enumerate() {
        if let Some(other) = subjects[..number].iter().find(|other| other.sha256 == one.sha256) {
            return Err(CurateError::subject(
                &one.name,
                format!("holds the same bytes as {}", other.name),
                "give each volume once",
            ));
        }
    }
    Ok(())
}
