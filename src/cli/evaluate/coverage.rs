//! The field of view that a scan really covers.

use crate::geometry::ScanGeometry;
use glam::DVec3;

/// The points that every view sees (through the opposite view for the outer ring of a displaced detector): a disc about the
/// rotation axis whose height shrinks towards its rim, where the cone is narrower.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FieldOfView {
    /// Radius of the disc.
    pub radius_mm: f64,
    /// Distance of the source from the axis.
    pub source_mm: f64,
    /// Slopes of the lowest and the highest ray over the distance from the source.
    pub slopes: [f64; 2],
}

impl FieldOfView {
    /// From the poses of a scan about z.
    pub(super) fn of(scan: &ScanGeometry) -> Self {
        let (rows, columns) = (scan.detector.rows as f64, scan.detector.columns as f64);
        // Distances of the axis from the rays to the detector's left and right edges, and slopes of the rays to its lower and
        // upper edges; each the smallest over the views.
        let mut sides = [f64::INFINITY; 2];
        let mut slopes = [f64::NEG_INFINITY, f64::INFINITY];
        let mut source_mm = f64::INFINITY;
        for view in &scan.views {
            let s = view.source_mm;
            source_mm = source_mm.min(s.truncate().length());
            for (side, u) in sides.iter_mut().zip([-0.5, columns - 0.5]) {
                let ray = (view.pixel_mm(0.5 * (rows - 1.0), u) - s).truncate();
                // Signed: negative where the edge lies on the wrong side of the axis.
                let across = s.truncate().perp_dot(ray) / ray.length();
                *side = side.min(if u < 0.0 { across } else { -across });
            }
            let heights = [-0.5, rows - 0.5].map(|v| {
                let ray = view.pixel_mm(v, 0.5 * (columns - 1.0)) - s;
                // Depth along the central direction, as the cone's height grows with it.
                ray.z / ray.truncate().dot(-s.truncate().normalize_or_zero())
            });
            slopes[0] = slopes[0].max(heights[0].min(heights[1]));
            slopes[1] = slopes[1].min(heights[0].max(heights[1]));
        }
        // The sign of `sides` depends on which way columns run; both edges agree on it.
        if sides[0] + sides[1] < 0.0 {
            sides = sides.map(|side| -side);
        }
        let (narrow, wide) = (sides[0].min(sides[1]), sides[0].max(sides[1]));
        let displaced = wide - narrow > 0.05 * wide && full_turn(scan);
        Self { radius_mm: if displaced { wide } else { narrow.max(0.0) }, source_mm, slopes }
    }

    /// Whether a point of the gantry's frame is covered.
    pub(super) fn contains(&self, point: DVec3) -> bool {
        let radius = point.truncate().length();
        // Seen from the nearest source the cone is narrowest.
        let depth = self.source_mm - radius;
        radius <= self.radius_mm
            && depth > 0.0
            && point.z >= self.slopes[0] * depth
            && point.z <= self.slopes[1] * depth
    }
}

/// Whether views go all the way round: no gap of more than three mean steps.
fn full_turn(scan: &ScanGeometry) -> bool {
    let mut angles: Vec<f64> = scan.views.iter().map(|view| view.source_angle_rad()).collect();
    angles.sort_by(f64::total_cmp);
    let turn = std::f64::consts::TAU;
    let wrap = angles.first().zip(angles.last()).map_or(turn, |(first, last)| first + turn - last);
    let widest = angles.windows(2).map(|pair| pair[1] - pair[0]).fold(wrap, f64::max);
    widest <= 3.0 * turn / angles.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::geometry::{CircularOrbit, Detector};

    fn orbit() -> CircularOrbit {
        CircularOrbit { detector: Detector { columns: 100, rows: 50 }, ..CircularOrbit::default() }
    }

    #[test]
    fn a_centred_scan_covers_the_circle_that_its_edge_rays_touch() {
        let fov = FieldOfView::of(&orbit().over_arc(30, 0.1, -6.0));
        // Half the detector is 80 mm at 1500 mm: the edge ray passes the axis at 1000 sin(atan(80 / 1500)).
        let expected = 1000.0 * (80.0_f64 / 1500.0).atan().sin();
        assert!((fov.radius_mm - expected).abs() < 1e-9, "{fov:?}");
        let rim = 40.0 / 1500.0 * (1000.0 - 30.0);
        assert!(fov.contains(DVec3::new(30.0, 0.0, rim - 1e-6)) && !fov.contains(DVec3::new(30.0, 0.0, rim + 1e-6)));
        assert!(fov.contains(DVec3::new(0.0, 0.0, 40.0 / 1.5 - 1e-6)));
        assert!(
            fov.contains(DVec3::new(0.0, -expected + 1e-6, 0.0))
                && !fov.contains(DVec3::new(0.0, expected + 1e-6, 0.0))
        );
    }

    #[test]
    fn covered_points_are_those_that_all_views_see() {
        let scan = CircularOrbit { offset_v_mm: 10.0, ..orbit() }.over_arc(72, 0.0, std::f64::consts::TAU);
        let fov = FieldOfView::of(&scan);
        let seen = |point: DVec3| {
            scan.views.iter().all(|view| {
                let (u, v, _) = view.project(point).unwrap();
                (-0.5..=99.5).contains(&u) && (-0.5..=49.5).contains(&v)
            })
        };
        let mut disagreements = 0;
        for n in 0..4000_u32 {
            let at = |salt: u32| f64::from((n * 2_654_435 + salt * 40_503) % 1009) / 1009.0 - 0.5;
            let point = DVec3::new(120.0 * at(1), 120.0 * at(7), 80.0 * at(13));
            disagreements += u32::from(fov.contains(point) != seen(point));
        }
        // The rim between two of the 72 views is seen by both but not by one that would stand between them.
        assert!(disagreements < 20, "{disagreements}");
    }

    #[test]
    fn a_displaced_detector_covers_its_wide_side_on_a_full_turn_only() {
        let half_fan = CircularOrbit { offset_u_mm: 60.0, ..orbit() };
        let wide = 1000.0 * (140.0_f64 / 1500.0).atan().sin();
        let narrow = 1000.0 * (20.0_f64 / 1500.0).atan().sin();
        let full = FieldOfView::of(&half_fan.over_arc(60, 0.0, std::f64::consts::TAU));
        assert!((full.radius_mm - wide).abs() < 1e-9, "{full:?}");
        let short = FieldOfView::of(&half_fan.over_arc(60, 0.0, 3.6));
        assert!((short.radius_mm - narrow).abs() < 1e-9, "{short:?}");
    }
}
