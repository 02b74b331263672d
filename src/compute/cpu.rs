//! The operations on the CPU: all cores (rayon), SIMD chosen at run time.

pub mod ramp_filter;
