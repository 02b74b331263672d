//! What is refused: buffers of the wrong length, by operation and name, and launches that cannot be.

use std::f64::consts::TAU;

use diffnr::compute::ComputeError;
use diffnr::compute::cpu::ramp_filter::{RampFilter, Window};
use diffnr::compute::cuda;
use diffnr::compute::cuda::{DeviceSlice, DeviceSum, DeviceWeights, ExpertsTable, FilterTable, Launcher, ScanTable};
use diffnr::compute::experts::{Expert, Experts, TAPS};
use diffnr::compute::gaussians::AdamStep;
use diffnr::compute::sart::CorrectionStep;
use diffnr::compute::total_variation::TotalVariation;
use diffnr::geometry::Detector;

use crate::carriers::on_each;
use crate::scans::{grid, orbit};
use crate::values::{download, upload};

fn new(launcher: &dyn Launcher, len: usize) -> DeviceSlice<f32> {
    DeviceSlice::allocate(launcher, len).unwrap()
}

#[track_caller]
fn refused(result: Result<(), ComputeError>, the_operation: &str, the_buffer: &str) {
    match result {
        Err(ComputeError::Shape { operation, buffer, given, needed }) => {
            assert_eq!((operation, buffer), (the_operation, the_buffer), "{given} {needed}");
        }
        other => panic!("{the_operation}, {the_buffer}: {other:?}"),
    }
}

#[test]
fn projectors_refuse_wrong_lengths() {
    on_each("refusals of the projectors", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let (grid, geometry) = (grid([4; 3], 10.0), orbit(8, 8, 20.0).over_arc(3, 0.0, TAU));
        let scan = ScanTable::upload(l, &geometry, &grid).unwrap();
        let (x, y, short) = (new(l, 64), new(l, 192), new(l, 63));
        refused(cuda::forward_project(l, &scan, short, y), "forward_project", "volume");
        refused(cuda::forward_project(l, &scan, x, short), "forward_project", "projections");
        refused(cuda::back_project_matched(l, &scan, short, x), "back_project_matched", "projections");
        refused(cuda::back_project_matched(l, &scan, y, short), "back_project_matched", "volume");
        refused(cuda::back_project_fdk(l, &scan, short, x), "back_project_fdk", "filtered");
        refused(cuda::back_project_fdk(l, &scan, y, short), "back_project_fdk", "volume");

        let detector = Detector { columns: 8, rows: 8 };
        let weights = DeviceWeights { detector, pad: [1, 0], image: new(l, 64), columns: new(l, 24) };
        let wide = new(l, 3 * 8 * 9);
        let weigh = |weights: DeviceWeights, from, to| cuda::weight_projections(l, &weights, from, to);
        weigh(weights, y, wide).unwrap();
        refused(weigh(weights, short, wide), "weight_projections", "projections");
        refused(weigh(weights, y, short), "weight_projections", "weighted");
        refused(weigh(DeviceWeights { columns: short, ..weights }, y, wide), "weight_projections", "columns");
        refused(weigh(DeviceWeights { image: short, ..weights }, y, wide), "weight_projections", "image");
        let filter = FilterTable::upload(l, &RampFilter::new(8, Window::RamLak, 1.0)).unwrap();
        refused(cuda::filter_rows(l, &filter, short), "filter_rows", "projections");
    });
}

#[test]
fn elementwise_operations_refuse_wrong_lengths() {
    on_each("refusals of the element-wise operations", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let [a, b, c] = [9000, 9000, 9000].map(|len| new(l, len));
        let short = new(l, 8999);
        let sum = DeviceSum::for_values(l, 9000).unwrap();
        let small = DeviceSum::for_values(l, 4000).unwrap();
        let step = CorrectionStep { relaxation: 1.0, least_sum: 0.0, least: 0.0 };
        refused(cuda::weigh_residual(l, short, b, c, &sum), "weigh_residual", "measured");
        refused(cuda::weigh_residual(l, a, short, c, &sum), "weigh_residual", "weights");
        refused(cuda::weigh_residual(l, a, b, c, &small), "weigh_residual", "sum");
        refused(cuda::apply_correction(l, &step, short, b, c, &sum), "apply_correction", "correction");
        refused(cuda::apply_correction(l, &step, a, short, c, &sum), "apply_correction", "column_sums");
        refused(cuda::apply_correction(l, &step, a, b, c, &small), "apply_correction", "sum");
        refused(cuda::descend(l, 1.0, short, 0.0, a), "descend", "gradient");
        refused(cuda::squared_norm(l, a, &small), "squared_norm", "sum");
        refused(cuda::squared_distance(l, a, short, &sum), "squared_distance", "second");
        let adam = AdamStep::new(0.1, 1);
        let (d, now) = (new(l, 9000), new(l, 2));
        refused(cuda::adam_step(l, &adam, short, a, b, c, d), "adam_step", "changing");
        refused(cuda::adam_step(l, &adam, now, a, short, b, c), "adam_step", "gradients");
        refused(cuda::adam_step(l, &adam, now, a, b, short, c), "adam_step", "first");
        refused(cuda::adam_step(l, &adam, now, a, b, c, short), "adam_step", "second");
        cuda::adam_step(l, &adam, now, a, b, c, d).unwrap();

        let variation = TotalVariation { voxels: [10, 30, 30], scale: [1.0; 3], epsilon: 0.1 };
        let sum = DeviceSum::for_volume(l, variation.voxels).unwrap();
        refused(cuda::total_variation(l, &variation, short, &sum), "total_variation", "volume");
        refused(cuda::total_variation(l, &variation, a, &small), "total_variation", "sum");
        let gradient =
            |volume, gradient| cuda::add_total_variation_gradient(l, &variation, 1.0, volume, gradient, &sum);
        refused(gradient(short, b), "add_total_variation_gradient", "volume");
        refused(gradient(a, short), "add_total_variation_gradient", "gradient");
        let flat = TotalVariation { epsilon: 0.0, ..variation };
        assert!(matches!(cuda::total_variation(l, &flat, a, &sum), Err(ComputeError::Value { .. })));
    });
}

