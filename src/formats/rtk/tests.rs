#![allow(clippy::unwrap_used)]
use std::fs;

use ndarray::Array;
use proptest::prelude::*;

use super::*;
use crate::geometry::CircularOrbit;

/// Written by RTK (itk-rtk 2.7.0.post1, ThreeDCircularProjectionGeometryXMLFileWriter) for one view with all parameters set; its matrix is the
/// reference that our rotations and signs are held against.
const BY_RTK: &str = r#"<?xml version="1.0"?>
<!DOCTYPE RTKGEOMETRY>
<RTKThreeDCircularGeometry version="3">
    <SourceToIsocenterDistance>1000</SourceToIsocenterDistance>
    <SourceToDetectorDistance>1500</SourceToDetectorDistance>
    <SourceOffsetX>2</SourceOffsetX>
    <SourceOffsetY>-3</SourceOffsetY>
    <ProjectionOffsetX>4</ProjectionOffsetX>
    <ProjectionOffsetY>-7</ProjectionOffsetY>
    <InPlaneAngle>11</InPlaneAngle>
    <OutOfPlaneAngle>5</OutOfPlaneAngle>
  <Projection>
    <GantryAngle>30</GantryAngle>
    <Matrix>
        -1288.63988635089   -284.950052827994    712.891794523464                5000
         185.694710590192   -1467.18631645093   -250.794312690624               -8500
        0.498097349045873 -0.0871557427476582   0.862729915662821               -1000
    </Matrix>
  </Projection>
</RTKThreeDCircularGeometry>
"#;

fn stack(views: usize, rows: usize, columns: usize) -> MetaImage {
    MetaImage {
        values: Array::from_shape_fn((views, rows, columns), |(n, v, u)| (100 * n + 10 * v + u) as f32),
        offset_mm: DVec3::new(-30.0, -20.0, 0.0),
        spacing_mm: DVec3::new(2.0, 3.0, 1.0),
        element: Element::F32,
    }
}

fn read_with(xml: &str, image: &MetaImage) -> Result<Scan, FormatError> {
    let folder = tempfile::tempdir().unwrap();
    let (geometry, path) = (folder.path().join("geometry.xml"), folder.path().join("stack.mha"));
    fs::write(&geometry, xml).unwrap();
    metaimage::write(&path, image.values.view(), image.offset_mm, image.spacing_mm).unwrap();
    read(&geometry, &path, None)
}

#[test]
fn poses_send_points_where_rtks_matrix_sends_them() {
    let image = stack(1, 5, 7);
    let scan = read_with(BY_RTK, &image).unwrap();
    let pose = scan.geometry.views[0];
    // RTK's GetSourcePosition of the same geometry.
    assert!((theirs(pose.source_mm) - DVec3::new(500.181_611_94, -89.709_252_32, 861.268_602_19)).length() < 1e-7);
    let matrix = parse(Path::new("x"), BY_RTK).unwrap()[0].matrix.unwrap();
    for point in [DVec3::new(10.0, -20.0, 30.0), DVec3::new(-80.0, 5.0, 60.0), DVec3::ZERO] {
        let row =
            |r: usize| DVec3::new(matrix[4 * r], matrix[4 * r + 1], matrix[4 * r + 2]).dot(point) + matrix[4 * r + 3];
        // To indices of the stack; our row 0 is its last.
        let (i, j) = ((row(0) / row(2) + 30.0) / 2.0, (row(1) / row(2) + 20.0) / 3.0);
        let (u, v, _) = pose.project(ours(point)).unwrap();
        // The matrix is printed to 15 digits.
        assert!((u - i).abs() < 1e-9 && (v - (4.0 - j)).abs() < 1e-9, "{u} {i} {v} {j}");
    }
    // Values go with their rows.
    assert_eq!(scan.projections[[0, 0, 6]], image.values[[0, 4, 6]]);
}

