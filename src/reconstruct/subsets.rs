//! Which views make a subset, and in which order subsets come.

use std::f64::consts::{PI, TAU};

use crate::geometry::ScanGeometry;

/// Parts `views` into subsets of at most `views_per_subset` views and orders them.
///
/// The views are ordered by the azimuth of their source; with `S` subsets, subset `k` takes every `S`-th view from the `k`-th on, so that each
/// looks at the object from all round. The first is followed by the one at the **largest angular distance** from all those that went
/// before (the smallest angle between any of their views counts; of equals the one farthest from the last, then the first): what
/// two neighbouring views would say again is said as late as possible. Within a subset views stand by azimuth.
#[must_use]
pub fn subsets_by_angular_distance(
    geometry: &ScanGeometry,
    views: &[usize],
    views_per_subset: usize,
) -> Vec<Vec<usize>> {
    let angle = |view: usize| geometry.views[view].source_angle_rad().rem_euclid(TAU);
    let mut sorted = views.to_vec();
    sorted.sort_by(|&a, &b| angle(a).total_cmp(&angle(b)).then(a.cmp(&b)));
    let count = sorted.len().div_ceil(views_per_subset.max(1));
    let subsets: Vec<Vec<usize>> =
        (0..count).map(|first| sorted.iter().copied().skip(first).step_by(count).collect()).collect();
    let between = |a: usize, b: usize| {
        let pairs = subsets[a].iter().flat_map(|&v| subsets[b].iter().map(move |&w| (v, w)));
        pairs.map(|(v, w)| PI - ((angle(v) - angle(w)).abs() - PI).abs()).fold(f64::INFINITY, f64::min)
    };
    // Smallest angle to any subset taken so far; those taken are below zero.
    let mut nearest = vec![f64::INFINITY; count];
    let mut order = Vec::with_capacity(count);
    let mut last = 0;
    while order.len() < count {
        order.push(last);
        nearest[last] = -1.0;
        let to_last: Vec<f64> = (0..count).map(|other| between(last, other)).collect();
        for (nearest, to_last) in nearest.iter_mut().zip(&to_last) {
            *nearest = nearest.min(*to_last);
        }
        // Angles of evenly spread views are equal but for rounding.
        let farther = |a: f64, b: f64| a > b + 1e-9;
        last = (0..count).fold(last, |best, other| {
            let closer_call = !farther(nearest[best], nearest[other]) && farther(to_last[other], to_last[best]);
            if farther(nearest[other], nearest[best]) || closer_call { other } else { best }
        });
    }
    order.into_iter().map(|index| subsets[index].clone()).collect()
}

/// Parts off `held_back` views, evenly spread in the order of acquisition; gives those to reconstruct from and those held back.
#[must_use]
pub fn hold_back(views: usize, held_back: usize) -> (Vec<usize>, Vec<usize>) {
    let held: Vec<usize> = (0..held_back.min(views)).map(|k| (2 * k + 1) * views / (2 * held_back)).collect();
    ((0..views).filter(|view| !held.contains(view)).collect(), held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::CircularOrbit;

    fn order(views: usize, arc: f64, per_subset: usize) -> Vec<Vec<usize>> {
        let geometry = CircularOrbit::default().over_arc(views, 0.1, arc);
        subsets_by_angular_distance(&geometry, &(0..views).collect::<Vec<_>>(), per_subset)
    }

    #[test]
    fn single_views_halve_the_circle_again_and_again() {
        let order: Vec<usize> = order(8, TAU, 1).concat();
        assert_eq!(order[..2], [0, 4]);
        // Then the quarters, then the eighths, each the farthest from its predecessor.
        assert_eq!(
            {
                let mut quarters = order[2..4].to_vec();
                quarters.sort_unstable();
                quarters
            },
            [2, 6]
        );
        assert!(order[4..].iter().all(|view| view % 2 == 1));
    }

    #[test]
    fn subsets_take_each_view_once_and_look_from_all_round() {
        for (views, per_subset, count) in [(36, 4, 9), (37, 4, 10), (5, 9, 1), (1, 1, 1), (12, 1, 12)] {
            let subsets = order(views, TAU, per_subset);
            assert_eq!(subsets.len(), count);
            assert!(subsets.iter().all(|subset| subset.len() <= per_subset));
            let mut all = subsets.concat();
            all.sort_unstable();
            assert_eq!(all, (0..views).collect::<Vec<_>>());
        }
        assert_eq!(order(36, TAU, 4)[0], [0, 9, 18, 27]);
    }

    #[test]
    fn an_arc_goes_to_its_other_end_first() {
        let order: Vec<usize> = order(5, 2.0, 1).concat();
        assert_eq!(order[..3], [0, 4, 2]);
    }

    #[test]
    fn views_held_back_are_spread_and_gone_from_the_rest() {
        assert_eq!(hold_back(12, 3), (vec![0, 1, 3, 4, 5, 7, 8, 9, 11], vec![2, 6, 10]));
        assert_eq!(hold_back(4, 0), (vec![0, 1, 2, 3], vec![]));
        assert_eq!(hold_back(2, 2).1, [0, 1]);
    }
}
