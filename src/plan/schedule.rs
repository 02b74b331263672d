//! What runs when, until when, and what happens when it cannot.

use serde::Serialize;

use super::RepairPlan;
use crate::config::{Calibration, EarlyIterations, OptimisedSettings, PublishEvery, RunBudget, Settings};
use crate::reconstruct::optimise::{EarlyStart, Recipe};
use crate::supervise::Rung;

/// One line of the schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What sets it off.
    pub when: String,
    /// What is done.
    pub what: String,
    /// Until when; empty: no deadline.
    pub deadline: String,
}

/// One rung of the degrade ladder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RungRule {
    /// Which.
    pub rung: Rung,
    /// When it is entered.
    pub enters: String,
    /// When it is left.
    pub leaves: String,
}

/// The schedule of a scan.
pub(super) fn schedule(settings: &Settings, recipe: Option<&Recipe>, repairs: Option<&RepairPlan>) -> Vec<Step> {
    let step = |when: String, what: &str, deadline: String| Step { when, what: what.into(), deadline };
    let views = settings.geometry.views.len();
    let frame_ms = settings.publish.frame_time_ns() as f64 / 1e6;
    let mut steps = vec![step(
        "before the first frame".into(),
        "allocate every buffer, run one blank view through all stages, then report ready",
        String::new(),
    )];
    if settings.preprocess.dark == Calibration::Ring || settings.preprocess.flat == Calibration::Ring {
        steps.push(step(
            "each dark or flat frame".into(),
            "average; find dead and hot pixels before the next projection",
            String::new(),
        ));
    }
    steps.push(step(
        format!("each of {views} views"),
        "correct, weight, filter, back-project",
        format!("{frame_ms:.1} ms (one frame time) on average"),
    ));
    let every = settings.publish.preview_every_views;
    if every > 0 {
        let previews: Vec<String> =
            (1..).map(|k| k * every).take_while(|v| *v < views).map(|v| v.to_string()).collect();
        let list = match previews.len() {
            0..=6 => previews.join(", "),
            count => format!("{}, {}, ... {} ({count} previews)", previews[0], previews[1], previews[count - 1]),
        };
        if !previews.is_empty() {
            steps.push(step(
                format!("after views {list}"),
                "publish PREVIEW of the views so far, normalised by the arc covered",
                format!("{frame_ms:.1} ms after its last frame"),
            ));
        }
    }
    steps.push(step(format!("after view {views}"), "publish FULL", format!("{frame_ms:.1} ms after the last frame")));
    if let (Some(optimised), Some(recipe)) = (&settings.optimised, recipe) {
        steps.extend(optimisation(optimised, recipe, repairs));
    }
    steps.push(step(
        format!("LAST frame with views missing, or no frame for {} ms", settings.supervise.frame_timeout_ms),
        "publish PARTIAL with the missing ranges; later frames of the scan are still taken",
        format!("{frame_ms:.1} ms after that"),
    ));
    steps.push(step(
        "frame of another epoch or scan, or an earlier view again".into(),
        "close the scan as it is, begin the next",
        String::new(),
    ));
    steps
}

/// What follows the FULL volume.
fn optimisation(optimised: &OptimisedSettings, recipe: &Recipe, repairs: Option<&RepairPlan>) -> Vec<Step> {
    let step = |when: String, what: String, deadline: String| Step { when, what, deadline };
    let (plan, method) = (recipe.plan(), recipe.method());
    let settings = plan.settings();
    let (count, deadline) = match optimised.budget {
        RunBudget::Iterations(count) => (count.to_string(), String::new()),
        RunBudget::DeadlineS(seconds) => {
            ("as many".into(), format!("{seconds} s after the last frame: their number is fixed before ready"))
        }
    };
    let views = EarlyStart::usual_views(plan.views());
    let early = match optimised.early {
        EarlyIterations::Count(0) => None,
        EarlyIterations::Count(count) => Some(count.to_string()),
        EarlyIterations::AsFit => Some("as many as fit".into()),
    };
    let mut steps = Vec::new();
    if let (Some(early), true) = (early, views < plan.views()) {
        steps.push(step(
            format!("after view {views}, while the rest comes"),
            format!("{early} of the iterations below from these views: their number is fixed before ready; where they are not done in time, they do not count"),
            "the last frame".into(),
        ));
    }
    steps.extend([
        step(
            "after FULL (PARTIAL)".into(),
            format!(
                "{} steps of a volume towards the views, {} of {} elements of a {} representation towards it",
                settings.approach_iterations,
                settings.fit_iterations,
                method.elements(plan.grid()),
                method.name()
            ),
            String::new(),
        ),
        step(
            format!("{count} iterations"),
            format!(
                "one of {} subsets of the views: voxelise, project, compare, project back, total variation, step",
                plan.round()
            ),
            deadline,
        ),
    ]);
    if let Some(repairs) = repairs {
        let deadline_ms = optimised.slice_fixer.as_ref().and_then(|fixer| fixer.deadline_ms);
        steps.extend(repairs.steps(optimised, deadline_ms));
    }
    let when = match optimised.publish {
        PublishEvery::Iterations(0) => None,
        PublishEvery::Iterations(every) => Some(format!("every {every} iterations")),
        PublishEvery::Ms(ms) => Some(format!("every {ms} ms")),
    };
    if let Some(when) = when {
        steps.push(step(when, "publish FULL with the iteration in its header".into(), String::new()));
    }
    steps.push(step("after the last iteration".into(), "publish the scan's last volume".into(), String::new()));
    steps.push(step(
        "first frame of the next scan, or a stop".into(),
        "end the optimisation after the operation in hand".into(),
        String::new(),
    ));
    steps
}

/// The rungs that this configuration has.
pub(super) fn ladder(settings: &Settings) -> Vec<RungRule> {
    let rule = |rung, enters: String, leaves: &str| RungRule { rung, enters, leaves: leaves.into() };
    let staging = settings.supervise.staging_frames;
    let mut rules = vec![rule(Rung::Full, "start".into(), "")];
    if settings.optimised.as_ref().is_some_and(|optimised| optimised.slice_fixer.is_some()) {
        rules.push(rule(
            Rung::WithoutSliceFixer,
            "a repair is late, fails, or gives what no volume can be: the optimisation goes on without, its last volume is DEGRADED"
                .into(),
            "an optimisation is done whose repairs all were",
        ));
    }
    if settings.optimised.is_some() {
        rules.push(rule(
            Rung::Frozen,
            "an optimisation diverges, misses its deadline or is refused: its last good volume is published as DEGRADED"
                .into(),
            "the next optimisation is done",
        ));
    }
    if settings.publish.preview_every_views > 0 {
        rules.push(rule(
            Rung::PreviewsSkipped,
            format!("{} of {staging} staging buffers wait", staging.div_ceil(2)),
            "at most one waits, 8 frames in a row or at a scan's end",
        ));
    }
    rules.push(rule(
        Rung::Stale,
        "a scan ends without a volume: the last one is published again as STALE".into(),
        "the next volume is published",
    ));
    rules.push(rule(Rung::Stopped, "an error that nothing can be done about".into(), "never"));
    rules
}
