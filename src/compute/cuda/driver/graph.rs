//! Many launches as one: CUDA graphs, captured from the compute stream.

#![allow(unsafe_code)] // Calls the driver.

use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUgraphNodeType, CUstreamCaptureMode};

use super::super::super::ComputeError;
use super::super::Tape;
use super::super::tape::Step;
use super::facts::{checked, device_error};
use super::owned::Stream;
use super::{Driver, Order};

/// A graph that can be launched. The context must be the thread's current one when it is dropped.
#[derive(Debug)]
pub(super) struct Graph(CUgraphExec);

impl Graph {
    /// Puts it in the stream.
    pub(super) fn launch(&self, stream: &Stream) -> Result<(), ComputeError> {
        // SAFETY: both handles are alive.
        checked("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.0, stream.handle()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated once; the driver keeps what is still running until it has ended.
        let _ = unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}

/// What was captured and is not yet fit to be launched.
struct Template(CUgraph);

impl Drop for Template {
    fn drop(&mut self) {
        // SAFETY: captured by this value's maker; graphs made of it do not need it.
        let _ = unsafe { sys::cuGraphDestroy(self.0) };
    }
}

impl Driver {
    /// Captures what is on the tape; nothing of it is carried out.
    pub(super) fn graph_of(&self, order: &mut Order, tape: &Tape) -> Result<Graph, ComputeError> {
        // Only what this thread puts in the stream: other carriers' threads go on as they like.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        checked("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.compute.handle(), mode) })?;
        let asked = tape.steps().iter().try_for_each(|step| match step {
            // SAFETY: promised when it was written down.
            Step::Launch { kernel, shape, arguments } => unsafe {
                self.launch_within(order, kernel, *shape, arguments)
            },
            Step::Copy { from, to, bytes } => self.copy_within(order, *from, *to, *bytes),
            Step::Fill { bytes, pattern } => self.fill_within(order, bytes.clone(), *pattern),
        });
        let mut template = null_mut();
        // SAFETY: writes one handle where the pointer points. The capture has to end whatever came of it.
        let ended = unsafe { sys::cuStreamEndCapture(self.compute.handle(), &mut template) };
        let template = (!template.is_null()).then(|| Template(template));
        asked?;
        checked("cuStreamEndCapture", ended)?;
        let template = template.ok_or_else(|| device_error("cuStreamEndCapture: no graph".into()))?;
        refuse_memory(&template)?;
        let mut graph = null_mut();
        // SAFETY: writes one handle where the pointer points.
        checked("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&mut graph, template.0, 0) })?;
        let graph = Graph(graph);
        // SAFETY: both handles are alive. Now, so that the first launch need not.
        checked("cuGraphUpload", unsafe { sys::cuGraphUpload(graph.0, self.compute.handle()) })?;
        Ok(graph)
    }
}

/// Refuses a graph that would take or give back memory of the device: all of it is settled before the start.
fn refuse_memory(template: &Template) -> Result<(), ComputeError> {
    let mut count = 0;
    // SAFETY: writes one number where the pointer points.
    checked("cuGraphGetNodes", unsafe { sys::cuGraphGetNodes(template.0, null_mut(), &mut count) })?;
    let mut nodes = vec![null_mut(); count];
    // SAFETY: writes no more handles than there is room for.
    checked("cuGraphGetNodes", unsafe { sys::cuGraphGetNodes(template.0, nodes.as_mut_ptr(), &mut count) })?;
    for node in nodes.into_iter().take(count) {
        let mut kind = CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
        // SAFETY: writes one value where the pointer points; the node is the graph's.
        checked("cuGraphNodeGetType", unsafe { sys::cuGraphNodeGetType(node, &mut kind) })?;
        if matches!(kind, CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEM_ALLOC | CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEM_FREE)
        {
            return Err(device_error(
                "a graph that takes or frees memory is refused: all of it is settled before".into(),
            ));
        }
    }
    Ok(())
}
