//! Tests of the simulator against quadrature, identities and statistics.
#![allow(clippy::unwrap_used)]

mod acquisition;
mod ct;
mod layered;
mod noise;
mod thorax;
