//! The ramp filter and its windows.

/// Frequency response of the ramp filter for rows of one length and pitch.
#[derive(Debug, Clone)]
pub struct RampFilter {}
