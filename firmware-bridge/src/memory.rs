//! The unsafe room: access to memory that other processes change.
//!
//! Shared words are reached as atomics only. Payloads of frames are plain slices, lent out while a slot's state word says
//! that this side owns the slot; payloads of volumes are copied with relaxed atomic words, because a revoked reader may
//! still be reading when the writer starts again.
//!
//! Trust: a peer that ignores the protocol can spoil the data in the segment (CRCs notice most of it), but offsets and
//! lengths are always this side's own, so it cannot make this side leave the segment.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// A piece of memory that other threads and processes may change at any time.
///
/// # Safety
/// `base()` points to `len()` bytes that are readable and writable, aligned to 128 bytes, at the same address and of the
/// same length for the whole life of the value, and that no Rust reference covers except those made by this crate.
pub unsafe trait SharedMemory {
    /// First byte.
    fn base(&self) -> NonNull<u8>;
    /// Number of bytes.
    fn len(&self) -> usize;
    /// Whether there is no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

// SAFETY: same memory; the reference keeps the owner alive.
unsafe impl<M: SharedMemory + ?Sized> SharedMemory for &M {
    fn base(&self) -> NonNull<u8> {
        (**self).base()
    }
    fn len(&self) -> usize {
        (**self).len()
    }
}

#[cfg(feature = "std")]
// SAFETY: same memory; the Arc keeps the owner alive.
unsafe impl<M: SharedMemory + ?Sized> SharedMemory for std::sync::Arc<M> {
    fn base(&self) -> NonNull<u8> {
        (**self).base()
    }
    fn len(&self) -> usize {
        (**self).len()
    }
}

/// The 64-bit word at `offset`. Panics outside the memory or if misaligned: offsets come from validated geometry.
#[inline]
pub(crate) fn word<M: SharedMemory + ?Sized>(memory: &M, offset: usize) -> &AtomicU64 {
    assert!(offset.is_multiple_of(8) && offset.checked_add(8).is_some_and(|end| end <= memory.len()));
    // SAFETY: in bounds and aligned (just checked, base is aligned to 128); the memory lives as long as `memory`; all
    // accesses to words go through atomics.
    unsafe { AtomicU64::from_ptr(memory.base().as_ptr().add(offset).cast()) }
}

#[inline]
fn byte<M: SharedMemory + ?Sized>(memory: &M, offset: usize) -> &AtomicU8 {
    assert!(offset < memory.len());
    // SAFETY: in bounds; atomics only.
    unsafe { AtomicU8::from_ptr(memory.base().as_ptr().add(offset)) }
}

/// The `count` 64-bit words from `offset` on.
fn words<M: SharedMemory + ?Sized>(memory: &M, offset: usize, count: usize) -> &[AtomicU64] {
    let bytes = count.checked_mul(8);
    let end = bytes.and_then(|bytes| offset.checked_add(bytes));
    assert!(offset.is_multiple_of(8) && end.is_some_and(|end| end <= memory.len()));
    // SAFETY: in bounds and aligned (just checked); AtomicU64 has the layout of u64 and allows shared mutation.
    unsafe { core::slice::from_raw_parts(memory.base().as_ptr().add(offset).cast(), count) }
}

/// Copies out with relaxed atomic loads. `offset` is a multiple of 8.
pub(crate) fn load_bytes<M: SharedMemory + ?Sized>(memory: &M, offset: usize, to: &mut [u8]) {
    let (chunks, tail) = to.as_chunks_mut::<8>();
    let whole = chunks.len() * 8;
    for (chunk, word) in chunks.iter_mut().zip(words(memory, offset, whole / 8)) {
        *chunk = word.load(Ordering::Relaxed).to_le_bytes();
    }
    for (i, to) in tail.iter_mut().enumerate() {
        *to = byte(memory, offset + whole + i).load(Ordering::Relaxed);
    }
}

/// Copies in with relaxed atomic stores. `offset` is a multiple of 8.
pub(crate) fn store_bytes<M: SharedMemory + ?Sized>(memory: &M, offset: usize, from: &[u8]) {
    let (chunks, tail) = from.as_chunks::<8>();
    let whole = chunks.len() * 8;
    for (chunk, word) in chunks.iter().zip(words(memory, offset, whole / 8)) {
        word.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
    }
    for (i, from) in tail.iter().enumerate() {
        byte(memory, offset + whole + i).store(*from, Ordering::Relaxed);
    }
}

/// A plain slice of bytes that nobody changes for now.
///
/// # Safety
/// The caller owns these bytes by the protocol (slot state READING) for the life of the slice.
pub(crate) unsafe fn owned_slice<M: SharedMemory + ?Sized>(memory: &M, offset: usize, len: usize) -> &[u8] {
    assert!(offset.checked_add(len).is_some_and(|end| end <= memory.len()));
    // SAFETY: in bounds (checked); nobody else writes (caller).
    unsafe { core::slice::from_raw_parts(memory.base().as_ptr().add(offset), len) }
}

/// A plain slice of bytes that only the caller may touch for now.
///
/// # Safety
/// The caller owns these bytes by the protocol (slot state WRITING) for the life of the slice, and makes one slice only.
#[allow(clippy::mut_from_ref)]
pub(crate) unsafe fn owned_slice_mut<M: SharedMemory + ?Sized>(memory: &M, offset: usize, len: usize) -> &mut [u8] {
    assert!(offset.checked_add(len).is_some_and(|end| end <= memory.len()));
    // SAFETY: in bounds (checked); exclusive (caller).
    unsafe { core::slice::from_raw_parts_mut(memory.base().as_ptr().add(offset), len) }
}

/// Bytes of shared memory that are this side's by the protocol, for whoever fills them without a Rust reference: a device, which writes them by itself.
#[derive(Debug)]
pub struct ClaimedBytes<'a> {
    start: NonNull<u8>,
    len: usize,
    claim: PhantomData<&'a mut u8>,
}

