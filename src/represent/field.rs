//! A neural field (NAF's representation, on a hash grid after Müller et al. 2022): parameters, first values, steps of Adam.
//!
//! What the field is stands in [`crate::compute::field`]. Here are its memory, its first parameters ([`Field::reset`]) and the drawing of rays ([`draw`]). All memory is taken by [`Field::new`]; nothing here allocates after it.
//!
//! **Entries without a gradient** still move by Adam's first moment, which fades in some ten steps, and their second moment fades in some
//! thousand. With values on a whole grid every entry that a voxel reads has a gradient in every step; only with few random rays a step do
//! entries pause.

#![forbid(unsafe_code)]

pub mod draw;
mod drive;

pub use drive::{FieldPlan, FieldRepresentation};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::compute::field::{FieldGradients, FieldLayout, FieldParameters, FieldShape};
use crate::compute::gaussians::AdamStep;
use crate::compute::{Buffer, ComputeError, Operations, Values, ValuesMut};
use crate::error::{Classed, ErrorClass};
use crate::geometry::VolumeGrid;

/// Why a field cannot be made or filled.
#[derive(Debug, thiserror::Error)]
pub enum FieldError {
    /// A setting that cannot work.
    #[error("field: {field} = {value}: {requirement}")]
    Setting {
        /// Name of the setting.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it must satisfy.
        requirement: &'static str,
    },
    /// A buffer has another length than it needs.
    #[error("field: `{buffer}` holds {given} values, but {needed} are needed")]
    Length {
        /// Which.
        buffer: &'static str,
        /// Its length.
        given: usize,
        /// The length needed.
        needed: usize,
    },
    /// The memory is not to be had.
    #[error("field: {bytes} bytes for the parameters are not to be had; use fewer levels or a smaller table")]
    Memory {
        /// Bytes they need.
        bytes: usize,
    },
    /// The shape does not work, or an operation refused.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

impl Classed for FieldError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Compute(error) => error.class(),
            _ => ErrorClass::Stop,
        }
    }
}

/// Settings of one step of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FieldRates {
    /// Learning rate of the tables.
    pub tables: f32,
    /// Learning rate of the network's weights and biases.
    pub network: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of Adam's second moments (see [`AdamStep::epsilon`]).
    pub epsilon: f32,
}

impl Default for FieldRates {
    /// For runs of some hundred steps with gradients of whole volumes, which are little noisy: moments that soon forget the rough first steps
    /// (0.75 and 0.9 instead of the usual 0.9 and 0.999) let the tables go in steps as large as features are. The network learns
    /// slowly: a step of its weights moves the whole volume at once, and at a hundredth the residual swings.
    fn default() -> Self {
        Self { tables: 0.3, network: 1e-3, beta1: 0.75, beta2: 0.9, epsilon: 1e-15 }
    }
}

/// Parameters of a field, their gradients and Adam's moments, in the memory of the carrier that works on them.
#[derive(Debug)]
pub struct Field {
    layout: FieldLayout,
    /// Tables, then the network.
    parameters: Buffer,
    gradients: Buffer,
    first: Buffer,
    second: Buffer,
    /// The parameters on the host, where the carrier's memory lies elsewhere.
    copy: Vec<f32>,
    level_weights: Vec<f32>,
    /// Floats of the tables.
    tables: usize,
}

impl Field {
    /// A field over the box of `grid`, all memory with it; begins as by [`Field::reset`] with seed 0 at a tenth of the density's unit.
    ///
    /// # Errors
    /// [`FieldError::Compute`] for a shape or box that cannot work, [`FieldError::Memory`] where there is none.
    pub fn new(compute: &dyn Operations, shape: &FieldShape, grid: &VolumeGrid) -> Result<Self, FieldError> {
        let layout = FieldLayout::new(shape, grid)?;
        let tables = layout.tables_len();
        let len = tables + layout.network_len();
        let floats = || compute.buffer("field", len).map_err(|_| FieldError::Memory { bytes: Self::bytes_of(&layout) });
        let (parameters, gradients, first, second) = (floats()?, floats()?, floats()?, floats()?);
        let level_weights = vec![1.0; shape.levels];
        let copy = vec![0.0; compute.copy_len(len)];
        let mut field = Self { layout, parameters, gradients, first, second, copy, level_weights, tables };
        field.reset(compute, 0, 0.1 * shape.density_unit_per_mm)?;
        Ok(field)
    }

    /// Bytes that [`Field::new`] takes; `plan` lists them.
    ///
    /// # Errors
    /// [`FieldError::Compute`] for a shape or box that cannot work.
    pub fn bytes(shape: &FieldShape, grid: &VolumeGrid) -> Result<usize, FieldError> {
        Ok(Self::bytes_of(&FieldLayout::new(shape, grid)?))
    }

    fn bytes_of(layout: &FieldLayout) -> usize {
        16 * (layout.tables_len() + layout.network_len()) + 4 * layout.levels().len()
    }

