//! The work: subject by subject, geometry by geometry, scan by scan.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use ndarray::Axis;

use super::body::Body;
use super::catalogue::Catalogue;
use super::degrade::{degrade, unexplained};
use super::draw::{self, ELECTRONIC_SIGMA, ScanDraw};
use super::shard::{self, REFERENCE_FILE, Strings};
use super::{CurateError, Options, PICTURE_FILE, Subject, picture};
use crate::compute::cpu::CpuCompute;
use crate::formats::FormatError;
use crate::simulate::acquire;
use crate::simulate::photon_noise::PhotonNoise;

/// What is being done, for a display.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// Shards that have to be made, and those that are there from before.
    Planned {
        /// To make.
        to_make: usize,
        /// There.
        kept: usize,
    },
    /// A step of a subject begins.
    Step {
        /// Its name.
        subject: &'a str,
        /// In words.
        step: &'static str,
    },
    /// A shard is written.
    Made {
        /// Below the folder.
        path: &'a str,
        /// What it says of itself.
        metadata: &'a BTreeMap<String, String>,
    },
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Subjects of this run.
    pub subjects: usize,
    /// Shards made.
    pub made: usize,
    /// Shards that were there.
    pub kept: usize,
    /// The picture.
    pub picture: PathBuf,
}

/// One subject's share of the work.
struct Job<'a> {
    subject: &'a Subject,
    folder: PathBuf,
    /// Hash of each scan's parameters, with the metadata of those that are there.
    scans: Vec<(String, Option<Strings>)>,
    reference_sha256: String,
    has_reference: bool,
}

impl<'a> Job<'a> {
    fn new(options: &Options, folder: &Path, subject: &'a Subject) -> Self {
        let folder = folder.join(subject.split.name()).join(&subject.name);
        let scans = (0..options.scans)
            .map(|index| {
                let sha256 = shard::parameters_sha256(options, subject, Some(index));
                let there = shard::made_already(&folder.join(shard::file_name(index)), &sha256);
                (sha256, there)
            })
            .collect();
        let reference_sha256 = shard::parameters_sha256(options, subject, None);
        let has_reference = shard::made_already(&folder.join(REFERENCE_FILE), &reference_sha256).is_some();
        Self { subject, folder, scans, reference_sha256, has_reference }
    }

    fn to_make(&self) -> Vec<usize> {
        (0..self.scans.len()).filter(|&index| self.scans[index].1.is_none()).collect()
    }

    /// Makes the subject's folder and removes what a killed run has left half written.
    fn clear(&self) -> Result<(), FormatError> {
        let folder = &self.folder;
        fs::create_dir_all(folder).map_err(|error| FormatError::io(folder, "create the folder", error))?;
        let entries = fs::read_dir(folder).map_err(|error| FormatError::io(folder, "read", error))?;
        for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
            if path.extension().is_some_and(|extension| extension == "partial") {
                fs::remove_file(&path).map_err(|error| FormatError::io(&path, "remove", error))?;
            }
        }
        Ok(())
    }
}

/// Makes what is missing in `folder`: all scans of all subjects, the catalogue and the picture.
///
/// `threads` (0: all) are those of projection and reconstruction; the rest runs in the caller's rayon pool. Neither changes a bit.
///
/// # Errors
/// [`CurateError`]; what was finished stays, and the same call goes on from there.
pub fn curate(
    options: &Options,
    subjects: &[Subject],
    folder: &Path,
    threads: usize,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Summary, CurateError> {
    options.check()?;
    let mut catalogue = Catalogue::open(folder, options, subjects)?;
    catalogue.save(false)?;
    let mut compute = CpuCompute::new(threads)?;
    let jobs: Vec<Job<'_>> = subjects.iter().map(|subject| Job::new(options, folder, subject)).collect();
    let to_make: usize = jobs.iter().map(|job| job.to_make().len()).sum();
    let kept = subjects.len() * options.scans - to_make;
    progress(Progress::Planned { to_make, kept });
    for mut job in jobs {
        make(options, &mut job, threads, &mut compute, progress)?;
        let of_folder = job.subject.folder();
        let shards: Vec<(String, Strings)> = job
            .scans
            .into_iter()
            .enumerate()
            .filter_map(|(index, (_, made))| Some((format!("{of_folder}/{}", shard::file_name(index)), made?)))
            .collect();
        catalogue.add(job.subject, &shards);
        catalogue.save(false)?;
    }
    let picture = folder.join(PICTURE_FILE);
    picture::write(folder, &picture, &catalogue.shards())?;
    catalogue.save(true)?;
    Ok(Summary { subjects: subjects.len(), made: to_make, kept, picture })
}

fn make(
    options: &Options,
    job: &mut Job<'_>,
    threads: usize,
    compute: &mut CpuCompute,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), CurateError> {
    let subject = job.subject;
    let name = subject.name.as_str();
    let to_make = job.to_make();
    if to_make.is_empty() && job.has_reference {
        return Ok(());
    }
    progress(Progress::Step { subject: name, step: "reading" });
    job.clear()?;
    let mut body = Body::new(options, subject, threads)?;
    if !job.has_reference {
        shard::write_reference(&job.folder.join(REFERENCE_FILE), options, subject, &body, &job.reference_sha256)?;
    }
    for number in 0..options.geometries {
        let draws: Vec<ScanDraw> = to_make
            .iter()
            .map(|&index| draw::scan(options, name, index))
            .filter(|draw| draw.geometry == number)
            .collect();
        if draws.is_empty() {
            continue;
        }
        let geometry = body.geometry(options, name, &draw::geometry(options, name, number))?;
        // Of the dense views only those that some scan has.
        let views: Vec<usize> =
            draws.iter().flat_map(|draw| draw.views.iter().copied()).collect::<BTreeSet<_>>().into_iter().collect();
        progress(Progress::Step { subject: name, step: "projecting" });
        let dense = body.project(name, &geometry, &views)?;
        for draw in &draws {
            progress(Progress::Step { subject: name, step: draw.by.name() });
            let rows: Vec<usize> = draw.views.iter().filter_map(|view| views.binary_search(view).ok()).collect();
            let mut projections = dense.select(Axis(0), &rows);
            if let Some(photons) = draw.photons {
                let noise = PhotonNoise { photons, electronic_sigma: ELECTRONIC_SIGMA, seed: draw.seed };
                acquire::add_noise(&mut projections, &noise);
            }
            let scan = format!("{name}, scan {}", draw.index);
            let volume = degrade(compute, &scan, draw, &geometry, &projections)?;
            let unexplained = unexplained(compute, &scan, draw, &geometry, (&projections, &volume))?;
            let file = shard::file_name(draw.index);
            let (sha256, made) = &mut job.scans[draw.index];
            let metadata = shard::write(
                &job.folder.join(&file),
                (options, subject, &body),
                (draw, &geometry),
                (&projections, &volume, &unexplained),
                sha256,
            )?;
            progress(Progress::Made { path: &format!("{}/{file}", subject.folder()), metadata: &metadata });
            *made = Some(metadata);
        }
    }
    Ok(())
}