#[test]
fn operations_of_the_optimisation_refuse_wrong_lengths() {
    on_each("refusals of the optimisation's operations", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let [a, b, c] = [9000, 9000, 9000].map(|len| new(l, len));
        let short = new(l, 8999);
        let (sum, small) = (DeviceSum::for_values(l, 9000).unwrap(), DeviceSum::for_values(l, 4000).unwrap());
        refused(cuda::subtract(l, short, b, c), "subtract", "first");
        refused(cuda::subtract(l, a, short, c), "subtract", "second");
        refused(cuda::add_scaled(l, 1.0, short, a), "add_scaled", "from");
        refused(cuda::dot(l, a, short, &sum), "dot", "second");
        refused(cuda::dot(l, a, b, &small), "dot", "sum");
        refused(cuda::hold_at_zero(l, short, a), "hold_at_zero", "volume");
        refused(cuda::count_not_finite(l, a, &small), "count_not_finite", "sum");
        refused(cuda::add_modulus_gradient(l, 1.0, short, b, c), "add_modulus_gradient", "volume");
        refused(cuda::add_modulus_gradient(l, 1.0, a, short, c), "add_modulus_gradient", "reference");
        refused(cuda::whiten(l, short, b, c), "whiten", "weights");
        refused(cuda::whiten(l, a, short, c), "whiten", "gradient");
        refused(cuda::times_root(l, short, b, c), "times_root", "weights");
        refused(cuda::times_root(l, a, short, c), "times_root", "values");
        refused(cuda::mix_sharpened(l, 1.0, 1.0, short, b, c), "mix_sharpened", "weights");
        refused(cuda::mix_sharpened(l, 1.0, 1.0, a, short, c), "mix_sharpened", "filtered");
        refused(cuda::held_back_squares(l, a, short, c, &sum), "held_back_squares", "measured");
        refused(cuda::held_back_squares(l, a, b, short, &sum), "held_back_squares", "weights");
        refused(cuda::held_back_squares(l, a, b, c, &small), "held_back_squares", "sum");
        let detector = Detector { columns: 30, rows: 10 };
        refused(cuda::take_aperture(l, detector, [0.1; 2], short, short), "take_aperture", "views");
        refused(cuda::take_aperture(l, detector, [0.1; 2], a, short), "take_aperture", "out");

        let expert = Expert { taps: [0.0; TAPS], convex: [1.0; 2], saturating: [1.0; 2] };
        let experts = Experts::new(vec![expert], vec![1.0; 2], 0.04).unwrap();
        let table = ExpertsTable::upload(l, &experts).unwrap();
        let gradient = |volume, gradient| cuda::add_experts_gradient(l, &table, [10, 30, 30], 1.0, volume, gradient);
        refused(gradient(short, b), "add_experts_gradient", "volume");
        refused(gradient(a, short), "add_experts_gradient", "gradient");
    });
}

#[test]
fn values_are_copied_on_the_device() {
    on_each("copies on the device", |carrier| {
        let values: Vec<f32> = (0..100u8).map(f32::from).collect();
        let copied = carrier.run(|launcher| {
            let (from, to) = (upload(launcher, &values), upload(launcher, &[-1.0; 60]));
            from.part(30..80).unwrap().copy_to_slice(launcher, to.part(5..55).unwrap()).unwrap();
            from.part(0..0).unwrap().copy_to_slice(launcher, to.part(60..60).unwrap()).unwrap();
            // Side by side is not one over the other.
            from.part(0..50).unwrap().copy_to_slice(launcher, from.part(50..100).unwrap()).unwrap();
            vec![download(launcher, to), download(launcher, from)]
        });
        let expected: Vec<f32> = [vec![-1.0; 5], values[30..80].to_vec(), vec![-1.0; 5]].concat();
        assert_eq!(copied, [expected, [&values[..50], &values[..50]].concat()]);

        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let a = new(l, 100);
        refused(a.copy_to_slice(l, new(l, 99)), "copy_to_slice", "to");
        let error = a.part(0..51).unwrap().copy_to_slice(l, a.part(49..100).unwrap()).unwrap_err().to_string();
        assert!(error.contains("overlap"), "{error}");
        assert!(l.copy(0, 4096, 16).is_err() && l.copy(4096, 0, 16).is_err() && l.copy(0, usize::MAX - 3, 16).is_err());
    });
}

#[test]
fn buffers_that_overlap_or_do_not_fit_are_refused() {
    on_each("refusals of buffers", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let a = new(l, 100);
        let error = cuda::descend(l, 1.0, a, 0.0, a).unwrap_err().to_string();
        assert!(error.contains("descend") && error.contains("overlaps"), "{error}");
        let (low, high) = (a.part(0..51).unwrap(), a.part(49..100).unwrap());
        assert!(cuda::descend(l, 1.0, low, 0.0, high).is_err());
        assert!(a.part(50..101).is_none());
        let error = DeviceSlice::<f32>::allocate(l, 1 << 40).unwrap_err().to_string();
        assert!(error.contains("does not fit"), "{error}");
        assert!(a.copy_from(l, &[0.0; 99]).is_err() && a.copy_to(l, &mut [0.0; 101]).is_err());
        // Offsets of another launcher's larger arena mean nothing here.
        assert!(l.copy_in(4096, &[0]).is_err() && l.copy_out(usize::MAX, &mut [0]).is_err());
    });
}