#[test]
fn simple_cases_computed_by_hand() {
    let view = |angle: &str, more: &str| {
        let xml = format!(
            "<RTKThreeDCircularGeometry version=\"3\"><SourceToIsocenterDistance>1000</SourceToIsocenterDistance>\
             <SourceToDetectorDistance>1500</SourceToDetectorDistance><Projection><GantryAngle>{angle}</GantryAngle>{more}\
             </Projection></RTKThreeDCircularGeometry>"
        );
        let image = MetaImage { offset_mm: DVec3::new(-3.0, -3.0, 0.0), ..stack(1, 3, 4) };
        read_with(&xml, &image).unwrap().geometry.views[0]
    };
    let near = |a: DVec3, x: f64, y: f64, z: f64| assert!((a - DVec3::new(x, y, z)).length() < 1e-9, "{a}");
    // Angle 0 is ours, too: an ideal orbit with columns along +y and rows along -z.
    let ideal = CircularOrbit {
        detector: Detector { columns: 4, rows: 3 },
        pitch_u_mm: 2.0,
        pitch_v_mm: 3.0,
        ..CircularOrbit::default()
    };
    for angle in [0.0_f64, 90.0, 217.0] {
        let (found, expected) = (view(&angle.to_string(), ""), ideal.pose(angle.to_radians()));
        for (a, b) in [
            (found.source_mm, expected.source_mm),
            (found.detector_origin_mm, expected.detector_origin_mm),
            (found.column_step_mm, expected.column_step_mm),
            (found.row_step_mm, expected.row_step_mm),
        ] {
            near(a, b.x, b.y, b.z);
        }
    }
    // Offsets at angle 0: x of RTK is our y, y of RTK our z.
    let offset = view("0", "<ProjectionOffsetX>7</ProjectionOffsetX><ProjectionOffsetY>5</ProjectionOffsetY>");
    near(offset.detector_origin_mm, -500.0, -3.0 + 7.0, 3.0 + 5.0);
    near(view("0", "<SourceOffsetX>7</SourceOffsetX><SourceOffsetY>5</SourceOffsetY>").source_mm, 1000.0, 7.0, 5.0);
    // In-plane by 90 degrees turns RTK's x (our y) into its y (our z).
    near(view("0", "<InPlaneAngle>90</InPlaneAngle>").column_step_mm, 0.0, 0.0, 2.0);
    // Out of plane by 90 degrees about RTK's x turns its z (the source) into -y (our -z).
    near(view("0", "<OutOfPlaneAngle>90</OutOfPlaneAngle>").source_mm, 0.0, 0.0, -1000.0);
}

#[test]
fn counts_become_line_integrals_only_with_their_open_field() {
    let path = Path::new("stack.mha");
    let mut image = stack(1, 2, 2);
    image.element = Element::U16;
    image.values = Array::from_shape_vec((1, 2, 2), vec![1000.0, 500.0, 1.0, 0.0]).unwrap();
    let values = line_integrals(path, &image, Some(1000.0)).unwrap();
    // Rows are turned over: the second row on disk comes first.
    let expected = [1000.0_f64.ln(), 1000.0_f64.ln(), 0.0, 2.0_f64.ln()];
    assert!(values.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6));
    assert!(line_integrals(path, &image, None).unwrap_err().to_string().contains("counts"));
    assert!(line_integrals(path, &image, Some(f64::NAN)).is_err());
    image.element = Element::I16;
    assert!(line_integrals(path, &image, None).unwrap_err().to_string().contains("MET_FLOAT"));
}

#[test]
fn malformed_geometries_are_refused_by_tag() {
    let refuses = |from: &str, to: &str, words: &[&str]| {
        assert!(BY_RTK.contains(from), "{from}");
        let error = read_with(&BY_RTK.replace(from, to), &stack(1, 5, 7)).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    };
    refuses("version=\"3\"", "version=\"2\"", &["version", "2", "must be 3"]);
    refuses(" version=\"3\"", "", &["version", "missing"]);
    refuses("<GantryAngle>30<", "<GantryAngle>thirty<", &["Projection[0].GantryAngle", "thirty"]);
    refuses("<GantryAngle>30<", "<GantryAngle>nan<", &["Projection[0].GantryAngle", "finite"]);
    refuses(">1500<", ">0<", &["SourceToDetectorDistance", "parallel"]);
    refuses(">1500<", ">900<", &["SourceToDetectorDistance", "900", "larger"]);
    refuses(">1000<", ">-1000<", &["SourceToIsocenterDistance", "-1000"]);
    refuses("<GantryAngle>30<", "<GantryAngle>31<", &["Projection[0].Matrix", "parameters"]);
    refuses(
        "  <Projection>",
        "  <RadiusCylindricalDetector>900</RadiusCylindricalDetector><Projection>",
        &["cylindrical"],
    );
    refuses("  <Projection>", "  <CollimationUInf>9</CollimationUInf><Projection>", &["jaws"]);
    refuses("  <Projection>", "  <Wobble>9</Wobble><Projection>", &["Wobble", "not known"]);
    refuses("<SourceOffsetX>2</SourceOffsetX>", "<SourceOffsetX>2", &["inside another tag"]);
    refuses("-1000\n", "\n", &["Matrix", "12"]);
    refuses("RTKThreeDCircularGeometry", "Geometry", &["outermost"]);
    refuses("</RTKThreeDCircularGeometry>", "", &["ends before"]);
    refuses(">30<", ">&thirty;<", &["entities"]);
    let error = read_with(BY_RTK, &stack(2, 5, 7)).unwrap_err().to_string();
    assert!(error.contains("DimSize[2]") && error.contains('2') && error.contains("geometry.xml"), "{error}");
    let empty = "<RTKThreeDCircularGeometry version=\"3\"></RTKThreeDCircularGeometry>";
    assert!(read_with(empty, &stack(1, 5, 7)).unwrap_err().to_string().contains("at least one view"));
}

