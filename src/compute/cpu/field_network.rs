//! The field's network on a block of points: values, and gradients by weights and inputs.
//!
//! Activations lie `[point][unit]`. All three products (values, gradients by inputs, gradients by weights) then are the same loop: a tile of
//! some rows and two registers of columns, each step two loads and a number a row, broadcast.
//!
//! **Operations.** With `m` weights a point takes `m` multiply-adds forward and `3 m` in the backward pass, which computes the activations anew
//! instead of reading them back (`m` for values, inputs and weights each): less than `4 m / 16` register operations on AVX-512.

// Generic SIMD over buffers whose sizes are settled in `Sizes`.
#![allow(unsafe_code)]
// Indices name lanes and rows of registers, in several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::super::field::FieldShape;
use super::field_lanes::{FieldLanes, softplus_with_slope};
use super::field_product::{Accumulate, Activate, Factor, Store, Through, product};

/// Points of a block: activations of all layers stay in the first-level cache.
pub(super) const POINTS: usize = 32;

/// Sizes of a network's buffers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) inputs: usize,
    /// Inputs with padding: a multiple of 16.
    pub(super) wide: usize,
    pub(super) width: usize,
    pub(super) hidden: usize,
    leak: f32,
    unit: f32,
}

impl Sizes {
    pub(super) fn of(shape: &FieldShape) -> Self {
        Self {
            inputs: shape.inputs(),
            wide: shape.inputs().next_multiple_of(16),
            width: shape.width,
            hidden: shape.hidden_layers,
            leak: shape.leak,
            unit: shape.density_unit_per_mm,
        }
    }

    /// Floats of a [`Block`].
    pub(super) fn block_floats(&self) -> usize {
        POINTS * (2 * self.wide + self.width * self.hidden + 2 * self.wide.max(self.width) + 16 + 3)
    }

    /// Floats of [`transposed`] weights.
    pub(super) fn transposed_floats(&self) -> usize {
        (self.wide + (self.hidden - 1) * self.width) * self.width
    }

    /// Where layer `index`'s weights start in the network, with the number of its inputs.
    #[inline(always)]
    fn layer(&self, index: usize) -> (usize, usize) {
        if index == 0 {
            (0, self.inputs)
        } else {
            ((self.inputs + 1) * self.width + (index - 1) * (self.width + 1) * self.width, self.width)
        }
    }
}

/// Weights of the hidden layers as the gradient by inputs needs them: `[layer][output][input]`, inputs padded by zeros.
pub(super) fn transposed(sizes: &Sizes, network: &[f32], to: &mut [f32]) {
    let mut rest = &mut to[..sizes.transposed_floats()];
    for layer in 0..sizes.hidden {
        let (first, inputs) = sizes.layer(layer);
        let stride = if layer == 0 { sizes.wide } else { sizes.width };
        let (this, behind) = rest.split_at_mut(stride * sizes.width);
        this.fill(0.0);
        for (i, row) in network[first..][..inputs * sizes.width].chunks_exact(sizes.width).enumerate() {
            for (o, &weight) in row.iter().enumerate() {
                this[o * stride + i] = weight;
            }
        }
        rest = behind;
    }
}

/// A block's buffers, cut from a thread's scratch.
#[derive(Debug)]
pub(super) struct Block<'a> {
    /// `[input][POINTS]`, where encodings are put; inputs of padding stay zero.
    pub(super) features: &'a mut [f32],
    /// `[POINTS][wide]`
    pub(super) inputs: &'a mut [f32],
    /// `[layer][POINTS][width]`
    hidden: &'a mut [f32],
    /// `[POINTS][width or wide]`; after [`Block::backward`] the gradients by the inputs, `[POINTS][wide]`.
    pub(super) gradient: &'a mut [f32],
    other: &'a mut [f32],
    sums: &'a mut [f32],
    logits: &'a mut [f32],
    /// Values, 1/mm, after [`Block::forward`].
    pub(super) values: &'a mut [f32],
    /// Gradients by the values, to be set before [`Block::backward`]; 0 for points that do not count.
    pub(super) by_values: &'a mut [f32],
}

