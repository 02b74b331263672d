//! Phantoms and acquisition physics.
