//! Slots for volumes that the device fills itself: in shared memory as a daemon has them, or where the machine has too little of that, on the heap.
#![allow(unsafe_code)] // Memory that the device writes.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use diffnr::compute::cuda::Registration;
use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::mapping;
use firmware_bridge::memory::SharedMemory;
use firmware_bridge::ring::{DropPolicy, RingGeometry};
use firmware_bridge::slots::{VolumeGeometry, VolumeReader, VolumeSlots, VolumeWriter};

type Memory = Arc<dyn SharedMemory + Send + Sync>;

pub(crate) struct Slots {
    pub(crate) writer: VolumeWriter<Memory>,
    pub(crate) reader: VolumeReader<Memory>,
    pub(crate) registration: Registration,
    /// Why they do not lie in shared memory but on the heap.
    pub(crate) not_shared: Option<String>,
}

impl Slots {
    /// Slots that are registered with the device at `index`.
    pub(crate) fn new(index: usize, geometry: VolumeGeometry) -> Result<Self, String> {
        match shared(geometry).and_then(|slots| Self::registered(index, slots, None)) {
            Ok(slots) => Ok(slots),
            Err(why) => Self::registered(index, on_heap(geometry)?, Some(why)),
        }
    }

    fn registered(index: usize, slots: VolumeSlots<Memory>, not_shared: Option<String>) -> Result<Self, String> {
        let memory = Arc::clone(slots.memory());
        let registration = Registration::new(index, Arc::clone(&memory)).map_err(|error| error.to_string())?;
        let again = VolumeSlots::attach(memory).map_err(|error| error.to_string())?;
        let reader = VolumeReader::new(again, std::process::id());
        Ok(Self { writer: VolumeWriter::attach(slots), reader, registration, not_shared })
    }
}

/// The segments of a daemon, of which only the slots are used.
fn shared(geometry: VolumeGeometry) -> Result<VolumeSlots<Memory>, String> {
    let name = format!("diffnr-bench-{}", std::process::id());
    let ring = RingGeometry::for_detector(2, 2, 2, DropPolicy::DropNewest);
    let served = mapping::serve(&name, ring, geometry, 0o600);
    // Of those that were not made whole, what there is.
    let unlinked = mapping::unlink(&name);
    let served = served.map_err(|error| error.to_string())?;
    unlinked.map_err(|error| error.to_string())?;
    let memory: Memory = Arc::<mapping::Mapping>::clone(served.writer.slots().memory());
    VolumeSlots::attach(memory).map_err(|error| error.to_string())
}

fn on_heap(geometry: VolumeGeometry) -> Result<VolumeSlots<Memory>, String> {
    let memory: Memory = Arc::new(Heap::new(geometry.segment_bytes() as usize));
    let id = std::process::id();
    VolumeSlots::initialise(memory, geometry, id.into(), id, monotonic_ns()).map_err(|error| error.to_string())
}

/// Whole pages of this process.
struct Heap {
    start: NonNull<u8>,
    layout: Layout,
}

impl Heap {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes.max(1), 4096).unwrap_or_else(|_| Layout::new::<[u8; 4096]>());
        // SAFETY: not of size 0.
        let start = unsafe { alloc_zeroed(layout) };
        Self { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody else frees it.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

// SAFETY: plain memory, which goes with its owner.
unsafe impl Send for Heap {}
// SAFETY: reached by the atomics and claims of `SharedMemory` alone.
unsafe impl Sync for Heap {}

// SAFETY: readable and writable at one address until it is dropped, aligned to a page, and only reached through the slots.
unsafe impl SharedMemory for Heap {
    fn base(&self) -> NonNull<u8> {
        self.start
    }
    fn len(&self) -> usize {
        self.layout.size()
    }
}
