//! The XML of RTK's geometry: tags to numbers.

use std::path::Path;

use quick_xml::Reader;
use quick_xml::events::Event;

use super::super::FormatError;

/// Longest text of one tag; a matrix takes about 300 bytes.
const MAX_TEXT_BYTES: usize = 4096;

/// RTK's parameters of one view, in its own axes; lengths in mm.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Projection {
    pub source_to_isocenter: f64,
    pub source_to_detector: f64,
    pub gantry_deg: f64,
    pub out_of_plane_deg: f64,
    pub in_plane_deg: f64,
    pub source_offset_x: f64,
    pub source_offset_y: f64,
    pub projection_offset_x: f64,
    pub projection_offset_y: f64,
    /// Row-major 3 x 4.
    pub matrix: Option<[f64; 12]>,
}

/// Parses the file's text. Values above the first `<Projection>` are the defaults of all that follow.
pub(super) fn parse(path: &Path, text: &str) -> Result<Vec<Projection>, FormatError> {
    let damaged = |problem: String| FormatError::damaged(path, problem, "expected RTK's geometry file, version 3");
    let mut reader = Reader::from_str(text);
    let mut defaults = Projection::default();
    let mut current: Option<Projection> = None;
    let mut projections = Vec::new();
    let (mut tag, mut content) = (None::<String>, String::new());
    let mut rooted = false;
    loop {
        match reader.read_event().map_err(|error| damaged(format!("not valid XML: {error}")))? {
            Event::Start(start) => {
                let name: &str = start.name().0;
                match name {
                    "RTKThreeDCircularGeometry" if !rooted => {
                        rooted = true;
                        check_version(path, &start)?;
                    }
                    _ if !rooted => return Err(damaged(format!("the outermost tag is <{}>", short(name)))),
                    "Projection" if current.is_none() && tag.is_none() => current = Some(defaults),
                    _ if tag.is_some() || name == "Projection" => {
                        return Err(damaged(format!("<{}> stands inside another tag", short(name))));
                    }
                    _ => {
                        tag = Some(name.to_string());
                        content.clear();
                    }
                }
            }
            Event::Text(piece) if tag.is_some() => {
                content.push_str(&piece);
                if content.len() > MAX_TEXT_BYTES {
                    return Err(damaged(format!("<{}> is too long", short(tag.as_deref().unwrap_or_default()))));
                }
            }
            Event::End(_) => {
                if let Some(name) = tag.take() {
                    let index = current.is_some().then_some(projections.len());
                    set(path, current.as_mut().unwrap_or(&mut defaults), &name, content.trim(), index)?;
                } else if let Some(projection) = current.take() {
                    check(path, projections.len(), &projection)?;
                    projections.push(projection);
                } else {
                    break;
                }
            }
            Event::Eof => return Err(damaged("the file ends before </RTKThreeDCircularGeometry>".into())),
            Event::GeneralRef(_) | Event::CData(_) | Event::Empty(_) if rooted => {
                return Err(damaged("entities, CDATA and empty tags do not belong here".into()));
            }
            _ => {}
        }
    }
    if projections.is_empty() {
        return Err(FormatError::field(path, "Projection", "(missing)", "a scan needs at least one view"));
    }
    Ok(projections)
}

fn check_version(path: &Path, start: &quick_xml::events::BytesStart<'_>) -> Result<(), FormatError> {
    let attribute = start.attributes().flatten().find(|attribute| attribute.key.0 == "version");
    let version = attribute.map_or_else(|| "(missing)".to_string(), |attribute| attribute.value.to_string());
    if version == "3" {
        return Ok(());
    }
    Err(FormatError::field(
        path,
        "version",
        version,
        "must be 3; other versions mean other axes: write it again with a current RTK",
    ))
}

fn set(
    path: &Path,
    projection: &mut Projection,
    tag: &str,
    text: &str,
    index: Option<usize>,
) -> Result<(), FormatError> {
    let name = match index {
        Some(index) => format!("Projection[{index}].{}", short(tag)),
        None => short(tag),
    };
    let bad = |requirement: &str| FormatError::field(path, name.clone(), text, requirement);
    if tag == "Matrix" {
        let numbers: Option<Vec<f64>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
        let numbers = numbers.filter(|numbers| numbers.iter().all(|number: &f64| number.is_finite()));
        let matrix = numbers.and_then(|numbers| <[f64; 12]>::try_from(numbers).ok());
        projection.matrix = Some(matrix.ok_or_else(|| bad("must hold 12 finite numbers"))?);
        return Ok(());
    }
    let number = || text.parse::<f64>().ok().filter(|x| x.is_finite()).ok_or_else(|| bad("must be a finite number"));
    match tag {
        "SourceToIsocenterDistance" => projection.source_to_isocenter = number()?,
        "SourceToDetectorDistance" => projection.source_to_detector = number()?,
        "GantryAngle" => projection.gantry_deg = number()?,
        "OutOfPlaneAngle" => projection.out_of_plane_deg = number()?,
        "InPlaneAngle" => projection.in_plane_deg = number()?,
        "SourceOffsetX" => projection.source_offset_x = number()?,
        "SourceOffsetY" => projection.source_offset_y = number()?,
        "ProjectionOffsetX" => projection.projection_offset_x = number()?,
        "ProjectionOffsetY" => projection.projection_offset_y = number()?,
        "RadiusCylindricalDetector" => {
            if number()? != 0.0 {
                return Err(bad("cylindrical detectors are not reconstructed: only flat ones (0)"));
            }
        }
        _ if tag.starts_with("Collimation") => {
            return Err(bad("collimator jaws are not applied; crop the projections to what the jaws leave open"));
        }
        _ => return Err(bad("this tag is not known; a geometry is not guessed at")),
    }
    Ok(())
}

fn check(path: &Path, index: usize, projection: &Projection) -> Result<(), FormatError> {
    let field = |name: &str, value: f64, requirement: &str| {
        Err(FormatError::field(path, format!("Projection[{index}].{name}"), value, requirement))
    };
    let (sid, sdd) = (projection.source_to_isocenter, projection.source_to_detector);
    if sid <= 0.0 {
        return field("SourceToIsocenterDistance", sid, "must be > 0");
    }
    if sdd == 0.0 {
        return field("SourceToDetectorDistance", sdd, "0 means parallel beams in RTK, which are not reconstructed");
    }
    if sdd <= sid {
        return field("SourceToDetectorDistance", sdd, "must be larger than SourceToIsocenterDistance");
    }
    Ok(())
}

/// A tag's name for messages, of bounded length.
fn short(name: &str) -> String {
    name.chars().take(60).collect()
}