    /// Sets all parameters to their first values and forgets Adam's moments: features evenly within ±1e-4; biases zero but the last, which makes the field
    /// about `density_per_mm` everywhere; weights so that the network is linear at first (Balduzzi et al. 2017, "The shattered gradients problem"):
    /// units in pairs of opposite signs, each pair's weights evenly within `sqrt(3 / inputs)` (an input being a pair from the second layer
    /// on).
    ///
    /// # Errors
    /// [`FieldError::Setting`] where the density is not finite and positive.
    pub fn reset(&mut self, compute: &dyn Operations, seed: u64, density_per_mm: f32) -> Result<(), FieldError> {
        if !(density_per_mm > 0.0 && density_per_mm.is_finite()) {
            return Err(FieldError::Setting {
                field: "density_per_mm",
                value: f64::from(density_per_mm),
                requirement: "must be finite and > 0",
            });
        }
        let Self { layout, parameters, copy, tables, .. } = self;
        parameters.values_mut().make(compute, copy, |parameters| {
            first_parameters(layout, parameters.split_at_mut(*tables), seed, density_per_mm);
        })?;
        compute.fill(0.0, self.first.values_mut())?;
        Ok(compute.fill(0.0, self.second.values_mut())?)
    }

    /// Sizes and box.
    #[must_use]
    pub fn layout(&self) -> &FieldLayout {
        &self.layout
    }

    /// The field as the operations read it.
    #[must_use]
    pub fn parameters(&self) -> FieldParameters<'_, Values<'_>> {
        parameters(&self.layout, &self.parameters, &self.level_weights)
    }

    /// The field and its gradients, for the backward operations.
    pub fn parameters_and_gradients(&mut self) -> (FieldParameters<'_, Values<'_>>, FieldGradients<ValuesMut<'_>>) {
        let (tables, network) = self.gradients.values_mut().split_at(self.tables);
        (parameters(&self.layout, &self.parameters, &self.level_weights), FieldGradients { tables, network })
    }

    /// Sets each level's weight: coarse to fine, levels of weight 0 take no part and cost nothing.
    ///
    /// # Errors
    /// [`FieldError::Length`] for another number than there are levels, [`FieldError::Setting`] for a weight that is not finite.
    pub fn set_level_weights(&mut self, weights: &[f32]) -> Result<(), FieldError> {
        if weights.len() != self.level_weights.len() {
            return Err(FieldError::Length {
                buffer: "level weights",
                given: weights.len(),
                needed: self.level_weights.len(),
            });
        }
        if let Some(&value) = weights.iter().find(|weight| !weight.is_finite()) {
            return Err(FieldError::Setting {
                field: "level weight",
                value: f64::from(value),
                requirement: "must be finite",
            });
        }
        self.level_weights.copy_from_slice(weights);
        Ok(())
    }

    /// Sets the gradients to 0.
    ///
    /// # Errors
    /// As the operation.
    pub fn begin_step(&mut self, compute: &dyn Operations) -> Result<(), ComputeError> {
        compute.fill(0.0, self.gradients.values_mut())
    }

    /// One step of Adam along the gradients; `step` counts from 1.
    ///
    /// # Errors
    /// As the operation; none with the lengths used here.
    pub fn step(&mut self, compute: &dyn Operations, rates: &FieldRates, step: u32) -> Result<(), ComputeError> {
        let Self { parameters, gradients, first, second, tables, .. } = self;
        let (tables, all) = (*tables, parameters.len());
        for (part, rate) in [(0..tables, rates.tables), (tables..all, rates.network)] {
            compute.adam_step(
                &AdamStep { rate, beta1: rates.beta1, beta2: rates.beta2, epsilon: rates.epsilon, step },
                parameters.values_mut().part(part.clone()),
                gradients.values().part(part.clone()),
                first.values_mut().part(part.clone()),
                second.values_mut().part(part),
            )?;
        }
        Ok(())
    }
}

fn parameters<'a>(
    layout: &'a FieldLayout,
    parameters: &'a Buffer,
    level_weights: &'a [f32],
) -> FieldParameters<'a, Values<'a>> {
    let (all, tables) = (parameters.values(), layout.tables_len());
    FieldParameters { layout, tables: all.part(0..tables), network: all.part(tables..all.len()), level_weights }
}

/// See [`Field::reset`].
fn first_parameters(layout: &FieldLayout, (tables, network): (&mut [f32], &mut [f32]), seed: u64, density_per_mm: f32) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    tables.iter_mut().for_each(|feature| *feature = random.random_range(-1e-4..1e-4));
    let hidden = layout.shape().hidden_layers;
    for index in 0..=hidden {
        let layer = layout.layer(index);
        let (weights, biases) = network[layer.first..].split_at_mut(layer.inputs * layer.outputs);
        biases[..layer.outputs].fill(0.0);
        // Signs of the units that stand for one input or output: the first layer's inputs and the last output stand alone.
        let of_input: &[f32] = if index == 0 { &[1.0] } else { &[1.0, -1.0] };
        let of_output: &[f32] = if index == hidden { &[1.0] } else { &[1.0, -1.0] };
        let inputs = layer.inputs / of_input.len();
        let most = (3.0 / inputs as f32).sqrt();
        for input in 0..inputs {
            for output in 0..layer.outputs / of_output.len() {
                let weight = random.random_range(-most..most);
                for (i, a) in of_input.iter().enumerate() {
                    for (o, b) in of_output.iter().enumerate() {
                        let at = (input * of_input.len() + i) * layer.outputs + output * of_output.len() + o;
                        weights[at] = a * b * weight;
                    }
                }
            }
        }
    }
    let bias = layout.layer(hidden).biases();
    // The inverse of softplus.
    let value = (density_per_mm / layout.shape().density_unit_per_mm).max(1e-9);
    network[bias] = value + (-(-value).exp_m1()).ln();
}

#[cfg(test)]
mod tests;
