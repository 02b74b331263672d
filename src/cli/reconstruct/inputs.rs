//! What the arguments of `diffnr reconstruct` name: the scan, its views, the window.

use std::path::{Path, PathBuf};

use ndarray::Axis;

use super::Arguments;
use crate::cli::Failure;
use crate::compute::cpu::ramp_filter::Window;
use crate::error::exit;
use crate::formats::{FormatError, Scan, rtk, scene};

/// A choice of views as in Python's slices, without negative numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ViewRange {
    first: usize,
    end: Option<usize>,
    step: usize,
}

impl ViewRange {
    /// The views chosen out of `views`.
    fn of(&self, views: usize) -> Vec<usize> {
        (self.first..self.end.unwrap_or(views).min(views)).step_by(self.step).collect()
    }
}

/// Parses `A:B:STEP`.
pub(super) fn parse_views(text: &str) -> Result<ViewRange, String> {
    let parts: Vec<&str> = text.split(':').collect();
    if !(2..=3).contains(&parts.len()) {
        return Err("give FIRST:END or FIRST:END:STEP, e.g. 0:180:2 or ::10".into());
    }
    let number = |index: usize, name: &str| match parts.get(index).copied().unwrap_or("") {
        "" => Ok(None),
        part => {
            part.parse::<usize>().map(Some).map_err(|_| format!("{name} is \"{part}\": must be a whole number >= 0"))
        }
    };
    let range = ViewRange {
        first: number(0, "FIRST")?.unwrap_or(0),
        end: number(1, "END")?,
        step: number(2, "STEP")?.unwrap_or(1),
    };
    if range.step == 0 {
        return Err("STEP must be at least 1".into());
    }
    Ok(range)
}

/// Parses `NAME[:CUTOFF]`.
pub(super) fn window(text: &str) -> Result<(Window, f64), String> {
    let (name, cutoff) = text.split_once(':').unwrap_or((text, "1"));
    let names = || Window::NAMES.map(|(name, _)| name).join(", ");
    let window = Window::NAMES.iter().find(|(known, _)| *known == name).map(|(_, window)| *window);
    let window = window.ok_or_else(|| format!("no window \"{name}\"; there are {}", names()))?;
    match cutoff.parse::<f64>() {
        Ok(cutoff) if cutoff > 0.0 && cutoff <= 1.0 => Ok((window, cutoff)),
        _ => Err(format!(
            "cut-off \"{cutoff}\": must be a number in (0, 1], a share of the detector's highest frequency"
        )),
    }
}

fn input(error: FormatError) -> Failure {
    let code = if matches!(error, FormatError::Geometry { .. }) { exit::GEOMETRY } else { exit::INPUT };
    Failure::new(code, &error)
}

/// Reads the scan and takes the views asked for.
pub(super) fn load(arguments: &Arguments) -> Result<Scan, Failure> {
    let path = &arguments.scan;
    let mut scan = if path.is_dir() {
        for (option, given) in [("--projections", arguments.projections.is_some()), ("--i0", arguments.i0.is_some())] {
            if given {
                return Err(Failure {
                    message: format!("{option} belongs to an RTK geometry.xml, but {} is a folder", path.display()),
                    code: exit::USAGE,
                });
            }
        }
        scene::read_scan(path).map_err(input)?
    } else if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("xml")) {
        let stack = match &arguments.projections {
            Some(stack) => stack.clone(),
            None => only_stack(path)?,
        };
        rtk::read(path, &stack, arguments.i0).map_err(input)?
    } else {
        let what = if path.exists() { "is neither a folder nor an .xml" } else { "does not exist" };
        return Err(Failure {
            message: format!("{}: {what}; give a scene folder or RTK's geometry.xml", path.display()),
            code: exit::INPUT,
        });
    };
    if let Some(range) = &arguments.views {
        let all = scan.geometry.views.len();
        let chosen = range.of(all);
        if chosen.is_empty() {
            return Err(Failure {
                message: format!("--views chooses none of the scan's {all} views (0 to {})", all.saturating_sub(1)),
                code: exit::USAGE,
            });
        }
        scan.geometry.views = chosen.iter().map(|&view| scan.geometry.views[view]).collect();
        scan.projections = scan.projections.select(Axis(0), &chosen);
    }
    if !scan.projections.is_standard_layout() {
        scan.projections = scan.projections.as_standard_layout().into_owned();
    }
    Ok(scan)
}

/// The only `.mha` in the geometry's folder.
fn only_stack(geometry: &Path) -> Result<PathBuf, Failure> {
    let folder = geometry.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let stacks: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("mha")))
        .collect();
    match stacks.as_slice() {
        [one] => Ok(one.clone()),
        _ => Err(Failure {
            message: format!(
                "{}: {} .mha files beside it; name the projection stack with --projections",
                geometry.display(),
                stacks.len()
            ),
            code: exit::USAGE,
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn view_ranges_are_python_slices() {
        assert_eq!(parse_views("::4").unwrap().of(10), [0, 4, 8]);
        assert_eq!(parse_views("2:5").unwrap().of(10), [2, 3, 4]);
        assert_eq!(parse_views("7:99:2").unwrap().of(10), [7, 9]);
        assert!(parse_views("5:").unwrap().of(3).is_empty());
        for (text, says) in
            [("4", "FIRST:END"), ("1:2:0", "at least 1"), ("a:2", "FIRST is \"a\""), ("1:-2", "END is \"-2\"")]
        {
            assert!(parse_views(text).unwrap_err().contains(says), "{text}");
        }
    }

    #[test]
    fn windows_have_names_and_cut_offs() {
        assert_eq!(window("hann:0.9").unwrap(), (Window::Hann, 0.9));
        assert_eq!(window("ram-lak").unwrap(), (Window::RamLak, 1.0));
        assert!(window("hanning").unwrap_err().contains("shepp-logan"));
        for cutoff in ["0", "1.1", "NaN", "x", ""] {
            assert!(window(&format!("hann:{cutoff}")).unwrap_err().contains("(0, 1]"), "{cutoff}");
        }
    }
}
