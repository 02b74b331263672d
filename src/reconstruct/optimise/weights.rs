//! How much each measured line integral counts, and which are held back.

/// `1 / (1 + (e^m / photons) / model_error^2)`: the model's own variance over the sum of that and the photons'. 1 where there are
/// photons enough, falling as `e^-m` behind thick objects.
pub(super) fn weight(line_integral: f32, photons: f64, model_error: f64) -> f32 {
    // Noise makes air a little brighter than air; one wild value must not weigh more than air does.
    let photon_variance = f64::from(line_integral).max(0.0).exp() / photons;
    (1.0 / (1.0 + photon_variance / (model_error * model_error))) as f32
}

/// Whether this ray is held back: one in `one_in`, the same for the same seed.
pub(super) fn is_held_back(seed: u64, ray: u64, one_in: usize) -> bool {
    one_in > 0 && mix(seed ^ mix(ray)).is_multiple_of(one_in as u64)
}

/// SplitMix64's finaliser (Steele, Lea and Flood 2014): a hash of a counter.
fn mix(counter: u64) -> u64 {
    let z = counter.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
