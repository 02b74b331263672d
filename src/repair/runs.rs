//! What runs of the model read and write: a batch of slices and the same repaired, in the carrier's memory, where the model's provider reaches it itself or
//! else through the host.
//!
//! ```text
//! volume ──gather──▶ slices ─────────────▶ ONNX Runtime ─────────────▶ repaired ──add──▶ mean     the carrier's memory, in place
//!                       └──read──▶ copy ──▶ ONNX Runtime ──▶ copy ──write──┘                      through the host
//! ```

#![allow(unsafe_code)] // Tensors over the carrier's memory.

use ort::session::{IoBinding, Session};
use ort::value::{Tensor, TensorRefMut};

use super::manifest::{Manifest, Plane};
use super::providers::Providers;
use super::session::Options;
use super::{RepairError, raw};
use crate::compute::slices::SliceLayout;
use crate::compute::{Address, Buffer, Operations, Values, ValuesMut};

/// A batch of slices of the largest plane, and the same repaired, in the memory of a carrier.
#[derive(Debug)]
pub struct SliceBuffers {
    /// `[slice][channel][row][column]`, window units.
    slices: Buffer,
    /// `[slice][1][row][column]`.
    repaired: Buffer,
}

impl SliceBuffers {
    /// Takes the buffers for a model, and makes the carrier ready for its slices.
    ///
    /// # Errors
    /// [`RepairError::Input`] for options that do not fit the model, [`RepairError::Compute`].
    pub fn take(compute: &mut dyn Operations, manifest: &Manifest, options: &Options) -> Result<Self, RepairError> {
        let [slices, repaired] = floats(manifest, options)?;
        compute.prepare_slices()?;
        Ok(Self {
            slices: compute.buffer("repair slices", slices)?,
            repaired: compute.buffer("repair repaired slices", repaired)?,
        })
    }

    /// Where they lie, if others can be told.
    pub(super) fn addresses(&mut self, compute: &dyn Operations) -> Option<[Address; 2]> {
        Some([compute.address(self.slices.values_mut())?, compute.address(self.repaired.values_mut())?])
    }

    /// Bytes of both.
    ///
    /// # Errors
    /// [`RepairError::Input`] for options that do not fit the model.
    pub fn bytes(manifest: &Manifest, options: &Options) -> Result<usize, RepairError> {
        Ok(floats(manifest, options)?.iter().sum::<usize>() * size_of::<f32>())
    }
}

/// Floats of slices and of repaired ones.
fn floats(manifest: &Manifest, options: &Options) -> Result<[usize; 2], RepairError> {
    options.check()?;
    let options = options.of_model(manifest)?;
    let largest = options.layouts(manifest).map(|(_, layout, batch)| batch * layout.pixels()).max().unwrap_or(0);
    Ok([largest * manifest.channels(), largest])
}

/// A plane's runs, bound to the repairing session.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) plane: Plane,
    pub(super) layout: SliceLayout,
    /// Slices of a run.
    pub(super) batch: usize,
    slices: TensorRefMut<'static, f32>,
    index: Tensor<i64>,
    height: Tensor<f32>,
    binding: IoBinding,
}

/// The runs of all planes, and what they work on.
#[derive(Debug)]
pub(super) struct Runs {
    pub(super) bound: Vec<Bound>,
    buffers: SliceBuffers,
    channels: usize,
    /// Where the session finds the buffers themselves; else `copies` are bound.
    in_place: Option<[Address; 2]>,
    copies: [Vec<f32>; 2],
    /// Whether inputs are copied to the provider's device when they are bound, which is then done for each run.
    binds_anew: bool,
}

impl Runs {
    /// Binds every plane of a model.
    ///
    /// # Errors
    /// [`RepairError::Input`] for buffers of another model, [`RepairError::Run`] with ONNX Runtime's reason.
    pub(super) fn bind(
        compute: &dyn Operations,
        mut buffers: SliceBuffers,
        (manifest, options): (&Manifest, &Options),
        (session, providers): (&Session, &Providers),
        context: &Tensor<f32>,
    ) -> Result<Self, RepairError> {
        let needed = floats(manifest, options)?;
        let given = [buffers.slices.len(), buffers.repaired.len()];
        if given != needed {
            return Err(RepairError::input("buffers", format!("{given:?} values"), format!("must be {needed:?}")));
        }
        let places = buffers.addresses(compute).filter(|places| places.iter().all(|place| reaches(providers, *place)));
        let mut copies = match places {
            Some(_) => [Vec::new(), Vec::new()],
            None => needed.map(|floats| vec![0.0; floats]),
        };
        let [slices, repaired] = places
            .unwrap_or_else(|| copies.each_mut().map(|copy| Address::Host(copy.as_mut_ptr().expose_provenance())));
        let channels = manifest.channels();
        let bound = options.layouts(manifest).map(|(plane, layout, batch)| -> Result<Bound, RepairError> {
            let failed = |error: ort::Error| RepairError::run(&error);
            let [rows, columns] = layout.padded();
            let index = manifest.plane_index(plane)? as i64;
            // SAFETY: the buffers, or their copies, hold the largest plane's batch and live as long as the binding: copies beside it, and a carrier's buffers in
            // the carrier that every run is given and asked about (`Runs::run`). Nobody else works on them during a run.
            let (slices, repaired) = unsafe {
                (
                    raw::tensor_at(slices, [batch, channels, rows, columns]).map_err(failed)?,
                    raw::tensor_at(repaired, [batch, 1, rows, columns]).map_err(failed)?,
                )
            };
            let mut bound = Bound {
                plane,
                layout,
                batch,
                slices,
                index: Tensor::from_array(([batch], vec![index; batch])).map_err(failed)?,
                height: Tensor::from_array(([batch], vec![0.5_f32; batch])).map_err(failed)?,
                binding: session.create_binding().map_err(failed)?,
            };
            bound.binding.bind_output("repaired", repaired).map_err(failed)?;
            bound.bind_inputs(context)?;
            Ok(bound)
        });
        Ok(Self {
            bound: bound.collect::<Result<_, _>>()?,
            in_place: places,
            copies,
            channels,
            binds_anew: providers.copies_inputs(),
            buffers,
        })
    }

