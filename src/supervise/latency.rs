//! Latency histograms that never resize, and the worst event.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Shortest latency told apart, ns.
const LOWEST_NS: u64 = 1_000;
/// Longest; more counts as this.
const HIGHEST_NS: u64 = 100_000_000_000;
/// Significant digits.
const DIGITS: u8 = 2;

/// A bounded histogram of latencies. Latencies are measured from the gantry's own time stamps (CLOCK_MONOTONIC at the end of the
/// exposure), not from when we got round to a frame, so that a stall counts in full for every frame that it held up: nothing
/// is omitted in coordination with it.
#[derive(Debug, Clone)]
pub struct Latency {
    histogram: Histogram<u64>,
    worst_ns: u64,
    worst_sequence: u64,
}

/// What a histogram amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Default)]
pub struct LatencySummary {
    /// Events.
    pub count: u64,
    /// Median, ms.
    pub p50_ms: f64,
    /// 99th percentile, ms.
    pub p99_ms: f64,
    /// 99.99th percentile, ms.
    pub p99_99_ms: f64,
    /// Longest, ms.
    pub max_ms: f64,
    /// Sequence number of the frame with the longest.
    pub worst_sequence: u64,
}

impl Latency {
    /// Empty; the only allocation.
    #[must_use]
    pub fn new() -> Self {
        // These bounds are constants that the constructor accepts.
        let histogram = match Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, DIGITS) {
            Ok(histogram) => histogram,
            Err(error) => unreachable!("constant bounds: {error}"),
        };
        Self { histogram, worst_ns: 0, worst_sequence: 0 }
    }

    /// Bytes that [`Latency::new`] allocates.
    #[must_use]
    pub fn bytes() -> u64 {
        Self::new().histogram.distinct_values() as u64 * 8
    }

    /// Counts one event.
    pub fn record(&mut self, latency_ns: u64, sequence: u64) {
        self.histogram.saturating_record(latency_ns);
        if latency_ns > self.worst_ns {
            (self.worst_ns, self.worst_sequence) = (latency_ns, sequence);
        }
    }

    /// Quantiles and the worst event.
    #[must_use]
    pub fn summary(&self) -> LatencySummary {
        let ms = |quantile: f64| self.histogram.value_at_quantile(quantile) as f64 / 1e6;
        if self.histogram.is_empty() {
            return LatencySummary::default();
        }
        LatencySummary {
            count: self.histogram.len(),
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            p99_99_ms: ms(0.9999),
            max_ms: self.worst_ns as f64 / 1e6,
            worst_sequence: self.worst_sequence,
        }
    }
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_the_worst_event_are_kept_beyond_the_range_too() {
        let mut latency = Latency::new();
        assert_eq!(latency.summary(), LatencySummary::default());
        for sequence in 1..=99 {
            latency.record(sequence * 100_000, sequence);
        }
        latency.record(u64::MAX, 7_000);
        let summary = latency.summary();
        assert_eq!((summary.count, summary.worst_sequence), (100, 7_000));
        // Two significant digits.
        assert!((summary.p50_ms / 5.0 - 1.0).abs() < 0.02, "{summary:?}");
        assert!(summary.max_ms > 1e12, "the worst is not cut off: {summary:?}");
    }
}