impl<'a> Block<'a> {
    /// The buffers, and the rest of the scratch.
    pub(super) fn cut(sizes: &Sizes, floats: &'a mut [f32]) -> (Self, &'a mut [f32]) {
        let wider = sizes.wide.max(sizes.width);
        let mut rest = floats;
        let mut next = |count: usize| {
            let (this, behind) = std::mem::take(&mut rest).split_at_mut(POINTS * count);
            rest = behind;
            this
        };
        let (features, inputs) = (next(sizes.wide), next(sizes.wide));
        let (hidden, gradient, other) = (next(sizes.width * sizes.hidden), next(wider), next(wider));
        let (sums, logits, values, by_values) = (next(16), next(1), next(1), next(1));
        features.fill(0.0);
        inputs.fill(0.0);
        (Self { features, inputs, hidden, gradient, other, sums, logits, values, by_values }, rest)
    }

    /// Brings the features `[input][POINTS]` into the inputs `[POINTS][wide]`.
    ///
    /// # Safety
    /// As [`Wide`].
    #[inline(always)]
    pub(super) unsafe fn gather_inputs<W: FieldLanes>(&mut self, sizes: &Sizes) {
        for first in (0..sizes.inputs).step_by(W::N) {
            for p in (0..POINTS).step_by(W::N) {
                // SAFETY: both buffers hold `POINTS * wide` floats, `wide` and `POINTS` are multiples of N.
                unsafe {
                    let from = self.features.as_ptr().add(first * POINTS + p);
                    <W as FieldLanes>::transpose(
                        from,
                        POINTS,
                        self.inputs.as_mut_ptr().add(p * sizes.wide + first),
                        sizes.wide,
                    );
                }
            }
        }
    }

    /// Values of the block's points from their inputs.
    ///
    /// # Safety
    /// As [`Wide`]; `network` must have the length that the shape demands.
    #[inline(always)]
    pub(super) unsafe fn forward<W: FieldLanes>(&mut self, sizes: &Sizes, network: &[f32]) {
        let Sizes { width, wide, hidden, .. } = *sizes;
        // SAFETY: the caller's; the sizes are those that the block was cut by.
        unsafe {
            let weights = network.as_ptr();
            for layer in 0..hidden {
                let (first, inputs) = sizes.layer(layer);
                let (from, stride) = if layer == 0 {
                    (self.inputs.as_ptr(), wide)
                } else {
                    (self.hidden.as_ptr().add((layer - 1) * POINTS * width), width)
                };
                let finish = Activate::<W> {
                    biases: weights.add(first + inputs * width),
                    leak: W::splat(sizes.leak),
                    to: self.hidden.as_mut_ptr().add(layer * POINTS * width),
                    stride: width,
                };
                let a = Factor { at: from, row: stride, step: 1 };
                product::<W, _>(a, weights.add(first), width, [POINTS, width, inputs], &finish);
            }
            // The last layer has one output: its sums over a register's lanes, N points at a time.
            let (first, _) = sizes.layer(hidden);
            let last = self.hidden.as_ptr().add((hidden - 1) * POINTS * width);
            let bias = W::splat(network[first + width]);
            let unit = W::splat(sizes.unit);
            let sums = self.sums.as_mut_ptr();
            for p in (0..POINTS).step_by(W::N) {
                for q in 0..W::N {
                    let row = last.add((p + q) * width);
                    let mut sum = W::mul(W::load(row), W::load(weights.add(first)));
                    for n in (W::N..width).step_by(W::N) {
                        sum = W::fma(W::load(row.add(n)), W::load(weights.add(first + n)), sum);
                    }
                    W::store(sums.add(q * W::N), sum);
                }
                let turned = sums.add(W::N * W::N);
                <W as FieldLanes>::transpose(sums, W::N, turned, W::N);
                let mut logit = bias;
                for q in 0..W::N {
                    logit = W::add(logit, W::load(turned.add(q * W::N)));
                }
                W::store(self.logits.as_mut_ptr().add(p), logit);
                let (value, _) = softplus_with_slope::<W>(logit);
                W::store(self.values.as_mut_ptr().add(p), W::mul(value, unit));
            }
        }
    }

