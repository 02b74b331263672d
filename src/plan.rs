//! The schedule (what runs when) and the memory budget (every byte), fixed before "ready".

#![forbid(unsafe_code)]

mod buffers;

pub use buffers::{Buffer, Place};
