#![allow(clippy::unwrap_used)]
use std::fs::File;
use std::io::BufReader;

use ndarray::Array3;

use super::*;

/// A volume with one bright block at the patient's right, front and head end of the middle slices.
fn marked() -> Array3<f32> {
    Array3::from_shape_fn((40, 50, 60), |(x, y, z)| {
        let right = x >= 30;
        let front = y >= 40;
        let head = z >= 45;
        let marks = [right && front && z == 30, right && head && y == 25, front && head && x == 20];
        if marks.contains(&true) { 1000.0 } else { -1000.0 }
    })
}

#[test]
fn slices_hang_as_radiology_hangs_them() {
    let volume = marked();
    let panel = Panel { volume: volume.view(), spacing_mm: [1.0; 3], caption: String::new() };
    let canvas = draw(Path::new("x.png"), &[panel], Window::WIDE).unwrap();
    // 60 mm on 384 pixels: 6.4 pixels a voxel. Axial 256 x 320, coronal 256 x 384, sagittal 320 x 384.
    let (axial, coronal, sagittal) = (MARGIN, 2 * MARGIN + 256, 3 * MARGIN + 512);
    for (left, width, height, what) in
        [(axial, 256, 320, "axial"), (coronal, 256, 384, "coronal"), (sagittal, 320, 384, "sagittal")]
    {
        // All three marks lie at the upper left: right (or front) on the left, front (or head) on top.
        let at = |x: f64, y: f64| canvas.get(left + (x * width as f64) as usize, MARGIN + (y * height as f64) as usize);
        assert_eq!(at(0.1, 0.1), 255, "{what}");
        assert_eq!([at(0.9, 0.1), at(0.1, 0.9), at(0.9, 0.9)], [0; 3], "{what}");
    }
}

#[test]
fn pixels_are_square_millimetres_whatever_the_voxels() {
    let volume = Array3::<f32>::zeros((40, 20, 10));
    let panel = Panel { volume: volume.view(), spacing_mm: [1.0, 2.0, 4.0], caption: "a cube".into() };
    let rows = slices(&panel, 40.0 / SLICE_PIXELS);
    assert!(rows.iter().all(|slice| slice.width == 384 && slice.height == 384));
}

#[test]
fn sheets_are_png_files_with_all_their_volumes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sheet.png");
    let volume = marked();
    let panel = Panel { volume: volume.view(), spacing_mm: [1.0; 3], caption: "FDK, 50 views\nPSNR 30.1 dB".into() };
    write_contact_sheet(&path, &[panel.clone(), panel.clone()], Window::SOFT_TISSUE).unwrap();
    let two = png::Decoder::new(BufReader::new(File::open(&path).unwrap())).read_info().unwrap().info().height;
    write_slices(&path, &panel, Window::SOFT_TISSUE).unwrap();
    let one = png::Decoder::new(BufReader::new(File::open(&path).unwrap())).read_info().unwrap().info().height;
    assert!(two > one + 384, "{one} {two}");
}

