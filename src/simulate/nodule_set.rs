//! Nodules to plant in the thorax, as a user asks for them: how many, between which radii.

use std::str::FromStr;

use super::thorax::{SOLID_NODULE_HU, SUBSOLID_NODULE_HU};

/// A cyst: a hole in the lung.
const CYST_HU: f64 = -1000.0;
/// In turn, so that every kind comes in every size.
const KINDS_HU: [f64; 4] = [SOLID_NODULE_HU, SUBSOLID_NODULE_HU, SOLID_NODULE_HU, CYST_HU];
const MOST: usize = 64;
const LARGEST_MM: f64 = 20.0;

/// Nodules of evenly spaced radii: solid, sub-solid, solid, cyst in turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoduleSet {
    count: usize,
    smallest_mm: f64,
    largest_mm: f64,
}

impl NoduleSet {
    /// `count` nodules of radii from `smallest_mm` to `largest_mm`.
    ///
    /// # Errors
    /// In words, for a count outside 1 to 64 or radii outside 0.5 to 20 mm.
    pub fn new(count: usize, smallest_mm: f64, largest_mm: f64) -> Result<Self, String> {
        if !(1..=MOST).contains(&count) {
            return Err(format!("{count} nodules: must be between 1 and {MOST}"));
        }
        if !(0.5 <= smallest_mm && smallest_mm <= largest_mm && largest_mm <= LARGEST_MM) {
            return Err(format!(
                "radii {smallest_mm}:{largest_mm}: must be in mm, from 0.5 to {LARGEST_MM}, the smaller one first"
            ));
        }
        Ok(Self { count, smallest_mm, largest_mm })
    }

    /// Radius (mm) and value (HU) of each, largest first.
    #[must_use]
    pub fn radii_and_hu(&self) -> Vec<(f64, f64)> {
        let step = (self.largest_mm - self.smallest_mm) / (self.count.max(2) - 1) as f64;
        (0..self.count).map(|index| (self.largest_mm - step * index as f64, KINDS_HU[index % 4])).collect()
    }
}

impl FromStr for NoduleSet {
    type Err = String;

    /// Reads `N:MIN:MAX`, e.g. `16:3:8`.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "must be N:MIN:MAX, a count and two radii in mm, e.g. 16:3:8".to_string();
        let parts: Vec<&str> = text.split(':').collect();
        let [count, smallest, largest] = parts[..] else { return Err(bad()) };
        let radius = |text: &str| text.trim().parse::<f64>().map_err(|_| bad());
        Self::new(count.trim().parse().map_err(|_| bad())?, radius(smallest)?, radius(largest)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::thorax::{LUNG_HU, thorax, thorax_with};
    use glam::DVec3;

    #[test]
    fn sets_are_read_and_refused() {
        let set: NoduleSet = "5:3:8".parse().unwrap_or_else(|error| panic!("{error}"));
        let radii: Vec<f64> = set.radii_and_hu().iter().map(|n| n.0).collect();
        assert_eq!(radii, [8.0, 6.75, 5.5, 4.25, 3.0]);
        assert_eq!(set.radii_and_hu()[3].1, CYST_HU);
        assert_eq!(NoduleSet::new(1, 3.0, 8.0).map(|set| set.radii_and_hu().len()), Ok(1));
        for (text, word) in [
            ("5:3", "N:MIN:MAX"),
            ("x:3:8", "N:MIN:MAX"),
            ("0:3:8", "0 nodules"),
            ("65:3:8", "65 nodules"),
            ("5:8:3", "8:3"),
            ("5:0:3", "0:3"),
            ("5:3:21", "3:21"),
            ("5:nan:4", "NaN"),
            ("-1:3:8", "N:MIN:MAX"),
        ] {
            let error = text.parse::<NoduleSet>().err().unwrap_or_default();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn the_chest_holds_them_in_aerated_lung_and_is_the_same_body() {
        const MU_WATER: f64 = 0.0193;
        let wanted = NoduleSet { count: 16, smallest_mm: 3.0, largest_mm: 8.0 }.radii_and_hu();
        let (usual, chest) = (thorax(2, MU_WATER), thorax_with(2, MU_WATER, &wanted));
        assert_eq!(chest.nodules.len(), 16);
        assert_eq!(chest.lungs, usual.lungs);
        let hu = |point: DVec3| 1000.0 * (chest.phantom.value_at(point) / MU_WATER - 1.0);
        for (nodule, &(radius_mm, value)) in chest.nodules.iter().zip(&wanted) {
            assert_eq!((nodule.radius_mm, nodule.hu), (radius_mm, value));
            assert!((hu(nodule.centre_mm) - value).abs() < 1e-6);
            assert!((hu(nodule.centre_mm + DVec3::Z * (radius_mm + 0.5)) - LUNG_HU).abs() < 1e-6);
        }
    }
}
