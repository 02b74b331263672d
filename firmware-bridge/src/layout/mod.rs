//! Byte layout of everything that two processes (or a process and a file) share.
//!
//! Little-endian, natural alignment, fixed widths, no packed structs. The same tables stand in `include/diffnr_bridge.h`
//! (with `_Static_assert`s) and in PROTOCOL.md; `tests/layout_agreement.rs` compares the three.
//!
//! The segment structs are never referenced in shared memory: they serve for `offset_of!`, and every access goes through
//! atomics at those offsets (see [`crate::memory`]).

mod frame;
mod volume;

pub use frame::*;
pub use volume::*;

#[cfg(target_endian = "big")]
compile_error!("the protocol is little-endian and is shared in place; a big-endian host would need swaps everywhere");

/// Major version of the protocol. A different major is refused: offsets or meanings changed.
pub const VERSION_MAJOR: u16 = 1;
/// Minor version. A higher minor only gives meaning to reserved fields; an older peer ignores them.
pub const VERSION_MINOR: u16 = 2;
/// Cursors and state words written by different processes lie on lines of this many bytes (two 64-byte lines: the
/// adjacent-line prefetcher couples pairs).
pub const CACHE_LINE: usize = 128;

/// Checks `offset_of!` of each field at compile time.
macro_rules! assert_offsets {
    ($type:ty, size $size:expr, { $($field:ident: $offset:expr),+ $(,)? }) => {
        const _: () = {
            assert!(core::mem::size_of::<$type>() == $size);
            $(assert!(core::mem::offset_of!($type, $field) == $offset);)+
        };
        impl $type {
            /// Name and byte offset of every field, for the test that compares C, Rust and PROTOCOL.md.
            pub const FIELD_OFFSETS: &'static [(&'static str, usize)] = &[$((stringify!($field), $offset)),+];
        }
    };
}
pub(crate) use assert_offsets;