    /// After [`Block::forward`]: adds the gradients by the network to `by_network` and leaves those by the inputs in `gradient`. `turned`
    /// holds the [`transposed`] weights.
    ///
    /// # Safety
    /// As [`Block::forward`], for `turned` and `by_network` as well.
    #[inline(always)]
    pub(super) unsafe fn backward<W: FieldLanes>(
        &mut self,
        sizes: &Sizes,
        network: &[f32],
        turned: &[f32],
        by_network: &mut [f32],
    ) {
        let Sizes { width, wide, hidden, .. } = *sizes;
        // SAFETY: the caller's; the sizes are those that the block was cut by.
        unsafe {
            let (zero, one) = (W::splat(0.0), W::splat(1.0));
            let leak = W::splat(sizes.leak);
            let positive = W::sub(one, leak);
            for p in (0..POINTS).step_by(W::N) {
                let (_, slope) = softplus_with_slope::<W>(W::load(self.logits.as_ptr().add(p)));
                let by = self.by_values.as_mut_ptr().add(p);
                W::store(by, W::mul(W::mul(W::load(by), W::splat(sizes.unit)), slope));
            }
            let (first, _) = sizes.layer(hidden);
            let last = self.hidden.as_ptr().add((hidden - 1) * POINTS * width);
            let mut sum = 0.0;
            for &by in &*self.by_values {
                sum += by;
            }
            by_network[first + width] += sum;
            for n in (0..width).step_by(W::N) {
                let weight = W::load(network.as_ptr().add(first + n));
                let to = by_network.as_mut_ptr().add(first + n);
                let mut sum = W::load(to);
                for p in 0..POINTS {
                    let (by, unit) = (W::splat(self.by_values[p]), W::load(last.add(p * width + n)));
                    sum = W::fma(by, unit, sum);
                    let through = W::mul(by, weight);
                    let through = W::fma(through, leak, W::below(zero, unit, W::mul(through, positive)));
                    W::store(self.gradient.as_mut_ptr().add(p * width + n), through);
                }
                W::store(to, sum);
            }
            let mut behind = sizes.transposed_floats();
            for layer in (0..hidden).rev() {
                let (first, inputs) = sizes.layer(layer);
                let (from, stride) = if layer == 0 {
                    (self.inputs.as_ptr(), wide)
                } else {
                    (self.hidden.as_ptr().add((layer - 1) * POINTS * width), width)
                };
                let gradient = self.gradient.as_ptr();
                // Biases.
                let biases = by_network.as_mut_ptr().add(first + inputs * width);
                for n in (0..width).step_by(W::N) {
                    let mut sum = W::load(biases.add(n));
                    for p in 0..POINTS {
                        sum = W::add(sum, W::load(gradient.add(p * width + n)));
                    }
                    W::store(biases.add(n), sum);
                }
                // Weights: rows are inputs, the sum goes over points.
                let a = Factor { at: from, row: 1, step: stride };
                let to = Accumulate { to: by_network.as_mut_ptr().add(first), stride: width };
                product::<W, _>(a, gradient, width, [inputs, width, POINTS], &to);
                // Inputs.
                behind -= stride * width;
                let a = Factor { at: gradient, row: width, step: 1 };
                let b = turned.as_ptr().add(behind);
                if layer == 0 {
                    let to = Store { to: self.other.as_mut_ptr(), stride: wide };
                    product::<W, _>(a, b, wide, [POINTS, wide, width], &to);
                } else {
                    let to = Through::<W> { units: from, leak, positive, to: self.other.as_mut_ptr(), stride: width };
                    product::<W, _>(a, b, width, [POINTS, width, width], &to);
                }
                std::mem::swap(&mut self.gradient, &mut self.other);
            }
        }
    }
}
