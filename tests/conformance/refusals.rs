//! What is refused: buffers of the wrong length, by operation and name, and launches that cannot be.

use std::f64::consts::TAU;

use diffnr::compute::ComputeError;
use diffnr::compute::cpu::ramp_filter::{RampFilter, Window};
use diffnr::compute::cuda;
use diffnr::compute::cuda::{DeviceSlice, DeviceSum, DeviceWeights, FilterTable, Launcher, ScanTable};
use diffnr::compute::gaussians::AdamStep;
use diffnr::compute::sart::CorrectionStep;
use diffnr::compute::total_variation::TotalVariation;
use diffnr::geometry::Detector;

use crate::carriers::on_each;
use crate::scans::{grid, orbit};

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
        let d = new(l, 9000);
        refused(cuda::adam_step(l, &adam, a, short, b, c), "adam_step", "gradients");
        refused(cuda::adam_step(l, &adam, a, b, short, c), "adam_step", "first");
        refused(cuda::adam_step(l, &adam, a, b, c, short), "adam_step", "second");
        cuda::adam_step(l, &adam, a, b, c, d).unwrap();

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
