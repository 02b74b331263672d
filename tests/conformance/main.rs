//! Every CUDA operation against the CPU's, on all carriers of kernels: the executor of `kernels/host` (which needs a C++ compiler; without one the
//! tests say SKIPPED), and the driver, on a stand-in for its library that hands kernels to the executor, or on the GPU of
//! `DIFFNR_DEVICE`.
//!
//! A carrier comes in variants (other numbers of threads, another order of a block's threads) that must give the same bits: every test
//! runs on all of them and compares.
#![allow(clippy::unwrap_used)]

#[macro_use] // Launchers that hand on what they are asked for.
mod carriers;
mod driver;
mod elementwise;
mod experts;
mod fdk;
mod field_rays;
mod field_voxels;
mod fields;
mod gaussian_projections;
mod gaussian_scenes;
mod gaussian_step;
mod gaussian_volumes;
mod groups;
mod line_integrals;
mod losses;
mod optimisation;
mod prebuilt;
mod projectors;
mod refusals;
mod repairs;
mod scans;
mod self_test;
mod shared_memory;
mod slices;
mod stand_in;
mod total_variation;
mod values;
mod whole;