impl ClaimedBytes<'_> {
    /// The first.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }
    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The bytes from `offset` on, for as long as the caller's claim lasts. Panics outside the memory.
pub(crate) fn claimed<M: SharedMemory + ?Sized>(memory: &M, offset: usize, len: usize) -> ClaimedBytes<'_> {
    assert!(offset.checked_add(len).is_some_and(|end| end <= memory.len()));
    // SAFETY: in bounds (just checked).
    let start = unsafe { memory.base().add(offset) };
    ClaimedBytes { start, len, claim: PhantomData }
}

/// Zeroed memory of this process alone: for tests, and for a ring between threads.
#[cfg(feature = "std")]
#[derive(Debug)]
pub struct HeapMemory {
    base: NonNull<u8>,
    layout: std::alloc::Layout,
}

#[cfg(feature = "std")]
impl HeapMemory {
    /// `len` zero bytes, aligned to a page. Panics if `len` is 0 or above `isize::MAX`.
    pub fn new(len: usize) -> Self {
        assert!(len > 0);
        let layout = std::alloc::Layout::from_size_align(len, 4096).expect("length below isize::MAX");
        // SAFETY: the layout has a size above 0.
        let Some(base) = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }) else {
            std::alloc::handle_alloc_error(layout)
        };
        Self { base, layout }
    }
}

#[cfg(feature = "std")]
impl Drop for HeapMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), self.layout) }
    }
}

#[cfg(feature = "std")]
// SAFETY: the allocation belongs to this value alone, is aligned to 4096 and never moves.
unsafe impl SharedMemory for HeapMemory {
    fn base(&self) -> NonNull<u8> {
        self.base
    }
    fn len(&self) -> usize {
        self.layout.size()
    }
}

#[cfg(feature = "std")]
// SAFETY: access goes through atomics or protocol-owned slices.
unsafe impl Send for HeapMemory {}
#[cfg(feature = "std")]
// SAFETY: as above.
unsafe impl Sync for HeapMemory {}