    /// The slices of a plane's run, to be filled.
    pub(super) fn slices(&mut self, place: usize) -> ValuesMut<'_> {
        let bound = &self.bound[place];
        let floats = bound.batch * self.channels * bound.layout.pixels();
        self.buffers.slices.values_mut().part(0..floats)
    }

    /// What a plane's run has made of them.
    pub(super) fn repaired(&self, place: usize) -> Values<'_> {
        let bound = &self.bound[place];
        self.buffers.repaired.values().part(0..bound.batch * bound.layout.pixels())
    }

    /// Where the slices of a plane's run stand along its axis, 0 to 1.
    pub(super) fn heights(&mut self, place: usize) -> &mut [f32] {
        self.bound[place].height.extract_tensor_mut().1
    }

    /// Has the model run on the slices of a plane. What the carrier was asked for before has ended when it begins, and it has ended when this returns.
    ///
    /// # Errors
    /// [`RepairError::Compute`] for another carrier than that of the buffers, or what fails on it; [`RepairError::Run`].
    pub(super) fn run(
        &mut self,
        compute: &dyn Operations,
        place: usize,
        context: &Tensor<f32>,
        run: impl FnOnce(&IoBinding) -> Result<(), String>,
    ) -> Result<(), RepairError> {
        let floats = [self.slices(place).len(), self.repaired(place).len()];
        if self.in_place.is_some() {
            if self.buffers.addresses(compute) != self.in_place {
                return Err(RepairError::input(
                    "carrier",
                    compute.description(),
                    "is not the one of the model's buffers",
                ));
            }
            compute.finish()?;
        } else {
            compute.read(self.buffers.slices.values().part(0..floats[0]), &mut self.copies[0][..floats[0]])?;
        }
        let bound = &mut self.bound[place];
        if self.binds_anew {
            bound.bind_inputs(context)?;
        }
        run(&bound.binding).map_err(|reason| RepairError::Run { reason })?;
        bound.binding.synchronize_outputs().map_err(|error| RepairError::run(&error))?;
        if self.in_place.is_none() {
            compute.write(&self.copies[1][..floats[1]], self.buffers.repaired.values_mut().part(0..floats[1]))?;
        }
        Ok(())
    }

    /// Bytes of the buffers, copies and tensors.
    pub(super) fn bytes(&self) -> usize {
        let copies: usize = self.copies.iter().map(Vec::len).sum();
        let floats = self.buffers.slices.len() + self.buffers.repaired.len() + copies;
        size_of::<f32>() * floats + self.bound.iter().map(|bound| told_bytes(bound.batch)).sum::<usize>()
    }

    /// Whether the session works on the carrier's memory itself.
    pub(super) fn in_place(&self) -> bool {
        self.in_place.is_some()
    }
}

/// Bytes of index and height of a plane's slices.
pub(super) fn told_bytes(batch: usize) -> usize {
    batch * (size_of::<i64>() + size_of::<f32>())
}

impl Bound {
    /// Where no provider is elsewhere the session reads the buffers themselves from then on; one on another device than they are gets a copy.
    fn bind_inputs(&mut self, context: &Tensor<f32>) -> Result<(), RepairError> {
        let failed = |error: ort::Error| RepairError::run(&error);
        raw::bind_input(&mut self.binding, c"slices", &self.slices).map_err(|reason| RepairError::Run { reason })?;
        self.binding.bind_input("context", context).map_err(failed)?;
        self.binding.bind_input("plane", &self.index).map_err(failed)?;
        self.binding.bind_input("height", &self.height).map_err(failed)
    }
}

/// Whether the providers that run a model work on memory of such a place, or ONNX Runtime copies from there what it needs.
fn reaches(providers: &Providers, place: Address) -> bool {
    match place {
        Address::Host(_) => true,
        Address::Cuda { .. } => providers.run_on_cuda(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Provider;
    use super::*;

    #[test]
    fn device_memory_is_for_those_who_really_run_on_it() {
        let here = |names: &[Provider], place: Address| {
            let assigned = names.iter().map(|provider| (provider.name().to_string(), 1)).collect();
            reaches(&Providers { registered: Provider::CHAIN.to_vec(), assigned, ..Providers::default() }, place)
        };
        let (host, device) = (Address::Host(64), Address::Cuda { device: 0, pointer: 64 });
        assert!(here(&[Provider::Cpu], host) && here(&[Provider::TensorRt], host));
        assert!(here(&[Provider::TensorRt, Provider::Cpu], device) && here(&[Provider::Cuda], device));
        // The plugin's own memory is not known to be the driver's; a provider that took no node runs nothing.
        assert!(!here(&[Provider::TensorRtRtx], device) && !here(&[Provider::Cpu], device) && !here(&[], device));
    }
}