#[test]
fn the_default_grid_covers_what_the_detector_sees() {
    let orbit = CircularOrbit { detector: Detector { columns: 100, rows: 40 }, ..CircularOrbit::default() };
    let grid = default_grid(&orbit.over_arc(3, 0.4, 6.0));
    assert_eq!(grid.voxels, [100, 100, 40]);
    assert!((grid.voxel_mm - DVec3::splat(1.6 / 1.5)).length() < 1e-9);
    assert!(grid.centre_mm.length() < 1e-9);
    // Half-fan: shifted by 30 pixels of 1.6 mm, the far edge reaches 80 pixels.
    let half_fan = CircularOrbit { offset_u_mm: 48.0, offset_v_mm: 16.0, ..orbit };
    let grid = default_grid(&half_fan.over_arc(3, 0.4, 6.0));
    assert_eq!(grid.voxels, [160, 160, 40]);
    // Shifted by 16 mm towards -z at the detector.
    assert!((grid.centre_mm.z + 16.0 / 1.5).abs() < 1e-9, "{}", grid.centre_mm);
}

#[test]
fn volumes_keep_their_places() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.mha");
    let grid = VolumeGrid::over_box([2, 3, 4], DVec3::new(2.0, 6.0, 12.0), DVec3::new(5.0, -3.0, 1.0));
    let values = Array::from_shape_fn((2, 3, 4), |(x, y, z)| (100 * x + 10 * y + z) as f32);
    write_volume(&path, values.view(), &grid).unwrap();
    let image = metaimage::read(&path).unwrap();
    // RTK's (x, y, z) = our (y, z, x); index (i, j, k) is element [k][j][i].
    assert_eq!(image.values[[1, 3, 2]], values[[1, 2, 3]]);
    let position = image.offset_mm + image.spacing_mm * DVec3::new(2.0, 3.0, 1.0);
    assert!((ours(position) - grid.voxel_centre_mm(1, 2, 3)).length() < 1e-12);
    let (back, back_grid) = volume_from_rtk(&image);
    assert_eq!(back, values);
    assert_eq!(back_grid.voxels, grid.voxels);
    assert!(
        (back_grid.voxel_mm - grid.voxel_mm).length() < 1e-12
            && (back_grid.centre_mm - grid.centre_mm).length() < 1e-12
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn scans_come_back(
        start in -7.0_f64..7.0,
        offsets in (-50.0_f64..50.0, -50.0_f64..50.0),
        tilts in (-1.0_f64..1.0, -0.5_f64..0.5, -0.5_f64..0.5),
        counts in (1_usize..4, 1_usize..5, 1_usize..5),
        shift in -20.0_f64..20.0,
    ) {
        let (views, rows, columns) = counts;
        let orbit = CircularOrbit {
            detector: Detector { columns, rows },
            pitch_u_mm: 0.7,
            pitch_v_mm: 1.3,
            offset_u_mm: offsets.0,
            offset_v_mm: offsets.1,
            roll_rad: tilts.0,
            pitch_rad: tilts.1,
            yaw_rad: tilts.2,
            ..CircularOrbit::default()
        };
        let mut geometry = orbit.over_arc(views, start, -5.0);
        geometry.views.iter_mut().for_each(|view| view.source_mm.z += shift);
        let scan = Scan {
            grid: default_grid(&geometry),
            geometry,
            projections: Array::from_shape_fn((views, rows, columns), |(n, v, u)| (100 * n + 10 * v + u) as f32),
            scale: SceneScale::unstated(),
            patient_offset_mm: DVec3::ZERO,
        };
        let folder = tempfile::tempdir().unwrap();
        let (geometry, stack) = (folder.path().join("g.xml"), folder.path().join("p.mha"));
        write(&geometry, &stack, &scan).unwrap();
        let back = read(&geometry, &stack, None).unwrap();
        prop_assert_eq!(&back.projections, &scan.projections);
        for (a, b) in back.geometry.views.iter().zip(&scan.geometry.views) {
            // Lengths of 1e3 mm through angles in degrees and back, double precision.
            prop_assert!((a.source_mm - b.source_mm).length() < 1e-8, "{} {}", a.source_mm, b.source_mm);
            prop_assert!((a.detector_origin_mm - b.detector_origin_mm).length() < 1e-8);
            prop_assert!((a.column_step_mm - b.column_step_mm).length() < 1e-10);
            prop_assert!((a.row_step_mm - b.row_step_mm).length() < 1e-10);
        }
    }
}
