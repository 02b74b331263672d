//! Counts to line integrals: dark, flat, dead pixels, log.
