//! Latency histograms of bounded size: p50, p99, p99.99, the maximum, and which event was the worst.

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency told apart, in ns (one minute); longer ones count as this long, and are counted apart.
pub const LONGEST_NS: u64 = 60_000_000_000;

/// A histogram that never grows: about 120 kB, allocated at once; recording allocates nothing.
///
/// Latencies are kept to three significant digits between 1 us and one minute. Measure them from the moment that the schedule or
/// the gantry's own time stamp names, not from when one got round to the event: then a stall counts in full for every event
/// that it held up, and nothing is omitted in coordination with it.
#[derive(Debug, Clone)]
pub struct LatencyHistogram {
    histogram: Histogram<u64>,
    worst: Option<Worst>,
    beyond: u64,
}

/// The longest latency seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Worst {
    /// Latency in ns, exact.
    pub latency_ns: u64,
    /// Which event it was, e.g. a frame's sequence number.
    pub id: u64,
}

/// The figures of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatencySummary {
    /// Number of latencies recorded.
    pub count: u64,
    /// Median, ms.
    pub p50_ms: f64,
    /// 99th percentile, ms.
    pub p99_ms: f64,
    /// 99.99th percentile, ms.
    pub p99_99_ms: f64,
    /// Maximum, ms, exact.
    pub max_ms: f64,
    /// Which event was the worst.
    pub worst_id: Option<u64>,
    /// Events longer than [`LONGEST_NS`].
    pub beyond: u64,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self::new()
    }
}

impl LatencyHistogram {
    /// An empty histogram.
    ///
    /// # Panics
    /// Never: the bounds are constants that the histogram accepts (a test holds it).
    #[must_use]
    pub fn new() -> Self {
        #[allow(clippy::expect_used)]
        let histogram = Histogram::new_with_bounds(1_000, LONGEST_NS, 3).expect("constant bounds");
        Self { histogram, worst: None, beyond: 0 }
    }

    /// Records one event.
    pub fn record(&mut self, latency_ns: u64, id: u64) {
        self.beyond += u64::from(latency_ns > LONGEST_NS);
        if self.worst.is_none_or(|worst| latency_ns > worst.latency_ns) {
            self.worst = Some(Worst { latency_ns, id });
        }
        self.histogram.saturating_record(latency_ns.min(LONGEST_NS));
    }

    /// Bytes that [`LatencyHistogram::new`] allocates.
    #[must_use]
    pub fn bytes() -> u64 {
        Self::new().histogram.distinct_values() as u64 * 8
    }

    /// The longest latency and whose it was.
    #[must_use]
    pub fn worst(&self) -> Option<Worst> {
        self.worst
    }

    /// Number of latencies recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Forgets everything; the memory stays.
    pub fn clear(&mut self) {
        self.histogram.reset();
        self.worst = None;
        self.beyond = 0;
    }

    /// Percentiles and the worst event; zeros while nothing was recorded.
    #[must_use]
    pub fn summary(&self) -> LatencySummary {
        let max_ns = self.worst.map_or(0, |worst| worst.latency_ns);
        // A bucket's upper end may lie above the exact maximum.
        let at = |percentile: f64| self.histogram.value_at_percentile(percentile).min(max_ns) as f64 / 1e6;
        LatencySummary {
            count: self.histogram.len(),
            p50_ms: at(50.0),
            p99_ms: at(99.0),
            p99_99_ms: at(99.99),
            max_ms: max_ns as f64 / 1e6,
            worst_id: self.worst.map(|worst| worst.id),
            beyond: self.beyond,
        }
    }
}

impl fmt::Display for LatencySummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "p50 {:.3} ms, p99 {:.3} ms, p99.99 {:.3} ms, max {:.3} ms",
            self.p50_ms, self.p99_ms, self.p99_99_ms, self.max_ms
        )?;
        if let Some(id) = self.worst_id {
            write!(f, " (event {id})")?;
        }
        write!(f, " of {}", self.count)
    }
}