#[test]
fn what_cannot_be_shown_is_refused() {
    let path = Path::new("x.png");
    let volume = Array3::<f32>::zeros((4, 4, 4));
    let panel = Panel { volume: volume.view(), spacing_mm: [1.0; 3], caption: String::new() };
    let upside_down = Window { low: 1.0, high: -1.0, unit: "HU" };
    let error = |panels: &[Panel<'_>], window| draw(path, panels, window).map(|_| ()).unwrap_err().to_string();
    assert!(error(std::slice::from_ref(&panel), upside_down).contains("1:-1"));
    assert!(error(&[], Window::WIDE).contains("at least one"));
    let flat = Panel { spacing_mm: [1.0, 0.0, 1.0], ..panel.clone() };
    assert!(error(&[flat], Window::WIDE).contains("nothing can be shown"));
    let nan = Array3::from_elem((4, 4, 4), f32::NAN);
    let panel = Panel { volume: nan.view(), ..panel };
    assert_eq!(draw(path, &[panel], Window::WIDE).unwrap().get(MARGIN + 300, MARGIN + 20), 0);
}

#[test]
fn rows_hold_axial_slices_of_all_volumes_and_then_coronal_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.png");
    let grey = |value: f32| Array3::from_elem((20, 20, 20), value);
    let (white, black) = (grey(1000.0), grey(-1000.0));
    fn panel<'a>(volume: &'a Array3<f32>, caption: &str) -> Panel<'a> {
        Panel { volume: volume.view(), spacing_mm: [2.0; 3], caption: caption.into() }
    }
    let rows = [("one", [panel(&white, "a"), panel(&black, "b")]), ("two", [panel(&black, "a"), panel(&white, "b")])];
    write_rows(&path, &rows, Window::WIDE).unwrap();
    let mut reader = png::Decoder::new(BufReader::new(File::open(&path).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let (edge, line) = (ROW_PIXELS as usize, canvas::TEXT_HEIGHT + MARGIN);
    let at = |row: usize, place: usize| {
        let (x, y) = (
            MARGIN + place * (edge + MARGIN) + edge / 2 + 40,
            MARGIN + row * (2 * line + edge + MARGIN) + line + edge / 3,
        );
        pixels[y * info.width as usize + x]
    };
    assert_eq!([0, 1, 2, 3].map(|place| at(0, place)), [255, 0, 255, 0]);
    assert_eq!([0, 1, 2, 3].map(|place| at(1, place)), [0, 255, 0, 255]);
    assert!(write_rows::<1>(&path, &[], Window::WIDE).unwrap_err().to_string().contains("nothing can be shown"));
}

#[test]
fn columns_hold_axial_above_coronal_slices_and_captions_below() {
    // The head's half is bright, and so is the front's: the two planes look different.
    let half = |axis: usize| {
        Array3::from_shape_fn((20, 20, 20), |at| {
            let at = [at.0, at.1, at.2];
            if at[axis] >= 12 { 1000.0 } else { -1000.0 }
        })
    };
    let (front, head) = (half(1), half(2));
    fn panel<'a>(volume: &'a Array3<f32>, caption: &str) -> Panel<'a> {
        Panel { volume: volume.view(), spacing_mm: [2.0; 3], caption: caption.into() }
    }
    let path = Path::new("x.png");
    let panels = [panel(&front, "front\nPSNR 30.12 dB\nSSIM 0.901"), panel(&head, "head"), panel(&front, "")];
    let canvas = columns::draw(path, &panels, Window::WIDE).unwrap();
    let (edge, line) = (ROW_PIXELS as usize, canvas::TEXT_HEIGHT + MARGIN);
    let left = |place: usize| MARGIN + place * (edge + MARGIN);
    let tops = [MARGIN, MARGIN + edge + line];
    // A tenth from the slice's upper and lower edge, in the middle.
    let ends = |place: usize, plane: usize| {
        [edge / 10, edge - edge / 10].map(|down| canvas.get(left(place) + edge / 2, tops[plane] + down))
    };
    // The middle coronal slice lies behind the front's bright part, the middle axial one below the head's.
    for place in [0, 2] {
        assert_eq!((ends(place, 0), ends(place, 1)), ([255, 0], [0, 0]), "front, column {place}");
    }
    assert_eq!((ends(1, 0), ends(1, 1)), ([0, 0], [255, 0]), "head");
    let captions = tops[1] + edge + line + MARGIN;
    let lit = |place: usize, number: usize| {
        let rows = captions + number * line..captions + number * line + canvas::TEXT_HEIGHT;
        rows.flat_map(|y| (left(place)..left(place) + edge).map(move |x| (x, y)))
            .filter(|&(x, y)| canvas.get(x, y) == 255)
            .count()
    };
    // A letter has some ten dots of four pixels.
    let counts = [0, 1, 2].map(|place| [0, 1, 2].map(|number| lit(place, number)));
    assert!(counts[0].iter().all(|&lit| lit > 150) && counts[1][0] > 100, "{counts:?}");
    assert_eq!((counts[1][1], counts[1][2], counts[2]), (0, 0, [0, 0, 0]));

    let long = "x".repeat(500);
    columns::draw(path, &[panel(&front, &long), panel(&head, "")], Window::WIDE).unwrap();
    let many = vec![panel(&front, ""); 100];
    let refused = columns::draw(path, &many, Window::WIDE).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("width") && refused.contains("100 volumes"), "{refused}");
    assert!(columns::draw(path, &[], Window::WIDE).map(|_| ()).unwrap_err().to_string().contains("at least one"));
}
