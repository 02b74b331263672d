//! Calls of ONNX Runtime's interface that the crate `ort` lacks: which execution provider got which nodes (API 24), tensors over memory that is somebody
//! else's, and a run that allocates nothing.

#![allow(unsafe_code)] // See above: they take and give raw pointers.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::ptr;

use ort::AsPointer;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, NoSelectedOutputs, RunOptions, Session};
use ort::value::{Shape, TensorRefMut};

use crate::compute::Address;

/// The session's option that makes ONNX Runtime keep the division.
pub(super) const OPTION: &str = "session.record_ep_graph_assignment_info";

/// Takes a status: its message where it is an error; releases it.
fn check(status: ort::sys::OrtStatusPtr) -> Result<(), String> {
    if status.0.is_null() {
        return Ok(());
    }
    let api = ort::api();
    // SAFETY: a status that is not null is an error that is ours until it is released; its message lives as long.
    let message = unsafe { CStr::from_ptr((api.GetErrorMessage)(status.0)) }.to_string_lossy().into_owned();
    // SAFETY: ours, released once, not used after.
    unsafe { (api.ReleaseStatus)(status.0) };
    Err(message)
}

/// Name of each execution provider (`CPUExecutionProvider`, ...) and its number of nodes, by name; the session must have been made
/// with [`OPTION`] set to "1".
pub(super) fn nodes_by_provider(session: &Session) -> Result<Vec<(String, usize)>, String> {
    let api = ort::api();
    let (mut parts, mut count) = (ptr::null(), 0_usize);
    // SAFETY: a live session; both results are written where the status is no error. The array belongs to the session.
    check(unsafe { (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &mut parts, &mut count) })?;
    let mut nodes = BTreeMap::<String, usize>::new();
    for place in 0..count {
        // SAFETY: `parts` points to `count` pointers that live as long as the session, which is borrowed here.
        let part = unsafe { *parts.add(place) };
        let mut name: *const c_char = ptr::null();
        // SAFETY: `part` is one of the session's; the name is written where the status is no error and belongs to the session.
        check(unsafe { (api.EpAssignedSubgraph_GetEpName)(part, &mut name) })?;
        let (mut list, mut length) = (ptr::null(), 0_usize);
        // SAFETY: as above; the list is not read, only its length.
        check(unsafe { (api.EpAssignedSubgraph_GetNodes)(part, &mut list, &mut length) })?;
        // SAFETY: a zero-terminated string of the session's.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        *nodes.entry(name).or_default() += length;
    }
    Ok(nodes.into_iter().collect())
}

/// A tensor over the memory at an address, which it does not own.
///
/// # Safety
/// There are as many floats, as long as the tensor is used, and nobody else works on them meanwhile.
pub(super) unsafe fn tensor_at<const N: usize>(
    address: Address,
    shape: [usize; N],
) -> ort::Result<TensorRefMut<'static, f32>> {
    let (device, index, pointer) = match address {
        Address::Host(pointer) => (AllocationDevice::CPU, 0, pointer),
        Address::Cuda { device, pointer } => (AllocationDevice::CUDA, device as i32, pointer as usize),
    };
    let info = MemoryInfo::new(device, index, AllocatorType::Device, MemoryType::Default)?;
    let shape = Shape::new(shape.map(|size| size as i64));
    // SAFETY: the caller's promise; memory of the device is not touched here.
    unsafe { TensorRefMut::from_raw(info, ptr::with_exposed_provenance_mut(pointer), shape) }
}

/// Binds an input where it lies. `ort`'s own call would bind a copy of a tensor that does not own its memory.
pub(super) fn bind_input(
    binding: &mut IoBinding,
    name: &CStr,
    tensor: &TensorRefMut<'static, f32>,
) -> Result<(), String> {
    // SAFETY: all three live; the binding keeps the tensor, and its memory is what `tensor_at` was promised.
    check(unsafe { (ort::api().BindInput)(binding.ptr_mut(), name.as_ptr(), tensor.ptr()) })
}

/// Runs a session on what is bound to it. `ort`'s own call wraps each output anew, which allocates; here outputs are read where they were
/// bound.
pub(super) fn run(
    session: &mut Session,
    binding: &IoBinding,
    options: &RunOptions<NoSelectedOutputs>,
) -> Result<(), String> {
    // SAFETY: all three live throughout the call; the session is borrowed alone, since a run is not safe beside another, and ONNX Runtime
    // changes neither options nor binding. Inputs and outputs are kept alive by the binding.
    check(unsafe { (ort::api().RunWithBinding)(session.ptr().cast_mut(), options.ptr(), binding.ptr()) })
}
