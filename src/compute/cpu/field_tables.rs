//! The tables' gradient, cut into one part for each feature of each level: parts that tasks own alone.

#![forbid(unsafe_code)]

use super::super::field::FieldLayout;

/// Runs `work(level, feature, its part of tables)` for every feature of every level, in parallel.
pub(super) fn each_feature(
    layout: &FieldLayout,
    tables: &mut [f32],
    work: &(impl Fn(usize, usize, &mut [f32]) + Sync),
) {
    let features = layout.shape().features;
    let bounds = |task: usize| match layout.levels().get(task / features) {
        Some(level) => level.first + task % features * level.entries,
        None => layout.tables_len(),
    };
    let work = |task: usize, table: &mut [f32]| work(task / features, task % features, table);
    split(0, layout.levels().len() * features, tables, &bounds, &work);
}

/// Runs `work` on each of tasks `first..end`, which own consecutive parts of `tables`: levels differ in size, so the tables cannot be cut by a
/// fixed step.
fn split(
    first: usize,
    end: usize,
    tables: &mut [f32],
    bounds: &(impl Fn(usize) -> usize + Sync),
    work: &(impl Fn(usize, &mut [f32]) + Sync),
) {
    if end - first == 1 {
        return work(first, tables);
    }
    let middle = first.midpoint(end);
    let (low, high) = tables.split_at_mut(bounds(middle) - bounds(first));
    rayon::join(|| split(first, middle, low, bounds, work), || split(middle, end, high, bounds, work));
}
